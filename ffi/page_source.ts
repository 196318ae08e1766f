/** Serves the pages of a RAM file; its threads live in the library. */
import type { Channel } from "./channel.ts";
import { Handle, OutPointer } from "./handle.ts";
import { shim } from "./library.ts";
import { ERRNO, unwrap } from "./native_error.ts";
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

export class PageSource extends Handle implements AsyncDisposable {
  readonly #stats: PageStatsView;
  #waiting: Promise<number> = Promise.resolve(0);

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
    // A wait under way still uses the memory.
    shim().gy_source_wake(pointer);
    await this.#waiting;
    await shim().gy_source_destroy(pointer);
  }
}
