/** What happened over time in one run, and the work that the guest lost by it. Pure. */
import { type Sample, touchesOf } from "../events.ts";

/** A count at one moment; `ms` counts from the start of the migration and is negative before. Counts never fall. */
export interface Point {
  ms: number;
  count: number;
}

/** One run over time. */
export interface Series {
  /** Page touches of the guest, wherever it ran. */
  work: Point[];
  /** Bytes on the wire. */
  wire: Point[];
}

/** Puts the samples of both sides together. */
export class Recorder {
  readonly series: Series = { work: [], wire: [] };
  /** When the migration itself began, by the source's own clock; null until it has. */
  beganMs: number | null = null;
  #startMs = 0;

  /** From here on time is positive. */
  start(nowMs: number): void {
    this.#startMs = nowMs;
    for (const point of [...this.series.work, ...this.series.wire]) point.ms -= nowMs;
  }

  add(sample: Sample, role: "source" | "destination", nowMs: number): void {
    const ms = nowMs - this.#startMs;
    const { work, wire } = this.series;
    // The guest's counts travel with it, so the side with the larger ones is where it runs; the other's are old.
    if (sample.guest && touchesOf(sample.guest) >= lastCount(work)) {
      work.push({ ms, count: touchesOf(sample.guest) });
    }
    if (role === "destination") wire.push({ ms, count: Math.max(sample.wire_bytes, lastCount(wire)) });
    if (sample.side === "source") this.beganMs ??= ms - sample.elapsed_ns / 1e6;
  }
}

function lastCount(points: readonly Point[]): number {
  return points.at(-1)?.count ?? 0;
}

/** Count at `ms`, on the straight line between the points around it. */
function countAt(points: readonly Point[], ms: number): number {
  const after = points.findIndex((point) => point.ms >= ms);
  const right = points[after] ?? points.at(-1);
  const left = points[after - 1] ?? right;
  if (!left || !right) return 0;
  if (right.ms <= left.ms) return right.count;
  const part = Math.min(1, Math.max(0, (ms - left.ms) / (right.ms - left.ms)));
  return left.count + part * (right.count - left.count);
}

export interface Span {
  fromMs: number;
  toMs: number;
}

/** `points` as counts per second over `bins` equal parts of `span`. */
export function ratesOf(points: readonly Point[], { fromMs, toMs }: Span, bins: number): number[] {
  const width = (toMs - fromMs) / bins;
  return Array.from({ length: bins }, (_, i) => {
    const start = fromMs + i * width;
    return ((countAt(points, start + width) - countAt(points, start)) * 1000) / width;
  });
}

/** From the first point to the last, of both kinds. */
export function spanOf({ work, wire }: Series): Span {
  const times = [...work, ...wire].map((point) => point.ms);
  return { fromMs: Math.min(...times), toMs: Math.max(...times) };
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
