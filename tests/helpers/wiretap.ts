/**
 * A man in the middle who understands what passes: it holds, alters or cuts single messages and page replies.
 *
 * Only without TLS, where both ends prove that they hold the key and nothing is encrypted: what it alters is what a
 * hostile end with the key could send.
 */
import { joined } from "../../lib/bytes.ts";
import { formatTicket, parseTicket } from "../../lib/wire/ticket.ts";
import { patience } from "./patience.ts";

/** Preamble and proof, which pass as they are; neither end sends its proof before it has the other's preamble. */
const SECURE_BYTES = [40, 32];
const HEAD_BYTES = 8;
const REPLY_BYTES = 32;
const REQUEST_BYTES = 32;
const REPLY_BODY_AT = 24;
const PATIENCE_MS = patience(15_000);

type Side = "source" | "destination";
type Role = "control" | "demand" | "prefetch";

export interface Frame {
  from: Side;
  role: Role;
  /** "" for a text that is no message. */
  type: string;
  text: string;
  payload: Uint8Array<ArrayBuffer>;
}

/** What becomes of a frame: these bytes in its place, the end of its connection after them, or null: as it is. */
export interface Verdict {
  bytes: Uint8Array<ArrayBuffer>;
  cut?: boolean;
}

export interface WiretapOptions {
  onFrame?: (frame: Frame) => Promise<Verdict | null> | Verdict | null;
  /** May alter the head of a page reply, or its body, in place. */
  onReply?: (head: DataView, body: Uint8Array, role: Role) => void;
  /** May alter a page request in place. */
  onRequest?: (request: DataView, role: Role) => void;
}

export function encodeFrame(text: string, payload: Uint8Array = new Uint8Array(0)): Uint8Array<ArrayBuffer> {
  const bytes = new TextEncoder().encode(text);
  const frame = new Uint8Array(HEAD_BYTES + bytes.length + payload.length);
  const head = new DataView(frame.buffer);
  head.setUint32(0, bytes.length, true);
  head.setUint32(4, payload.length, true);
  frame.set(bytes, HEAD_BYTES);
  frame.set(payload, HEAD_BYTES + bytes.length);
  return frame;
}

/** Alters the first control message of `type`, once. */
export function once(type: string, alter: (frame: Frame) => Promise<Verdict> | Verdict): WiretapOptions {
  let done = false;
  return {
    onFrame(frame) {
      if (done || frame.type !== type || frame.role !== "control") return null;
      done = true;
      return alter(frame);
    },
  };
}

/** The message goes no further, and its connection ends. */
export const CUT: Verdict = { bytes: new Uint8Array(0), cut: true };

export const ROLES = ["control", "demand", "prefetch"] as const;

export class Wiretap implements AsyncDisposable {
  readonly ticket: string;
  /** Types of the control messages that came by, in order. */
  readonly seen: string[] = [];
  readonly #options: WiretapOptions;
  readonly #target: { hostname: string; port: number };
  readonly #listener: Deno.TcpListener;
  readonly #connections = new Set<Connection>();
  readonly #accepting: Promise<void>;
  #shutUntil = 0;

  constructor(ticket: string, options: WiretapOptions) {
    const parsed = parseTicket(ticket);
    if (parsed.tls) throw new Error("A wiretap needs --tls off");
    this.#options = options;
    this.#target = { hostname: parsed.host, port: parsed.port };
    this.#listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    this.ticket = formatTicket({ ...parsed, host: "127.0.0.1", port: this.#listener.addr.port });
    this.#accepting = this.#accept();
  }

