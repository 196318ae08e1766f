/** Hand-made ends of a migration: they speak the protocol as far as a test lets them. */
import { Channel, Listener } from "../../ffi/channel.ts";
import { type Message, PROTOCOL_VERSION } from "../../lib/wire/messages.ts";
import { Peer } from "../../lib/wire/peer.ts";
import { formatTicket, newKey, parseTicket } from "../../lib/wire/ticket.ts";
import { patience } from "./patience.ts";

const DEADLINE_MS = patience(5_000);

/** Connects to the destination behind `ticket` and proves to hold its key. */
export async function connectTo(ticket: string): Promise<Peer> {
  const { host, port, key, tls } = parseTicket(ticket);
  const channel = await Channel.connect(host, port, DEADLINE_MS);
  await channel.secure({ key, tls, timeoutMs: DEADLINE_MS });
  return new Peer(channel);
}

/** A source that has been welcomed. */
export async function greetedSource(ticket: string): Promise<Peer> {
  const peer = await connectTo(ticket);
  await peer.send({ type: "hello", protocol: PROTOCOL_VERSION, role: "control" });
  await peer.expect("welcome", DEADLINE_MS);
  return peer;
}

/** A destination that does with each connection what `serve` says. */
export class FakeDestination implements AsyncDisposable {
  readonly ticket: string;
  readonly #listener: Listener;
  readonly #serving: Promise<void>;
  readonly #peers: Peer[] = [];

  private constructor(listener: Listener, key: Uint8Array<ArrayBuffer>, serve: (peer: Peer) => Promise<void>) {
    this.#listener = listener;
    this.ticket = formatTicket({ host: "127.0.0.1", port: listener.port, name: "fake", tls: true, key });
    this.#serving = this.#accept(key, serve);
  }

  static async open(serve: (peer: Peer) => Promise<void>): Promise<FakeDestination> {
    return new FakeDestination(await Listener.open("127.0.0.1", 0), newKey(), serve);
  }

  async #accept(key: Uint8Array<ArrayBuffer>, serve: (peer: Peer) => Promise<void>): Promise<void> {
    for (let channel = await this.#listener.accept(); channel; channel = await this.#listener.accept()) {
      const peer = new Peer(channel);
      this.#peers.push(peer);
      const secured = channel.secure({ key, tls: true, timeoutMs: DEADLINE_MS });
      // The source may hang up whenever it has seen enough.
      void secured.then(() => serve(peer)).catch(() => peer[Symbol.dispose]());
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener[Symbol.dispose]();
    await this.#serving;
    for (const peer of this.#peers) peer[Symbol.dispose]();
  }
}

/** Reads the source's hello and welcomes it. */
export async function welcome(peer: Peer): Promise<Message> {
  const { message } = await peer.receive(DEADLINE_MS);
  await peer.send({ type: "welcome", session: "fake", name: "fake", state: "listening" });
  return message;
}
