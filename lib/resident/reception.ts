/**
 * The destination's door: a listener, a ticket, and one session.
 *
 * Whoever connects must prove that it holds the ticket's key before a word is read. The first control connection
 * uses the ticket up; later ones, and all page connections, must name the session that it was given.
 */
import { type Channel, Listener } from "../../ffi/channel.ts";
import { NativeError } from "../../ffi/native_error.ts";
import { EXIT, GygesError, MigrationError, PreflightError } from "../errors.ts";
import type { GygesEvent } from "../events.ts";
import type { DestinationMigration } from "../migration/destination.ts";
import { DEADLINE_MS } from "../migration/timing.ts";
import type { PrepareOptions } from "../options.ts";
import { type MessageOf, PROTOCOL_VERSION } from "../wire/messages.ts";
import { Peer } from "../wire/peer.ts";
import { formatTicket, newKey } from "../wire/ticket.ts";
import { StrangerNotes } from "./stranger_notes.ts";

/**
 * Handshakes under way at a time, each on a thread of its own; more wait in the listener's lobby. Who says nothing
 * never comes so far, and who does not hold the key is found out by its first message.
 */
const MAX_HANDSHAKES = 8;

export class Reception implements Disposable {
  readonly ticket: string;
  readonly #name: string;
  readonly #key: Uint8Array<ArrayBuffer>;
  readonly #tls: boolean;
  readonly #listener: Listener;
  readonly #migration: DestinationMigration;
  readonly #notes: StrangerNotes;
  readonly #first = Promise.withResolvers<Peer>();
  readonly #timer: ReturnType<typeof setTimeout>;
  #session: string | null = null;
  #handshakes = 0;

  private constructor(
    listener: Listener,
    options: PrepareOptions & { name: string; migration: DestinationMigration; onEvent: (event: GygesEvent) => void },
  ) {
    this.#listener = listener;
    this.#name = options.name;
    this.#tls = options.tls;
    this.#key = newKey();
    this.#migration = options.migration;
    this.#notes = new StrangerNotes({ silent: () => listener.dropped, onEvent: options.onEvent });
    const { host, tls, name } = options;
    this.ticket = formatTicket({ host, port: listener.port, name, tls, key: this.#key });
    this.#timer = setTimeout(() => this.refuse(expired(options.ticketTtlMs)), options.ticketTtlMs);
    // Nobody may be listening yet when it fails.
    this.#first.promise.catch(() => {});
    void this.#accept();
  }

  /** Throws PreflightError when the address cannot be had. */
  static async open(
    options: PrepareOptions & { name: string; migration: DestinationMigration; onEvent: (event: GygesEvent) => void },
  ): Promise<Reception> {
    try {
      return new Reception(await Listener.open(options.host, options.port), options);
    } catch (cause) {
      if (!(cause instanceof NativeError)) throw cause;
      throw new PreflightError(cause.message, {
        check: "listen",
        remedy: "give --listen HOST:PORT an address of this host and a port that is free; port 0 finds one",
        cause,
      });
    }
  }

  /** The control connection that used up the ticket. Rejects when the ticket expires or waiting is ended. */
  get source(): Promise<Peer> {
    return this.#first.promise;
  }

  /** Ends the wait for a source. */
  refuse(error: GygesError): void {
    if (this.#session === null) this.#first.reject(error);
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#notes[Symbol.dispose]();
    this.#listener[Symbol.dispose]();
  }

  async #accept(): Promise<void> {
    try {
      for (let channel = await this.#listener.accept(); channel; channel = await this.#listener.accept()) {
        const stranger = channel;
        this.#handshakes++;
        void this.#greet(stranger).catch((error) => {
          stranger[Symbol.dispose]();
          this.#notes.refused(wordsOf(error));
        }).finally(() => this.#handshakes--);
        while (this.#handshakes >= MAX_HANDSHAKES) await new Promise((resolve) => setTimeout(resolve, 10));
      }
    } catch (error) {
      this.#first.reject(error);
    }
  }

  async #greet(channel: Channel): Promise<void> {
    await channel.secure({ key: this.#key, tls: this.#tls, timeoutMs: DEADLINE_MS.secure });
    const peer = new Peer(channel);
    const { message } = await peer.expect("hello", DEADLINE_MS.secure);
    const refusal = this.#objection(message);
    if (refusal) {
      await peer.send(refusal);
      throw new Error(refusal.message);
    }
    if (message.role === "control") return await this.#welcomeControl(peer, message);
    await peer.send({ type: "welcome", session: this.#session ?? "", name: this.#name, state: this.#migration.state });
    this.#migration.addPages(channel, message.role);
  }

  async #welcomeControl(peer: Peer, { rdma }: MessageOf<"hello">): Promise<void> {
    const first = this.#session === null;
    this.#session ??= crypto.randomUUID();
    clearTimeout(this.#timer);
    await peer.send({ type: "welcome", session: this.#session, name: this.#name, state: this.#migration.state });
    if (first) this.#first.resolve(peer);
    else this.#migration.resume({ peer, rdma: rdma ?? null });
  }

  #objection(hello: MessageOf<"hello">): MessageOf<"refused"> | null {
    if (hello.protocol !== PROTOCOL_VERSION) {
      return refused(
        "protocol",
        `${PROTOCOL_VERSION}`,
        `${hello.protocol}`,
        "run the same version of gyges on both hosts",
      );
    }
    if (hello.session === undefined) {
      if (hello.role === "control" && this.#session === null) return null;
      return refused(
        "ticket",
        "used already",
        "used again",
        "a ticket works once: ask for a new one with gyges prepare",
      );
    }
    if (hello.session !== this.#session) {
      return refused("session", "another session", "a session that is not here", "ask for a new ticket");
    }
    if (hello.role === "control" && !this.#migration.resumable) {
      return refused("session", "connected already", "connected again", "wait until this side has seen the link fail");
    }
    return null;
  }
}

function refused(field: string, ours: string, theirs: string, remedy: string): MessageOf<"refused"> {
  const message =
    `The destination refused the connection: its ${field} is "${ours}" and the source's is "${theirs}": ${remedy}`;
  return { type: "refused", field, ours, theirs, message };
}

function expired(ttlMs: number): MigrationError {
  return new MigrationError(
    `The ticket has expired as nobody used it within ${Math.round(ttlMs / 1000)} s: run gyges prepare again`,
    { phase: "listening", guestLocation: "source", exitCode: EXIT.failedBeforeCommit },
  );
}

function wordsOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
