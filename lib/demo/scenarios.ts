/** The scenarios of the demonstration: the three of the original project, and pre-copy for comparison. */
import type { MicroVmOptions, MigrateOptions } from "../options.ts";
import { MIGRATE_DEFAULTS } from "../options.ts";
import { formatNs } from "../units.ts";

export const SCENARIOS = ["full", "hybrid-short", "hybrid-long", "precopy"] as const;
export type ScenarioName = (typeof SCENARIOS)[number];

export interface Scenario {
  name: ScenarioName;
  /** What happens, for people. */
  about: string;
  migrate: Pick<MigrateOptions, "mode" | "precopyTimeoutMs" | "downtimeLimitMs">;
}

export interface DemoOptions {
  ramBytes: number;
  /** 0 is unlimited. */
  bandwidthBytesPerSecond: number;
}

/** Without a limit of its own a link is reckoned as fast as loopback is here, for sizes that depend on it. */
const UNLIMITED_RECKONED = 1_000_000_000;
const PAGE_BYTES = 4096;
const WRITE_RATIO = 0.8;
/** Pages rewritten, as a share of what the link can carry: heavy, yet pre-copy still gains on it. */
const DIRTY_SHARE = 0.5;

function linkRate({ bandwidthBytesPerSecond }: DemoOptions): number {
  return bandwidthBytesPerSecond || UNLIMITED_RECKONED;
}

/** The guest that every scenario moves. */
export function demoGuest(options: DemoOptions): MicroVmOptions {
  const pagesPerSecond = linkRate(options) / PAGE_BYTES;
  return {
    ramBytes: options.ramBytes,
    vcpus: 1,
    workload: "uniform",
    workingSetBytes: Math.floor((options.ramBytes * 3) / 4 / PAGE_BYTES) * PAGE_BYTES,
    writeRatio: WRITE_RATIO,
    ratePagesPerSecond: Math.max(1000, Math.round((pagesPerSecond * DIRTY_SHARE) / WRITE_RATIO)),
    irqchip: false,
    // What the demonstration shows must not depend on what this host has besides.
    pager: "user",
  };
}

/** The scenarios for a guest of that size on such a link, in the order in which they run. */
export function demoScenarios(options: DemoOptions): Scenario[] {
  // Half of what the first round alone takes is surely too short; 10 s are plenty at the default sizes.
  const firstRoundMs = (options.ramBytes / linkRate(options)) * 1000;
  const shortMs = Math.max(50, Math.round(firstRoundMs / 2));
  const longMs = Math.max(MIGRATE_DEFAULTS.precopyTimeoutMs, Math.round(firstRoundMs * 6));
  const { downtimeLimitMs, precopyTimeoutMs } = MIGRATE_DEFAULTS;
  return [
    {
      name: "full",
      about: "post-copy at once: the guest stops, moves, and its memory follows",
      migrate: { mode: "full", precopyTimeoutMs, downtimeLimitMs },
    },
    {
      name: "hybrid-short",
      about: `pre-copy for ${formatNs(shortMs * 1e6)}, too short to finish, then post-copy`,
      migrate: { mode: "hybrid", precopyTimeoutMs: shortMs, downtimeLimitMs },
    },
    {
      name: "hybrid-long",
      about: `pre-copy until little is dirty (${formatNs(longMs * 1e6)} at most), then post-copy`,
      migrate: { mode: "hybrid", precopyTimeoutMs: longMs, downtimeLimitMs },
    },
    {
      name: "precopy",
      about: `the classic: pre-copy, then stop and copy the rest within ${downtimeLimitMs} ms`,
      migrate: { mode: "precopy", precopyTimeoutMs, downtimeLimitMs },
    },
  ];
}
