/** What happened over time in one run, and the work that the guest lost by it. Pure. */
import type { Sample } from "../events.ts";

/** Counts at one moment; `ms` counts from the start of the migration and is negative before. */
export interface Point {
  ms: number;
  wireBytes: number;
  /** Page touches of the guest, wherever it runs. */
  touches: number;
}

/** Rates between two moments. */
export interface Rate {
  fromMs: number;
  toMs: number;
  wireBytesPerSecond: number;
  touchesPerSecond: number;
}

/** Puts samples of both sides together. The guest's counts travel with it and never fall, so the larger one is true. */
export class Recorder {
  readonly points: Point[] = [];
  /** When the migration itself began, by the source's own clock; null until it has. */
  beganMs: number | null = null;
  #startMs = 0;
  #wireBytes = 0;
  #touches = 0;

  /** From here on time is positive. */
  start(nowMs: number): void {
    this.#startMs = nowMs;
    for (const point of this.points) point.ms -= nowMs;
  }

  add(sample: Sample, nowMs: number): void {
    this.#wireBytes = Math.max(this.#wireBytes, sample.side === "idle" ? 0 : sample.wire_bytes);
    this.#touches = Math.max(this.#touches, sample.guest?.verified_pages ?? 0);
    if (sample.side === "source" && this.beganMs === null) {
      this.beganMs = nowMs - this.#startMs - sample.elapsed_ns / 1e6;
    }
    this.points.push({ ms: nowMs - this.#startMs, wireBytes: this.#wireBytes, touches: this.#touches });
  }
}

/** Count `key` at `ms`, on the straight line between the points around it. */
function valueAt(points: readonly Point[], ms: number, key: "wireBytes" | "touches"): number {
  const after = points.findIndex((point) => point.ms >= ms);
  const right = points[after] ?? points.at(-1);
  const left = points[after - 1] ?? right;
  if (!left || !right) return 0;
  if (right.ms <= left.ms) return right[key];
  const part = Math.min(1, Math.max(0, (ms - left.ms) / (right.ms - left.ms)));
  return left[key] + part * (right[key] - left[key]);
}

/** `points` as rates over `bins` equal spans from `fromMs` to `toMs`. */
export function ratesOf(
  points: readonly Point[],
  { fromMs, toMs, bins }: { fromMs: number; toMs: number; bins: number },
): Rate[] {
  const width = (toMs - fromMs) / bins;
  return Array.from({ length: bins }, (_, i) => {
    const start = fromMs + i * width;
    const end = start + width;
    const perSecond = (key: "wireBytes" | "touches") =>
      ((valueAt(points, end, key) - valueAt(points, start, key)) * 1000) / width;
    return {
      fromMs: start,
      toMs: end,
      wireBytesPerSecond: perSecond("wireBytes"),
      touchesPerSecond: perSecond("touches"),
    };
  });
}

/** Touches at a known moment. */
export interface Reading {
  ms: number;
  touches: number;
}

export interface LostWork {
  /** Touches per second before the move. */
  undisturbedPerSecond: number;
  seconds: number;
  /** Of what the guest would have done meanwhile. */
  percent: number;
}

/**
 * Work that the guest would have done from `start` to `end` at the rate it had from `before` to `start`, less what it
 * did. The share is of what it would have done in the `totalMs` that the migration itself took.
 */
export function lostWork(before: Reading, start: Reading, end: Reading, totalMs: number): LostWork {
  const perMs = (start.touches - before.touches) / (start.ms - before.ms);
  if (!(perMs > 0) || !(totalMs > 0)) return { undisturbedPerSecond: 0, seconds: 0, percent: 0 };
  const lostMs = end.ms - start.ms - (end.touches - start.touches) / perMs;
  return { undisturbedPerSecond: perMs * 1000, seconds: lostMs / 1000, percent: (100 * lostMs) / totalMs };
}
