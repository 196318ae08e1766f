/** struct gy_page_stats and struct gy_hist: counters that C threads write, read here without a call. */
import type { Pointer } from "./handle.ts";

const HIST_BUCKETS = 320;
const HIST_BYTES = (3 + HIST_BUCKETS) * 8;
const COUNTERS = 16;
const STATS_BYTES = COUNTERS * 8 + HIST_BYTES;

/** Log-linear histogram, see stats.h; `buckets[i]` counts values up to bucketMax(i). */
export interface Histogram {
  n: number;
  sum: number;
  max: number;
  buckets: number[];
}

/** Largest value that falls in bucket `index`. */
export function bucketMax(index: number): number {
  return index < 8 ? index : (9 + index % 8) * 2 ** (Math.floor(index / 8) - 1) - 1;
}

/** The value that `share` (0 to 1) of all entries do not exceed; at most an eighth too high. 0 when empty. */
export function percentile(histogram: Histogram, share: number): number {
  const total = histogram.buckets.reduce((sum, count) => sum + count, 0);
  const rank = Math.ceil(total * share);
  let seen = 0;
  for (const [index, count] of histogram.buckets.entries()) {
    seen += count;
    if (count > 0 && seen >= rank) return Math.min(bucketMax(index), histogram.max);
  }
  return histogram.max;
}

/** Reads a struct gy_hist that begins at `offset`. */
export function readHistogram(view: DataView, offset: number): Histogram {
  const u64 = (index: number) => Number(view.getBigUint64(offset + index * 8, true));
  return {
    n: u64(0),
    sum: u64(1),
    max: u64(2),
    buckets: Array.from({ length: HIST_BUCKETS }, (_, index) => u64(3 + index)),
  };
}

export { HIST_BYTES };

/** Counters of one side; see struct gy_page_stats for what each counts. */
export interface PageStats {
  totalPages: number;
  presentPages: number;
  missingPages: number;
  precopyPages: number;
  postcopyPages: number;
  demandFaults: number;
  prefetchedPages: number;
  zeroPages: number;
  duplicatePages: number;
  wireBytes: number;
  blocktimeNs: number;
  localZeroFaults: number;
  lateFaults: number;
  discardedPages: number;
  faultLatency: Histogram;
}

export const NO_PAGE_STATS: PageStats = {
  totalPages: 0,
  presentPages: 0,
  missingPages: 0,
  precopyPages: 0,
  postcopyPages: 0,
  demandFaults: 0,
  prefetchedPages: 0,
  zeroPages: 0,
  duplicatePages: 0,
  wireBytes: 0,
  blocktimeNs: 0,
  localZeroFaults: 0,
  lateFaults: 0,
  discardedPages: 0,
  faultLatency: { n: 0, sum: 0, max: 0, buckets: [] },
};

/** A window on a struct gy_page_stats; valid as long as its owner. */
export class PageStatsView {
  readonly #view: DataView;

  constructor(pointer: Pointer) {
    this.#view = new DataView(Deno.UnsafePointerView.getArrayBuffer(pointer, STATS_BYTES));
  }

  read(): PageStats {
    const u64 = (index: number) => Number(this.#view.getBigUint64(index * 8, true));
    return {
      totalPages: u64(0),
      presentPages: u64(1),
      missingPages: u64(2),
      precopyPages: u64(3),
      postcopyPages: u64(4),
      demandFaults: u64(5),
      prefetchedPages: u64(6),
      zeroPages: u64(7),
      duplicatePages: u64(8),
      wireBytes: u64(9),
      blocktimeNs: u64(10),
      localZeroFaults: u64(11),
      lateFaults: u64(12),
      discardedPages: u64(13),
      faultLatency: readHistogram(this.#view, COUNTERS * 8),
    };
  }
}
