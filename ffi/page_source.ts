/** Serves the pages of a RAM file; its threads live in the library. */
import type { Channel } from "./channel.ts";
import { cString, Handle, OutPointer, OutText } from "./handle.ts";
import { shim } from "./library.ts";
import { ERRNO, NativeError, unwrap } from "./native_error.ts";
import type { PageSet } from "./page_set.ts";
import { type PageStats, PageStatsView } from "./page_stats.ts";
import type { Ram } from "./ram.ts";

export const ROLE = { demand: 1, prefetch: 2 } as const;
export type PageRole = keyof typeof ROLE;

/** What page threads report; several may come at once. */
export interface PagerEvents {
  roundDone: boolean;
  complete: boolean;
  linkLost: boolean;
  failed: boolean;
}

/** Result of a gy_*_wait(): a mask of GY_EVENT_*, or null when nothing happened in time. */
export function pagerEvents(op: string, result: number): PagerEvents | null {
  if (result === -ERRNO.ETIMEDOUT) return null;
  const mask = unwrap(op, result);
  return {
    roundDone: (mask & 1) !== 0,
    complete: (mask & 2) !== 0,
    linkLost: (mask & 4) !== 0,
    failed: (mask & 8) !== 0,
  };
}

export interface RdmaListenOptions {
  /** Digits; null: the address of an RDMA device of this host, best on the way to `towards`. */
  host: string | null;
  /** 0: any. */
  port: number;
  towards: string;
  /** GYGES_TOKEN_BYTES */
  token: Uint8Array<ArrayBuffer>;
}

/** struct gyges_region */
const REGION_BYTES = 24;

/** Why RDMA from user space cannot be used on this host; null: it can. */
export function noUserRdma(): NativeError | null {
  const err = new OutText();
  const result = shim().gy_rdma_usable(err.bytes, err.bytes.length);
  return result < 0 ? new NativeError("use RDMA", -result, err.text) : null;
}

export class PageSource extends Handle implements AsyncDisposable {
  readonly #stats: PageStatsView;
  #waiting: Promise<number> = Promise.resolve(0);
  #looking: Promise<number> = Promise.resolve(0);

  /** `bytesPerSecond` over all connections, 0 without limit. `ram` must outlive this. */
  constructor(ram: Ram, bytesPerSecond: number) {
    const out = new OutPointer();
    unwrap("serve pages", shim().gy_source_create(ram.pointer, BigInt(Math.round(bytesPerSecond)), out.cell));
    super(out.take("serve pages"));
    const stats = shim().gy_source_stats(this.pointer);
    if (!stats) throw new Error("gy_source_stats() gave no memory");
    this.#stats = new PageStatsView(stats);
  }

  /** Takes the channel over, also when it throws. */
  add(channel: Channel, role: PageRole): void {
    unwrap("serve a page connection", shim().gy_source_add(this.pointer, channel.give(), ROLE[role]));
  }

  /** Adds the allocated pages to `set`. First with the guest running, then, quickly, with it stopped. */
  async scanPresent(set: PageSet): Promise<number> {
    const result = await shim().gy_source_scan_present(this.pointer, set.words, BigInt(set.words.length));
    return unwrap("look for present pages", result);
  }

  /**
   * Awaits destinations by RDMA; once. Throws NativeError: ENOENT (no libraries), ENODEV (no RDMA device there), ENOMEM
   * (less memory may be locked than RAM has), EADDRINUSE.
   */
  async listen({ host, port, towards, token }: RdmaListenOptions): Promise<{ host: string; port: number }> {
    const address = new OutText();
    const err = new OutText();
    const names = { host: host === null ? null : cString(host), towards: cString(towards) };
    const result = await shim().gy_source_listen(
      this.pointer,
      names.host,
      port,
      names.towards,
      token,
      address.bytes,
      address.bytes.length,
      err.bytes,
      err.bytes.length,
    );
    const bound = unwrap(`await RDMA connections at ${host ?? "any address of this host"}`, result, err.text);
    return { host: address.text, port: bound };
  }

  /**
   * The table of where RAM can be read, see gy_source_region(): the first call allocates all of it. Throws NativeError
   * ENOMEM with the locked-memory limit.
   */
  async region(): Promise<Uint8Array<ArrayBuffer>> {
    const region = new Uint8Array(REGION_BYTES);
    const err = new OutText();
    const result = await shim().gy_source_region(this.pointer, region, err.bytes, err.bytes.length);
    unwrap("register guest RAM for RDMA", result, err.text);
    return region;
  }

  /** A page that `region()` has registered is not the guest's any more. With the guest stopped the answer lasts. */
  async broken(): Promise<boolean> {
    const looking = shim().gy_source_broken(this.pointer);
    this.#looking = looking;
    return unwrap("look for pages of guest RAM that were given back", await looking) > 0;
  }

  async dropChannels(): Promise<void> {
    await shim().gy_source_drop_channels(this.pointer);
  }

  /** What happened since the last call; null when nothing did in time. One caller at a time. */
  async wait(timeoutMs: number): Promise<PagerEvents | null> {
    if (this.gone) return null;
    const waiting = shim().gy_source_wait(this.pointer, timeoutMs);
    this.#waiting = waiting;
    return pagerEvents("wait for page connections", await waiting);
  }

  stats(): PageStats {
    return this.#stats.read();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const pointer = this.release();
    if (!pointer) return;
    // What is under way still uses the memory.
    shim().gy_source_wake(pointer);
    await Promise.all([this.#waiting, this.#looking]);
    await shim().gy_source_destroy(pointer);
  }
}
