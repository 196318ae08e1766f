/** How a migration ended that did not complete. */
import assert from "node:assert/strict";
import { type ErrorEvent, type GuestEvent, touchesOf } from "../../lib/events.ts";
import type { Ended } from "./gyges_process.ts";
import type { Host } from "./host.ts";
import { type Holder, stopGuest } from "./pair.ts";
import { proveReport } from "./proof.ts";

/** The last word of a process, which must be an error. */
export function errorOf({ events }: Ended): ErrorEvent {
  const error = events.at(-1);
  assert.ok(error?.type === "error", `the last word is no error: ${JSON.stringify(error)}`);
  return error;
}

/** The guest is at `holder`, in no migration, and works. */
export async function proveRuns(host: Host, holder: Holder): Promise<void> {
  await host.sampleUntil(holder.name, ({ state }) => state === "idle");
  const before = await host.guest(holder.name);
  assert.deepEqual([before.location, before.corrupt], ["here", 0]);
  await host.guestUntil(
    holder.name,
    (now) => now.running && touchesOf(now) > touchesOf(before) + 100,
  );
}

/** The guest works at `holder`, and all of its memory is whole; it is stopped for good. */
export async function proveStays(host: Host, holder: Holder): Promise<GuestEvent> {
  await proveRuns(host, holder);
  const event = await stopGuest(host, holder);
  proveReport(event);
  return event;
}

/** Stops the guest for a moment and has all of its RAM checked. */
export async function proveWhole(host: Host, holder: Holder): Promise<void> {
  const { events } = await host.start(["vm", "status", holder.name, "--verify"]).endedWith(0);
  const [event] = events;
  assert.ok(event?.type === "guest", "vm status printed no guest");
  proveReport(event);
}
