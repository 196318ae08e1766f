/** TCP connections secured by the ticket's key. */
import { cString, Handle, OutPointer, OutText, type Pointer } from "./handle.ts";
import { shim } from "./library.ts";
import { ERRNO, NativeError, unwrap } from "./native_error.ts";

const SERVER = 1;
const TLS = 2;

/** One blocking call lasts at most this long; longer waits are loops here, so that a signal can end them. */
const SLICE_MS = 500;

export interface SecureOptions {
  key: Uint8Array<ArrayBuffer>;
  tls: boolean;
  timeoutMs: number;
}

export interface Frame {
  text: string;
  payload: Uint8Array<ArrayBuffer>;
}

/** A connection. Sending and receiving may go on at the same time; two sends, or two receives, may not. */
export class Channel extends Handle implements Disposable {
  readonly server: boolean;
  #busy = 0;
  #closed = false;

  constructor(pointer: Pointer, server: boolean) {
    super(pointer);
    this.server = server;
  }

  /** Throws NativeError: ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ENOENT (no such host). */
  static async connect(host: string, port: number, timeoutMs: number): Promise<Channel> {
    const out = new OutPointer();
    const name = cString(host);
    const op = `connect to ${host}:${port}`;
    unwrap(op, await shim().gy_channel_connect(name, port, timeoutMs, out.cell));
    return new Channel(out.take(op), false);
  }

  /** Throws NativeError: EACCES (wrong key), EPROTO (not Gyges, or one end wants TLS), ETIMEDOUT, ECONNABORTED. */
  async secure(options: SecureOptions): Promise<void> {
    const err = new OutText();
    const flags = (this.server ? SERVER : 0) | (options.tls ? TLS : 0);
    const result = await this.#use((pointer) =>
      shim().gy_channel_secure(pointer, options.key, flags, options.timeoutMs, err.bytes, err.bytes.length)
    );
    unwrap("secure the connection", result, err.text);
  }

  /**
   * One message, whole. Throws NativeError ECONNABORTED when the peer closed, EMSGSIZE beyond `maxBytes`,
   * ETIMEDOUT when no whole message came within `timeoutMs`; the channel is closed then, as part of one may have come.
   */
  async receive(maxBytes: number, timeoutMs: number): Promise<Frame> {
    const buffer = new Uint8Array(maxBytes);
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const slice = Math.max(0, Math.min(SLICE_MS, deadline - performance.now()));
      const result = await this.#use((pointer) =>
        shim().gy_channel_recv_frame(pointer, buffer, BigInt(buffer.length), Math.ceil(slice))
      );
      if (Number(result) === -ERRNO.ETIMEDOUT) {
        if (performance.now() < deadline) continue;
        this[Symbol.dispose]();
      }
      const total = unwrap("receive", result);
      const textBytes = new DataView(buffer.buffer).getUint32(0, true);
      return {
        text: new TextDecoder("utf-8", { fatal: true }).decode(buffer.subarray(8, 8 + textBytes)),
        payload: buffer.slice(8 + textBytes, total),
      };
    }
  }

  /** Throws NativeError ECONNABORTED, ETIMEDOUT; after either the channel is of no more use. */
  async send(text: string, payload: Uint8Array<ArrayBuffer>, timeoutMs: number): Promise<void> {
    const bytes = new TextEncoder().encode(text);
    const result = await this.#use((pointer) =>
      shim().gy_channel_send_frame(pointer, bytes, bytes.length, payload, payload.length, timeoutMs)
    );
    unwrap("send", result);
  }

  /** Gives the connection to a native owner. */
  give(): Pointer {
    const pointer = this.release();
    if (!pointer) throw new Error("Channel was given away twice");
    return pointer;
  }

  /** Calls under way end with ECONNABORTED; the memory goes with the last of them. */
  [Symbol.dispose](): void {
    if (this.gone || this.#closed) return;
    this.#closed = true;
    shim().gy_channel_shutdown(this.pointer);
    this.#destroyWhenIdle();
  }

  #destroyWhenIdle(): void {
    if (!this.#closed || this.#busy > 0) return;
    const pointer = this.release();
    if (pointer) shim().gy_channel_destroy(pointer);
  }

  async #use<T>(call: (pointer: Pointer) => Promise<T>): Promise<T> {
    if (this.#closed || this.gone) throw new NativeError("use the connection", ERRNO.ECONNABORTED);
    this.#busy++;
    try {
      return await call(this.pointer);
    } finally {
      this.#busy--;
      this.#destroyWhenIdle();
    }
  }
}

/** Listens, and keeps connections in a lobby until they have said their first message: strangers that wait cost nothing. */
export class Listener extends Handle implements Disposable {
  readonly host: string;
  readonly port: number;
  #accepting = false;
  #closed = false;

  private constructor(lobby: Pointer, host: string, port: number) {
    super(lobby);
    this.host = host;
    this.port = port;
  }

  /** Throws NativeError: EADDRINUSE, EADDRNOTAVAIL, ENOENT. */
  static async open(host: string, port: number): Promise<Listener> {
    const out = new OutPointer();
    const name = cString(host);
    const op = `listen on ${host}:${port}`;
    unwrap(op, await shim().gy_listener_create(name, port, out.cell));
    const listener = out.take(op);
    const bound = shim().gy_listener_port(listener);
    const lobby = new OutPointer();
    unwrap(op, shim().gy_lobby_create(listener, lobby.cell));
    return new Listener(lobby.take(op), host, bound);
  }

  /** Connections that were dropped because they said nothing, or nothing whole. */
  get dropped(): number {
    return this.gone ? 0 : Number(shim().gy_lobby_dropped(this.pointer));
  }

  /** The next connection that has spoken, not yet secured; null once the listener is closed. */
  async accept(): Promise<Channel | null> {
    this.#accepting = true;
    try {
      while (!this.#closed) {
        const out = new OutPointer();
        const result = await shim().gy_lobby_accept(this.pointer, SLICE_MS, out.cell);
        if (result === -ERRNO.ETIMEDOUT) continue;
        unwrap(`accept on ${this.host}:${this.port}`, result);
        return new Channel(out.take("accept"), true);
      }
      return null;
    } finally {
      this.#accepting = false;
      this.#destroyWhenIdle();
    }
  }

  [Symbol.dispose](): void {
    this.#closed = true;
    this.#destroyWhenIdle();
  }

  #destroyWhenIdle(): void {
    if (!this.#closed || this.#accepting) return;
    const pointer = this.release();
    if (pointer) shim().gy_lobby_destroy(pointer);
  }
}
