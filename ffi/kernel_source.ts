/** The kernel pager's source side: a RAM file of gygesfs that a destination reads by RDMA. */
import { cString, Handle, OutPointer, OutText } from "./handle.ts";
import { shim } from "./library.ts";
import { NativeError, unwrap } from "./native_error.ts";
import type { PageSet } from "./page_set.ts";
import type { Ram } from "./ram.ts";

/** struct gyges_region */
const REGION_BYTES = 24;

export interface KernelListenOptions {
  /** Digits; null: the address of an RDMA device of this host, best on the way to `towards`. */
  host: string | null;
  /** 0: any. */
  port: number;
  towards: string;
  /** GYGES_TOKEN_BYTES */
  token: Uint8Array<ArrayBuffer>;
}

export class KernelSource extends Handle implements AsyncDisposable {
  /** Regions that the next table has room for; the library says when that is not enough. */
  #capacity = 64;

  /** `ram` is one of Ram.createIn() and must outlive this. */
  constructor(ram: Ram) {
    const out = new OutPointer();
    unwrap("serve guest RAM", shim().gy_kernel_source_create(ram.pointer, out.cell));
    super(out.take("serve guest RAM"));
  }

  /** Once. Throws NativeError ENODEV: no RDMA device has the address; EADDRINUSE, EPERM. */
  async listen(options: KernelListenOptions): Promise<{ host: string; port: number }> {
    const { host, port, towards, token } = options;
    const address = new OutText();
    const result = await shim().gy_kernel_source_listen(
      this.pointer,
      host === null ? null : cString(host),
      port,
      cString(towards),
      token,
      address.bytes,
      address.bytes.length,
    );
    const bound = unwrap(`await RDMA connections at ${host ?? "any address of this host"}`, result);
    return { host: address.text, port: bound };
  }

  /** The destination's kernel has said that it has every page. */
  async isRead(): Promise<boolean> {
    return unwrap("ask after the destination", await shim().gy_kernel_source_is_read(this.pointer)) === 1;
  }

  /** Adds the present pages to `set`; resolves with their number. */
  async scanPresent(set: PageSet): Promise<number> {
    const { words } = set;
    const result = await shim().gy_kernel_source_scan_present(this.pointer, words, BigInt(words.length));
    return unwrap("look for present pages", result);
  }

  async dirtyStart(): Promise<void> {
    unwrap("track what the guest writes", await shim().gy_kernel_source_dirty_start(this.pointer));
  }

  /** Adds what was written since the last call to `set`; resolves with the number of those pages. */
  async dirtyCollect(set: PageSet): Promise<number> {
    const { words } = set;
    const result = await shim().gy_kernel_source_dirty_collect(this.pointer, words, BigInt(words.length));
    return unwrap("collect what the guest has written", result);
  }

  async dirtyStop(): Promise<void> {
    unwrap("stop tracking what the guest writes", await shim().gy_kernel_source_dirty_stop(this.pointer));
  }

  /** Registers every present page; the table of them, or null when it is the last one. Throws NativeError ENOTCONN. */
  async regions(): Promise<Uint8Array<ArrayBuffer> | null> {
    const changed = new Uint32Array(1);
    for (;;) {
      const table = new Uint8Array(this.#capacity * REGION_BYTES);
      const room = BigInt(table.length);
      const bytes = unwrap(
        "register guest RAM for RDMA",
        await shim().gy_kernel_source_regions(this.pointer, table, room, changed),
      );
      if (bytes <= table.length) return changed[0] === 0 ? null : table.subarray(0, bytes);
      this.#capacity = bytes / REGION_BYTES;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const pointer = this.release();
    if (pointer) await shim().gy_kernel_source_destroy(pointer);
  }
}

/** Whether a failure to listen means that this host has no RDMA at the address. */
export function isNoRdma(error: unknown): boolean {
  return error instanceof NativeError && ["ENODEV", "EADDRNOTAVAIL", "EOPNOTSUPP"].includes(error.code);
}
