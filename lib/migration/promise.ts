/** The bound on total time that is promised before a migration starts. */
import type { PromiseEvent } from "../events.ts";
import type { MigrateOptions } from "../options.ts";
import { toNs } from "./stats.ts";

/** Headers, requests and TLS on top of the pages. */
const WIRE_OVERHEAD = 1.05;
/** Handshakes, handover and the last fault. */
const FIXED_MS = 2_000;

export function promiseOf(options: MigrateOptions, ramBytes: number): PromiseEvent {
  const { mode, bandwidthBytesPerSecond: rate, precopyTimeoutMs } = options;
  if (mode === "precopy") return none("in pre-copy mode the guest may write faster than the link");
  if (!options.prefetch) return none("without prefetch the guest decides when its pages move");
  if (rate === 0) return none("without --bandwidth the speed of the link is not known");
  const copyMs = ramBytes * WIRE_OVERHEAD / rate * 1000;
  const totalMs = copyMs + FIXED_MS + (mode === "hybrid" ? precopyTimeoutMs : 0);
  return {
    type: "promise",
    total_ns_at_most: toNs(totalMs),
    detail: mode === "full"
      ? `all of RAM once over the link: ${(totalMs / 1000).toFixed(1)} s at most`
      : `${precopyTimeoutMs / 1000} s of pre-copy, then at most all of RAM once: ${
        (totalMs / 1000).toFixed(1)
      } s at most`,
  };
}

function none(detail: string): PromiseEvent {
  return { type: "promise", total_ns_at_most: null, detail: `no bound on the total time: ${detail}` };
}
