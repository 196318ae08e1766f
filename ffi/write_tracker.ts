/** Notes what another process writes to its guest's RAM. */
import { Handle, OutPointer, OutText } from "./handle.ts";
import { shim } from "./library.ts";
import { unwrap } from "./native_error.ts";
import type { PageSet } from "./page_set.ts";
import type { Ram } from "./ram.ts";

export class WriteTracker extends Handle implements AsyncDisposable {
  /**
   * Every write from here on is noted; `ram` comes from Ram.attach(). Throws NativeError: ENOTSUP (Linux before 6.7),
   * EPERM, EBUSY (a debugger has the process).
   */
  static async start(ram: Ram): Promise<WriteTracker> {
    const out = new OutPointer();
    const err = new OutText();
    const op = "track the guest's writes";
    unwrap(op, await shim().gy_tracker_create(ram.pointer, out.cell, err.bytes, err.bytes.length), err.text);
    return new WriteTracker(out.take(op));
  }

  /** Adds what was written since the last call. Only with the guest's I/O drained is that all. */
  async collect(set: PageSet): Promise<number> {
    const result = await shim().gy_tracker_collect(this.pointer, set.words, BigInt(set.words.length));
    return unwrap("look for written pages", result);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const pointer = this.release();
    if (pointer) await shim().gy_tracker_destroy(pointer);
  }
}
