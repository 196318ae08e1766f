/** A guest's RAM file. */
import { Handle, OutPointer } from "./handle.ts";
import { shim } from "./library.ts";
import { unwrap } from "./native_error.ts";

export const PAGE_BYTES = 4096;

export class Ram extends Handle implements Disposable {
  readonly bytes: number;

  /** Throws NativeError: ENOMEM, EINVAL (not a multiple of 2 MiB). */
  constructor(bytes: number) {
    const out = new OutPointer();
    unwrap(`make a RAM file of ${bytes} bytes`, shim().gy_ram_create(BigInt(bytes), out.cell));
    super(out.take("make a RAM file"));
    this.bytes = bytes;
  }

  get pages(): number {
    return this.bytes / PAGE_BYTES;
  }

  /** Reads without allocating: a page that is not there reads as zeros. */
  read(offset: number, length: number): Uint8Array {
    const buffer = new Uint8Array(length);
    unwrap("read guest RAM", shim().gy_ram_read(this.pointer, BigInt(offset), buffer, BigInt(length)));
    return buffer;
  }

  /** For tests that damage RAM on purpose. */
  write(offset: number, bytes: Uint8Array<ArrayBuffer>): void {
    unwrap("write guest RAM", shim().gy_ram_write(this.pointer, BigInt(offset), bytes, BigInt(bytes.length)));
  }

  allocatedBytes(): number {
    return unwrap("look at guest RAM", shim().gy_ram_allocated(this.pointer));
  }

  [Symbol.dispose](): void {
    const pointer = this.release();
    if (pointer) shim().gy_ram_destroy(pointer);
  }
}