  /** Breaks the connections of these roles, now, and lets nobody through for `forMs`. */
  cut(roles: readonly Role[], forMs: number): void {
    this.#shutUntil = performance.now() + forMs;
    for (const connection of this.#connections) {
      if (connection.role && roles.includes(connection.role)) connection.close();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#close();
    await this.#accepting;
    for (const connection of this.#connections) connection.close();
  }

  #close(): void {
    try {
      this.#listener.close();
    } catch (error) {
      // Nobody listened behind it any more.
      if (!(error instanceof Deno.errors.BadResource)) throw error;
    }
  }

  /** Until it is closed; leaving the loop closes it too. */
  async #accept(): Promise<void> {
    for await (const near of this.#listener) {
      const shut = performance.now() < this.#shutUntil;
      const far = shut ? null : await Deno.connect(this.#target).catch(() => null);
      if (!far) {
        near.close();
        // Where nobody listens any more this answers as that host would.
        if (!shut) break;
        continue;
      }
      const connection = new Connection(near, far, this.#options, this.seen);
      this.#connections.add(connection);
      void connection.relay().finally(() => this.#connections.delete(connection));
    }
  }
}

/** What was read of a stream before its time. */
class Ahead {
  #bytes: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #reading: Promise<void> | null = null;

  /** Resolves once more is here, or throws at the end of the stream. One read at a time, however often it is called. */
  async grow(end: Deno.TcpConn): Promise<void> {
    await (this.#reading ??= this.#readSome(end));
  }

  async #readSome(end: Deno.TcpConn): Promise<void> {
    const some = new Uint8Array(64 * 1024);
    const n = await end.read(some);
    if (n === null) throw new Error("the end of the stream");
    this.#bytes = joined([this.#bytes, some.subarray(0, n)]);
    this.#reading = null;
  }

  /** Moves what is here to the start of `to`; resolves with the number of bytes. */
  async take(to: Uint8Array): Promise<number> {
    if (to.length === 0) return 0;
    // Whoever has sent this much may wait for an answer to it.
    if (this.#bytes.length === 0) await this.#reading;
    const n = Math.min(to.length, this.#bytes.length);
    to.set(this.#bytes.subarray(0, n));
    this.#bytes = this.#bytes.slice(n);
    return n;
  }
}

class Connection {
  role: Role | null = null;
  readonly #ends: Record<Side, Deno.TcpConn>;
  readonly #options: WiretapOptions;
  readonly #seen: string[];
  readonly #roleKnown = Promise.withResolvers<Role>();
  readonly #ahead: Record<Side, Ahead> = { source: new Ahead(), destination: new Ahead() };

  constructor(near: Deno.TcpConn, far: Deno.TcpConn, options: WiretapOptions, seen: string[]) {
    this.#ends = { source: near, destination: far };
    this.#options = options;
    this.#seen = seen;
    for (const end of [near, far]) end.setNoDelay(true);
  }

  /** Until either end closes. Never throws. */
  async relay(): Promise<void> {
    await Promise.all([this.#pump("source"), this.#pump("destination")]);
  }

  close(): void {
    for (const end of Object.values(this.#ends)) {
      try {
        end.close();
      } catch {
        // Closed already.
      }
    }
  }

  async #pump(from: Side): Promise<void> {
    try {
      for (const bytes of SECURE_BYTES) await this.#copy(from, bytes);
      if (from === "source") await this.#frame(from);
      const role = await this.#roleKnown.promise;
      if (role === "control") { for (;;) await this.#frame(from); }
      if (from === "source") { for (;;) await this.#reply(role); }
      await this.#frame(from);
      for (;;) await this.#request(role);
    } catch {
      // Whatever ends one direction ends the connection: an end of stream, a reset, or a verdict.
      this.close();
      this.#roleKnown.resolve("control");
    }
  }

  async #frame(from: Side): Promise<void> {
    const head = await this.#read(from, HEAD_BYTES);
    const sizes = new DataView(head.buffer);
    const text = new TextDecoder().decode(await this.#read(from, sizes.getUint32(0, true)));
    const payload = await this.#read(from, sizes.getUint32(4, true));
    const message = JSON.parse(text);
    if (!this.role) {
      this.role = message.role;
      this.#roleKnown.resolve(message.role);
    }
    const role = this.role ?? "control";
    if (role === "control") this.#seen.push(message.type);
    const verdict = await this.#whileOpen(
      from,
      this.#options.onFrame?.({ from, role, type: message.type, text, payload }),
    );
    await this.#write(from, verdict?.bytes ?? encodeFrame(text, payload));
    if (verdict?.cut) throw new Error("cut by the test");
  }

  /** A frame may be held for long; an end that closes meanwhile is heard all the same. */
  async #whileOpen<T>(from: Side, held: Promise<T> | T): Promise<T> {
    const ahead = this.#ahead[from];
    const whole = Promise.resolve(held);
    const passed = whole.then(() => true);
    // Whoever closes may have said more before.
    for (;;) if (await Promise.race([passed, ahead.grow(this.#ends[from])])) return await whole;
  }

  async #reply(role: Role): Promise<void> {
    const head = await this.#read("source", REPLY_BYTES);
    const view = new DataView(head.buffer);
    const body = await this.#read("source", view.getUint32(REPLY_BODY_AT, true));
    this.#options.onReply?.(view, body, role);
    await this.#write("source", head);
    await this.#write("source", body);
  }

  async #request(role: Role): Promise<void> {
    const request = await this.#read("destination", REQUEST_BYTES);
    this.#options.onRequest?.(new DataView(request.buffer), role);
    await this.#write("destination", request);
  }

  async #copy(from: Side, bytes: number): Promise<void> {
    await this.#write(from, await this.#read(from, bytes));
  }

  async #read(from: Side, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    const all = new Uint8Array(bytes);
    for (let have = 0; have < bytes;) {
      const rest = all.subarray(have);
      // Never past what reads ahead: of two reads at a time each would have a part.
      const n = await this.#ahead[from].take(rest) || await this.#ends[from].read(rest);
      if (n === null) throw new Error("the end of the stream");
      have += n;
    }
    return all;
  }

  async #write(from: Side, bytes: Uint8Array): Promise<void> {
    const to = this.#ends[from === "source" ? "destination" : "source"];
    for (let sent = 0; sent < bytes.length;) sent += await to.write(bytes.subarray(sent));
  }
}

/** Stops at the first control message of a type until it is let go. */
export class Hold {
  readonly #reached = Promise.withResolvers<void>();
  readonly #release = Promise.withResolvers<void>();
  readonly #type: string;

  constructor(type: string) {
    this.#type = type;
  }

  /** Resolves once the message has come; throws when it does not. */
  async reached(): Promise<void> {
    const timer = setTimeout(
      () => this.#reached.reject(new Error(`"${this.#type}" did not come in time`)),
      PATIENCE_MS,
    );
    try {
      await this.#reached.promise;
    } finally {
      clearTimeout(timer);
    }
  }

  readonly onFrame = async (frame: Frame): Promise<null> => {
    if (frame.type === this.#type && frame.role === "control") {
      this.#reached.resolve();
      await this.#release.promise;
    }
    return null;
  };

  release(): void {
    this.#release.resolve();
  }
}
