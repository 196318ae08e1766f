/** What every native handle needs. */
import { NativeError } from "./native_error.ts";

export type Pointer = Deno.PointerObject;

/** Receives a handle from a `struct gy_x **out` parameter. Keep it in a local until the call has settled. */
export class OutPointer {
  readonly cell = new BigUint64Array(1);

  take(op: string): Pointer {
    const pointer = Deno.UnsafePointer.create(this.cell[0] ?? 0n);
    if (pointer === null) throw new NativeError(op, 14, "the library answered with no handle");
    return pointer;
  }
}

/** Receives a NUL-terminated text from a `char *err` parameter. */
export class OutText {
  readonly bytes = new Uint8Array(512);

  get text(): string {
    const end = this.bytes.indexOf(0);
    return new TextDecoder().decode(this.bytes.subarray(0, end < 0 ? this.bytes.length : end));
  }
}

/** A NUL-terminated string for C. */
export function cString(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(`${text}\0`);
}

/** Owns a pointer until it is disposed of or given away. */
export abstract class Handle {
  #pointer: Pointer | null;

  constructor(pointer: Pointer) {
    this.#pointer = pointer;
  }

  /** For a call into the library. Throws once the handle is gone. */
  get pointer(): Pointer {
    if (this.#pointer === null) throw new Error(`${this.constructor.name} was used after it was disposed of`);
    return this.#pointer;
  }

  get gone(): boolean {
    return this.#pointer === null;
  }

  /** Hands the pointer to a new owner; null when it is gone already. */
  protected release(): Pointer | null {
    const pointer = this.#pointer;
    this.#pointer = null;
    return pointer;
  }
}
