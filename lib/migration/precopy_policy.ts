/** When pre-copy ends. Pure: all that it knows is passed in. */

export interface PrecopyLimits {
  /** The promise: pre-copy takes no longer than this. */
  limitMs: number;
  /** Switch when what is dirty can be pulled within this. */
  thresholdMs: number;
}

export interface FinishedRound {
  /** Pages that the round pulled. */
  pulledPages: number;
  durationMs: number;
  /** Pages to pull next: left over from this round, or dirtied since it began. */
  dirtyPages: number;
}

export type PrecopyVerdict =
  | { next: "round" }
  | { next: "switch"; reason: "threshold" | "limit" | "no progress"; detail: string };

/** Rounds in a row that must fail to shrink the dirty set before pre-copy is called hopeless. */
const STALLED_ROUNDS = 3;
/** A round shrinks the dirty set when it leaves less than this share of it. */
const SHRINK = 0.9;
/** Pages per millisecond are measured over rounds at least this long; shorter ones say little. */
const MIN_ROUND_MS = 1;

/** What to do after the last of `rounds`; `elapsedMs` since pre-copy began. */
export function decide(rounds: readonly FinishedRound[], elapsedMs: number, limits: PrecopyLimits): PrecopyVerdict {
  const last = rounds.at(-1);
  if (!last) return { next: "round" };
  const pagesPerMs = Math.max(last.pulledPages, 1) / Math.max(last.durationMs, MIN_ROUND_MS);
  const restMs = last.dirtyPages / pagesPerMs;
  if (restMs <= limits.thresholdMs) {
    return {
      next: "switch",
      reason: "threshold",
      detail: `${last.dirtyPages} dirty pages take ${restMs.toFixed(1)} ms`,
    };
  }
  if (elapsedMs >= limits.limitMs) {
    return { next: "switch", reason: "limit", detail: `the limit of ${limits.limitMs} ms is up` };
  }
  if (isStalled(rounds)) {
    return { next: "switch", reason: "no progress", detail: `${last.dirtyPages} pages stay dirty round after round` };
  }
  return { next: "round" };
}

function isStalled(rounds: readonly FinishedRound[]): boolean {
  if (rounds.length <= STALLED_ROUNDS) return false;
  const recent = rounds.slice(-STALLED_ROUNDS - 1);
  return recent.slice(1).every((round, index) => round.dirtyPages >= SHRINK * (recent[index]?.dirtyPages ?? 0));
}
