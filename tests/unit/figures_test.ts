/** Figures: what is promised before a migration, and what is said of it after. */
import assert from "node:assert/strict";
import * as v from "valibot";
import { promiseOf } from "../../lib/migration/promise.ts";
import { makeSummary, NO_STATS, toNs, toWireStats } from "../../lib/migration/stats.ts";
import { summarySchema } from "../../lib/monitor/summary.ts";
import { MIGRATE_DEFAULTS } from "../../lib/options.ts";
import { statsSchema } from "../../lib/wire/messages.ts";

const GIGABIT = 125_000_000;
const RAM_BYTES = 2 ** 30;

function boundMs(options: Partial<typeof MIGRATE_DEFAULTS>): number | null {
  const { total_ns_at_most } = promiseOf({ ...MIGRATE_DEFAULTS, ...options }, RAM_BYTES);
  return total_ns_at_most === null ? null : total_ns_at_most / 1e6;
}

Deno.test("promiseOf() bounds full mode by all of RAM once, and hybrid by its limit more", () => {
  const onceMs = RAM_BYTES / GIGABIT * 1000;
  const full = boundMs({ mode: "full", bandwidthBytesPerSecond: GIGABIT });
  assert.ok(full !== null && full > onceMs && full < onceMs * 1.1 + 3_000);
  const hybrid = boundMs({ mode: "hybrid", bandwidthBytesPerSecond: GIGABIT, precopyTimeoutMs: 7_000 });
  assert.equal(hybrid, full + 7_000);
});

Deno.test("promiseOf() promises nothing where no bound exists, and says why", () => {
  for (
    const [options, why] of [
      [{ mode: "precopy", bandwidthBytesPerSecond: GIGABIT }, /faster than the link/],
      [{ mode: "full" }, /without --bandwidth/],
      [{ mode: "full", bandwidthBytesPerSecond: GIGABIT, prefetch: false }, /without prefetch/],
    ] as const
  ) {
    const promise = promiseOf({ ...MIGRATE_DEFAULTS, ...options }, RAM_BYTES);
    assert.equal(promise.total_ns_at_most, null);
    assert.match(promise.detail, why);
  }
});

Deno.test("toWireStats() names every counter once and passes the schema of the wire", () => {
  const counters = {
    totalPages: 1,
    presentPages: 2,
    missingPages: 3,
    precopyPages: 4,
    postcopyPages: 5,
    demandFaults: 6,
    prefetchedPages: 7,
    zeroPages: 8,
    duplicatePages: 9,
    wireBytes: 10,
    blocktimeNs: 11,
    localZeroFaults: 12,
    lateFaults: 13,
    discardedPages: 14,
  };
  const buckets = Array.from({ length: 320 }, () => 0);
  buckets[3] = 99;
  buckets[8] = 1;
  const stats = toWireStats({ ...counters, faultLatency: { n: 100, sum: 306, max: 8, buckets } });
  assert.deepEqual(v.parse(statsSchema, stats), {
    present_pages: 2,
    missing_pages: 3,
    precopy_pages: 4,
    postcopy_pages: 5,
    demand_faults: 6,
    prefetched_pages: 7,
    zero_pages: 8,
    duplicate_pages: 9,
    wire_bytes: 10,
    blocktime_ns: 11,
    fault_latency_ns: { n: 100, p50: 3, p90: 3, p99: 3, p999: 8, max: 8 },
  });
});

Deno.test("makeSummary() makes a summary by the schema, with whole nanoseconds", () => {
  const summary = makeSummary({
    mode: "hybrid",
    pager: "user",
    transport: "tcp",
    tls: false,
    ramBytes: RAM_BYTES,
    pageBytes: 4096,
    totalMs: 1234.567891234,
    downtimeMs: 2.5,
    precopyMs: 1000.25,
    precopyRounds: 3,
    stats: { ...NO_STATS, precopy_pages: 7 },
    guest: { corrupt: 0, verified_pages: 5, largest_stall_ns: 6 },
  });
  assert.deepEqual(v.parse(summarySchema, summary), summary);
  assert.deepEqual([summary.total_ns, summary.downtime_ns, summary.precopy_ns], [1234567891, 2500000, 1000250000]);
  assert.deepEqual([summary.transport, summary.precopy_pages, summary.guest.location], ["tcp", 7, "destination"]);
  assert.equal(toNs(0.0000004), 0);
});
