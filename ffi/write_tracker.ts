/** Notes what another process writes to its guest's RAM. */
import { Handle, OutPointer, OutText, type Pointer } from "./handle.ts";
import { shim } from "./library.ts";
import { unwrap } from "./native_error.ts";
import type { PageSet } from "./page_set.ts";
import type { Ram } from "./ram.ts";

/** By enum gy_tracker_way. */
const WAYS: readonly string[] = [
  "asynchronous write protection",
  "soft-dirty bits, as this kernel has no asynchronous write protection (Linux 6.7 has)",
];
const OP = "track the guest's writes";

export class WriteTracker extends Handle implements AsyncDisposable {
  /** What it goes by, in words. */
  readonly way: string;

  private constructor(pointer: Pointer, way: string) {
    super(pointer);
    this.way = way;
  }

  /**
   * With the guest running, since it may take a while; `ram` comes from Ram.attach(). Throws NativeError: ENOTSUP (this
   * kernel, or RAM such as this, has nothing to track by), EPERM, EBUSY (a debugger has the process).
   */
  static async open(ram: Ram): Promise<WriteTracker> {
    const out = new OutPointer();
    const err = new OutText();
    const result = await shim().gy_tracker_create(ram.pointer, out.cell, err.bytes, err.bytes.length);
    const way = unwrap(OP, result, err.text);
    return new WriteTracker(out.take(OP), WAYS[way] ?? `way ${way}`);
  }

  /** Every write from here on is noted. Here and in collect(), the guest is stopped and its I/O drained. */
  async start(): Promise<void> {
    const err = new OutText();
    unwrap(OP, await shim().gy_tracker_start(this.pointer, err.bytes, err.bytes.length), err.text);
  }

  /** What of collect() can be done before, with the guest running. */
  async prepare(): Promise<void> {
    unwrap("look for written pages", await shim().gy_tracker_prepare(this.pointer));
  }

  /** Adds what was written since the last call, or the start. */
  async collect(set: PageSet): Promise<number> {
    const result = await shim().gy_tracker_collect(this.pointer, set.words, BigInt(set.words.length));
    return unwrap("look for written pages", result);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const pointer = this.release();
    if (pointer) await shim().gy_tracker_destroy(pointer);
  }
}
