/** What a guest says of itself once it has run. */
import { pause } from "../migration/timing.ts";
import type { Machine } from "./machine.ts";

/** A slow guest comes to its next page in 5 ms. */
const NEXT_TOUCH_MS = 50;

/**
 * The report of a guest that has just been started. It counts how long it stood still at its first step, so one is waited
 * for: where all pages were here when it started it may be asked before that. A guest that gives no account, or takes no
 * step in time, is not waited for.
 */
export async function reportOfRun(machine: Pick<Machine, "report">): Promise<ReturnType<Machine["report"]>> {
  const until = performance.now() + NEXT_TOUCH_MS;
  const first = machine.report();
  if (!first.running || first.verified_pages === null) return first;
  let report = first;
  while (report.verified_pages === first.verified_pages && performance.now() < until) {
    await pause(1);
    report = machine.report();
  }
  return report;
}
