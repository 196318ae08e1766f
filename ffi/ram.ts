/** A guest's RAM: a file of our own, or those of another process. */
import { cString, Handle, OutPointer, OutText, type Pointer } from "./handle.ts";
import { shim } from "./library.ts";
import { unwrap } from "./native_error.ts";

export const PAGE_BYTES = 4096;

/** A stretch of another process's guest RAM that is one file. */
export interface RamPiece {
  /** As /proc/PID/map_files has it, say. */
  path: string;
  fileOffset: number;
  /** In that process. */
  address: bigint;
  bytes: number;
}

export class Ram extends Handle implements Disposable {
  readonly bytes: number;

  private constructor(pointer: Pointer, bytes: number) {
    super(pointer);
    this.bytes = bytes;
  }

  /** In anonymous shared memory. Throws NativeError: ENOMEM, EINVAL (not a multiple of 2 MiB). */
  static create(bytes: number): Ram {
    const out = new OutPointer();
    const op = `make a RAM file of ${bytes} bytes`;
    unwrap(op, shim().gy_ram_create(BigInt(bytes), out.cell));
    return new Ram(out.take(op), bytes);
  }

  /** In the gygesfs that is mounted at `folder`. Throws NativeError, as create(), and ENOENT, ENOTTY, EPROTO, ENOSPC. */
  static createIn(folder: string, bytes: number): Ram {
    const out = new OutPointer();
    const err = new OutText();
    const op = `make a RAM file of ${bytes} bytes in ${folder}`;
    const result = shim().gy_ram_create_in(cString(folder), BigInt(bytes), out.cell, err.bytes, err.bytes.length);
    unwrap(op, result, err.text);
    return new Ram(out.take(op), bytes);
  }

  /** What process `pid` has mapped as its guest's RAM. Throws NativeError: EACCES, EINVAL (sizes), those of open(2). */
  static attach(pid: number, pieces: readonly RamPiece[]): Ram {
    const bytes = pieces.reduce((sum, piece) => sum + piece.bytes, 0);
    const out = new OutPointer();
    const op = `use the guest RAM of process ${pid}`;
    unwrap(op, shim().gy_ram_attach(pid, BigInt(bytes), out.cell));
    const ram = new Ram(out.take(op), bytes);
    try {
      for (const piece of pieces) ram.#attachPiece(op, piece);
      return ram;
    } catch (error) {
      ram[Symbol.dispose]();
      throw error;
    }
  }

  #attachPiece(op: string, { path, fileOffset, address, bytes }: RamPiece): void {
    const err = new OutText();
    const result = shim().gy_ram_attach_piece(
      this.pointer,
      cString(path),
      BigInt(fileOffset),
      address,
      BigInt(bytes),
      err.bytes,
      err.bytes.length,
    );
    unwrap(op, result, err.text);
  }

  /** Throws NativeError where faults in the RAM of attach() cannot be caught: EPERM, EBUSY (a debugger has the process). */
  async tryFaults(): Promise<void> {
    const err = new OutText();
    unwrap("catch faults", await shim().gy_ram_try_faults(this.pointer, err.bytes, err.bytes.length), err.text);
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
