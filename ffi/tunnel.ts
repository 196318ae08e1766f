/** What two programs on two hosts say to each other over unix sockets, carried by channels; see c-shim/tunnel.c. */
import type { Channel } from "./channel.ts";
import { cString, Handle, OutPointer } from "./handle.ts";
import { shim } from "./library.ts";
import { unwrap } from "./native_error.ts";

const LISTEN = 1;

export class Tunnel extends Handle implements AsyncDisposable {
  /** The program here connects to `path`. Throws NativeError: EADDRINUSE, ENOENT, ENAMETOOLONG. */
  static listen(path: string): Tunnel {
    return Tunnel.#make(path, LISTEN);
  }

  /** The program here listens at `path` by the time that a channel is added. Throws NativeError: ENAMETOOLONG. */
  static dial(path: string): Tunnel {
    return Tunnel.#make(path, 0);
  }

  static #make(path: string, flags: number): Tunnel {
    const out = new OutPointer();
    const op = `tunnel ${path}`;
    unwrap(op, shim().gy_tunnel_create(cString(path), flags, out.cell));
    return new Tunnel(out.take(op));
  }

  /** Bytes that came from the other host so far. */
  get bytes(): number {
    return Number(shim().gy_tunnel_bytes(this.pointer));
  }

  /** For the program's next connection; takes the channel over, also when it throws. Throws NativeError. */
  add(channel: Channel): void {
    unwrap("carry a connection of QEMU", shim().gy_tunnel_add(this.pointer, channel.give()));
  }

  /** Ends every connection; others may be added. */
  async drop(): Promise<void> {
    await shim().gy_tunnel_drop(this.pointer);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const pointer = this.release();
    if (pointer) await shim().gy_tunnel_destroy(pointer);
  }
}
