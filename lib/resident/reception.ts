/**
 * The destination's door: a listener, a ticket, and one session. A process that takes over opens it again, as it was.
 *
 * Whoever connects must prove that it holds the ticket's key before a word is read. The first control connection
 * uses the ticket up; later ones, and all page connections, must name the session that it was given.
 */
import { type Channel, Listener } from "../../ffi/channel.ts";
import { NativeError } from "../../ffi/native_error.ts";
import { EXIT, GygesError, MigrationError, PreflightError } from "../errors.ts";
import type { GygesEvent } from "../events.ts";
import type { DestinationMigration } from "../migration/destination.ts";
import { DEADLINE_MS, pause } from "../migration/timing.ts";
import type { PrepareOptions } from "../options.ts";
import { type MessageOf, PROTOCOL_VERSION } from "../wire/messages.ts";
import { Peer } from "../wire/peer.ts";
import { formatTicket, newKey, parseTicket, type Ticket } from "../wire/ticket.ts";
import type { Credentials } from "./attach_record.ts";
import { StrangerNotes } from "./stranger_notes.ts";

/**
 * Handshakes under way at a time, each on a thread of its own; more wait in the listener's lobby. Who says nothing
 * never comes so far, and who does not hold the key is found out by its first message.
 */
const MAX_HANDSHAKES = 8;

export interface ReceptionOptions {
  /** Of this process. */
  name: string;
  migration: DestinationMigration;
  onEvent: (event: GygesEvent) => void;
}

interface Door {
  ticket: Ticket;
  /** Null: the ticket is not used yet, and has so long to be. */
  session: string | null;
  ttlMs: number;
}

export class Reception implements Disposable {
  readonly ticket: string;
  readonly #door: Ticket;
  readonly #listener: Listener;
  readonly #migration: DestinationMigration;
  readonly #notes: StrangerNotes;
  readonly #first = Promise.withResolvers<Peer>();
  readonly #timer: ReturnType<typeof setTimeout> | undefined;
  #session: string | null;
  #handshakes = 0;

  private constructor(listener: Listener, { ticket, session, ttlMs }: Door, options: ReceptionOptions) {
    this.#listener = listener;
    this.#door = ticket;
    this.#session = session;
    this.#migration = options.migration;
    this.#notes = new StrangerNotes({ silent: () => listener.dropped, onEvent: options.onEvent });
    this.ticket = formatTicket(ticket);
    if (session === null) this.#timer = setTimeout(() => this.refuse(expired(ttlMs)), ttlMs);
    // Nobody may be listening yet when it fails.
    this.#first.promise.catch(() => {});
    void this.#accept();
  }

  /** Throws PreflightError when the address cannot be had. */
  static async open(options: PrepareOptions & ReceptionOptions): Promise<Reception> {
    const { host, port, name, tls, ticketTtlMs } = options;
    const listener = await listenOn(
      host,
      port,
      "give --listen HOST:PORT an address of this host and a port that is free; port 0 finds one",
    );
    const ticket = { host, port: listener.port, name, tls, key: newKey() };
    return new Reception(listener, { ticket, session: null, ttlMs: ticketTtlMs }, options);
  }

  /** Where a process that died has listened, for the source of its session. Throws PreflightError, as open(). */
  static async reopen({ ticket, session }: Credentials, options: ReceptionOptions): Promise<Reception> {
    const door = parseTicket(ticket);
    const listener = await listenOn(
      door.host,
      door.port,
      "the source comes back to this address and no other: end what listens there, ss -ltnp names it",
    );
    return new Reception(listener, { ticket: door, session, ttlMs: 0 }, options);
  }

  /** What the source knows this side by; null until it has come. */
  get credentials(): Credentials | null {
    return this.#session === null ? null : { ticket: this.ticket, session: this.#session };
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
        while (this.#handshakes >= MAX_HANDSHAKES) await pause(10);
      }
    } catch (error) {
      this.#first.reject(error);
    }
  }

  async #greet(channel: Channel): Promise<void> {
    const { key, tls } = this.#door;
    await channel.secure({ key, tls, timeoutMs: DEADLINE_MS.secure });
    const peer = new Peer(channel);
    const { message } = await peer.expect("hello", DEADLINE_MS.secure);
    const refusal = this.#objection(message);
    if (refusal) {
      await peer.send(refusal);
      // The session's own source is no stranger: one that gave up comes back to say so, to a side that knows it.
      if (this.#isOurs(message)) return peer[Symbol.dispose]();
      throw new Error(refusal.message);
    }
    if (message.role === "control") return await this.#welcomeControl(peer, message);
    await this.#welcome(peer, this.#session ?? "");
    this.#migration.addPages(channel, message.role);
  }

  async #welcomeControl(peer: Peer, { rdma, pages }: MessageOf<"hello">): Promise<void> {
    const first = this.#session === null;
    this.#session ??= crypto.randomUUID();
    clearTimeout(this.#timer);
    const { absence } = this.#migration;
    const overTcp = pages === "tcp";
    // It opens its page connections as soon as it is welcome.
    if (overTcp) absence.goOverTcp();
    await this.#welcome(peer, this.#session);
    if (first) this.#first.resolve(peer);
    else absence.end({ peer, rdma: rdma ?? null, overTcp });
  }

  #welcome(peer: Peer, session: string): Promise<void> {
    return peer.send({ type: "welcome", session, name: this.#door.name, state: this.#migration.absence.answer });
  }

  #isOurs({ session }: MessageOf<"hello">): boolean {
    return session !== undefined && session === this.#session;
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
    if (!this.#isOurs(hello)) {
      return refused("session", "another session", "a session that is not here", "ask for a new ticket");
    }
    if (hello.role === "control" && !this.#migration.absence.awaitsSource) {
      return refused("session", "connected already", "connected again", "wait until this side has seen the link fail");
    }
    return null;
  }
}

async function listenOn(host: string, port: number, remedy: string): Promise<Listener> {
  try {
    return await Listener.open(host, port);
  } catch (cause) {
    if (!(cause instanceof NativeError)) throw cause;
    throw new PreflightError(cause.message, { check: "listen", remedy, cause });
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
