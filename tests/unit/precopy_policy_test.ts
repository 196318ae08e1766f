import assert from "node:assert/strict";
import { decide, type FinishedRound, type PrecopyLimits } from "../../lib/migration/precopy_policy.ts";

const LIMITS: PrecopyLimits = { limitMs: 1_000, thresholdMs: 50 };

/** A round at 100 pages a millisecond. */
function round(pulledPages: number, dirtyPages: number): FinishedRound {
  return { pulledPages, durationMs: pulledPages / 100, dirtyPages };
}

function reason(rounds: readonly FinishedRound[], elapsedMs: number, limits = LIMITS): string {
  const verdict = decide(rounds, elapsedMs, limits);
  return verdict.next === "round" ? "round" : verdict.reason;
}

Deno.test("decide() asks for a first round", () => {
  assert.equal(reason([], 0), "round");
  assert.equal(reason([], 5_000), "round");
});

Deno.test("decide() switches when what is dirty can be pulled within the threshold", () => {
  assert.equal(reason([round(10_000, 5_000)], 100), "threshold");
  assert.equal(reason([round(10_000, 5_001)], 100), "round");
  assert.equal(reason([round(10_000, 0)], 100), "threshold");
});

Deno.test("decide() prefers the threshold to the limit as its reason, and holds the limit", () => {
  assert.equal(reason([round(10_000, 5_000)], 1_000), "threshold");
  assert.equal(reason([round(10_000, 9_000)], 999), "round");
  assert.equal(reason([round(10_000, 9_000)], 1_000), "limit");
});

Deno.test("decide() gives up after three rounds in a row that do not shrink the dirty set, not before", () => {
  const stuck = [10_000, 9_500, 9_400, 9_300].map((dirty) => round(10_000, dirty));
  assert.equal(reason(stuck.slice(0, 3), 300), "round");
  assert.equal(reason(stuck, 400), "no progress");
  const once = [10_000, 9_500, 9_400, 8_000].map((dirty) => round(10_000, dirty));
  assert.equal(reason(once, 400), "round");
});

Deno.test("decide() does not divide by a round that pulled nothing or took no time", () => {
  assert.equal(reason([{ pulledPages: 0, durationMs: 0, dirtyPages: 10_000 }], 10), "round");
  assert.equal(reason([{ pulledPages: 0, durationMs: 0, dirtyPages: 0 }], 10), "threshold");
});

/** Pre-copy of a guest that writes at a share of the link's speed, over a working set; returns what ended it. */
function simulate(writeShare: number, workingSetPages: number, limits: PrecopyLimits) {
  const pagesPerMs = 30;
  const rounds: FinishedRound[] = [];
  let pages = 50_000;
  let elapsedMs = 0;
  for (;;) {
    const durationMs = Math.min(pages / pagesPerMs, limits.limitMs - elapsedMs);
    const pulledPages = Math.round(durationMs * pagesPerMs);
    elapsedMs += durationMs;
    // Writes fall on a working set: the more there are the more hit pages that are dirty already.
    const writes = durationMs * pagesPerMs * writeShare;
    const dirtied = workingSetPages * (1 - Math.exp(-writes / workingSetPages));
    rounds.push({ pulledPages, durationMs, dirtyPages: Math.round(pages - pulledPages + dirtied) });
    const verdict = decide(rounds, elapsedMs, limits);
    if (verdict.next === "switch") return { ...verdict, rounds: rounds.length, elapsedMs };
    pages = rounds.at(-1)?.dirtyPages ?? 0;
    assert.ok(rounds.length < 1_000, "pre-copy does not end");
  }
}

Deno.test("decide() ends the pre-copy of a guest that writes slower than the link at the threshold", () => {
  const end = simulate(0.3, 40_000, { limitMs: 60_000, thresholdMs: 50 });
  assert.equal(end.reason, "threshold");
  assert.ok(end.rounds <= 6, `${end.rounds} rounds`);
});

Deno.test("decide() ends the pre-copy of a guest that writes faster than the link long before its limit", () => {
  const end = simulate(5, 40_000, { limitMs: 600_000, thresholdMs: 50 });
  assert.equal(end.reason, "no progress");
  assert.ok(end.rounds <= 6, `${end.rounds} rounds`);
});

Deno.test("decide() never lets pre-copy pass its limit", () => {
  for (const limitMs of [100, 1_000, 2_500]) {
    const end = simulate(0.95, 40_000, { limitMs, thresholdMs: 1 });
    assert.ok(end.elapsedMs <= limitMs, `${end.elapsedMs} ms of ${limitMs} ms`);
  }
});
