/** From the shim's counters to what crosses the wire and what operators read. */
import { type PageStats, percentile } from "../../ffi/page_stats.ts";
import type { GuestReport, LatencyNs, Summary } from "../events.ts";
import type { Mode, PagerKind, Transport } from "../options.ts";
import type { WireStats } from "../wire/messages.ts";

export const NO_LATENCY: LatencyNs = { n: 0, p50: 0, p90: 0, p99: 0, p999: 0, max: 0 };

export const NO_STATS: WireStats = {
  present_pages: 0,
  missing_pages: 0,
  precopy_pages: 0,
  postcopy_pages: 0,
  demand_faults: 0,
  prefetched_pages: 0,
  zero_pages: 0,
  duplicate_pages: 0,
  wire_bytes: 0,
  blocktime_ns: 0,
  fault_latency_ns: NO_LATENCY,
};

export function toWireStats(stats: PageStats): WireStats {
  const { faultLatency } = stats;
  return {
    present_pages: stats.presentPages,
    missing_pages: stats.missingPages,
    precopy_pages: stats.precopyPages,
    postcopy_pages: stats.postcopyPages,
    demand_faults: stats.demandFaults,
    prefetched_pages: stats.prefetchedPages,
    zero_pages: stats.zeroPages,
    duplicate_pages: stats.duplicatePages,
    wire_bytes: stats.wireBytes,
    blocktime_ns: stats.blocktimeNs,
    fault_latency_ns: {
      n: faultLatency.n,
      p50: percentile(faultLatency, 0.5),
      p90: percentile(faultLatency, 0.9),
      p99: percentile(faultLatency, 0.99),
      p999: percentile(faultLatency, 0.999),
      max: faultLatency.max,
    },
  };
}

/** In pre-copy; those that are zero at the source count too. */
export function pulledPages(stats: WireStats): number {
  return stats.precopy_pages + stats.zero_pages;
}

export interface SummaryParts {
  mode: Mode;
  /** The destination's: it is where faults are caught. */
  pager: PagerKind;
  transport: Transport;
  tls: boolean;
  ramBytes: number;
  pageBytes: number;
  totalMs: number;
  downtimeMs: number;
  precopyMs: number;
  precopyRounds: number;
  stats: WireStats;
  guest: Pick<GuestReport, "corrupt" | "verified_pages" | "largest_stall_ns">;
}

/** Nanoseconds, whole, from performance.now()'s milliseconds. */
export function toNs(ms: number): number {
  return Math.round(ms * 1e6);
}

export function makeSummary(parts: SummaryParts): Summary {
  const { stats } = parts;
  return {
    type: "summary",
    mode: parts.mode,
    pager: parts.pager,
    transport: parts.transport === "tcp" && parts.tls ? "tls" : parts.transport,
    ram_bytes: parts.ramBytes,
    page_bytes: parts.pageBytes,
    total_ns: toNs(parts.totalMs),
    downtime_ns: toNs(parts.downtimeMs),
    precopy_ns: toNs(parts.precopyMs),
    precopy_rounds: parts.precopyRounds,
    precopy_pages: stats.precopy_pages,
    postcopy_pages: stats.postcopy_pages,
    demand_faults: stats.demand_faults,
    // QEMU does not tell its own.
    prefetched_pages: parts.pager === "native" ? null : stats.prefetched_pages,
    zero_pages: stats.zero_pages,
    duplicate_pages: parts.pager === "native" ? null : stats.duplicate_pages,
    wire_bytes: stats.wire_bytes,
    blocktime_ns: stats.blocktime_ns,
    fault_latency_ns: stats.fault_latency_ns,
    guest: {
      location: "destination",
      corrupt: parts.guest.corrupt,
      verified_pages: parts.guest.verified_pages,
      largest_stall_ns: parts.guest.largest_stall_ns,
    },
  };
}
