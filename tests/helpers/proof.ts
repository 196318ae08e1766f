/** What must hold after every migration, however it was made. */
import assert from "node:assert/strict";
import { type GuestEvent, type GygesEvent, type Summary, touchesOf } from "../../lib/events.ts";
import { type GuestHost, type Holder, type Moved, stopGuest } from "./pair.ts";

/** The account that both sides give of a migration, and what each of its figures must be. */
export function proveSummary(moved: Moved): void {
  const { summary, source, destination } = moved;
  assert.deepEqual(lastSummary(source.events), summary, "the source's process prints what migrate prints");
  assert.deepEqual(lastSummary(destination.process.events), summary, "both sides give the same account");
  assert.equal(summary.guest.location, "destination");
  assert.equal(summary.guest.corrupt, 0);
  assert.equal(summary.duplicate_pages, 0);
  provePages(summary);
  assert.ok(summary.downtime_ns > 0 && summary.downtime_ns < summary.total_ns);
  assert.equal(summary.fault_latency_ns.n, summary.demand_faults);
}

/** Every page came once after the switch, or in pre-copy, or is known to be zero. */
function provePages(summary: Summary): void {
  const pages = summary.ram_bytes / summary.page_bytes;
  const { precopy_pages, postcopy_pages, zero_pages, prefetched_pages, demand_faults } = summary;
  const once = postcopy_pages + zero_pages;
  if (summary.mode === "full") {
    assert.equal(precopy_pages, 0);
    assert.equal(summary.precopy_ns, 0);
    assert.equal(summary.precopy_rounds, 0);
    assert.equal(once, pages);
  } else {
    assert.ok(summary.precopy_rounds > 0 && summary.precopy_ns > 0);
    assert.ok(once <= pages && once + precopy_pages >= pages, `${once} + ${precopy_pages} pre-copied of ${pages}`);
  }
  if (summary.mode === "precopy") {
    assert.equal(postcopy_pages, 0);
    assert.equal(demand_faults, 0);
  }
  assert.ok(prefetched_pages !== null && prefetched_pages <= postcopy_pages);
  // What was not prefetched was waited for; a guest that gets no processor for long may find all there.
  const waitedFor = postcopy_pages - prefetched_pages;
  assert.ok(waitedFor <= demand_faults, `${waitedFor} pages came on demand, and ${demand_faults} were waited for`);
  assert.ok(summary.wire_bytes >= (precopy_pages + postcopy_pages) * summary.page_bytes);
}

/** The source's guest has not made a step since it was handed over. */
export function proveSourceStill(moved: Moved): void {
  const after = moved.migrate.events.filter((event) => event.type === "sample" && event.state === "serving");
  const counts = after.map((event) => event.type === "sample" ? event.guest?.verified_pages : null);
  assert.ok(new Set(counts).size <= 1, `the guest went on at the source: ${counts}`);
}

/** The guest works on where `holder` is, then its memory is proved whole, and nothing is left. */
export async function proveGuest(host: GuestHost, holder: Holder): Promise<GuestEvent> {
  const before = await host.guest(holder.name);
  await host.guestUntil(holder.name, (now) => touchesOf(now) > touchesOf(before) + 100);
  const { missing_pages } = await host.sample(holder.name);
  assert.equal(missing_pages, 0);
  const event = await stopGuest(host, holder);
  proveReport(event);
  return event;
}

export function proveReport({ guest, ram_check }: GuestEvent): void {
  assert.equal(guest.corrupt, 0);
  assert.equal(guest.clock_backsteps, 0);
  assert.equal(ram_check?.bad_pages, 0);
  assert.ok((ram_check?.filled_pages ?? 0) > 0);
  assert.equal(ram_check?.pages, guest.ram_bytes / 4096);
}

/** A process that has received a guest and moved it on has printed two. */
function lastSummary(events: readonly GygesEvent[]): Summary {
  const summary = events.findLast((event) => event.type === "summary");
  assert.ok(summary?.type === "summary", "it printed no summary");
  return summary;
}
