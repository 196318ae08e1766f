/** What is held after each of many turns, which may not grow over them. */
import assert from "node:assert/strict";

export class Growth<K extends string> {
  readonly #bounds: Readonly<Record<K, number>>;
  readonly #held: Readonly<Record<K, number>>[] = [];

  /** By how much the most of the last quarter of turns may be above the most of the first. */
  constructor(bounds: Readonly<Record<K, number>>) {
    this.#bounds = bounds;
  }

  add(held: Readonly<Record<K, number>>): void {
    this.#held.push(held);
  }

  /** Throws for what grew; what is held, in words. */
  prove(): string {
    const quarter = Math.max(1, Math.floor(this.#held.length / 4));
    const [early, late] = [this.#held.slice(0, quarter), this.#held.slice(-quarter)];
    const words: string[] = [];
    for (const key of keysOf(this.#bounds)) {
      const [before, after] = [early, late].map((held) => Math.max(...held.map((one) => one[key])));
      assert.ok(before !== undefined && after !== undefined);
      assert.ok(after - before <= this.#bounds[key], `${key} grew from ${before} to ${after}`);
      words.push(`${key} ${round(before)} -> ${round(after)}`);
    }
    return `most held, first quarter -> last quarter: ${words.join(", ")}`;
  }
}

function keysOf<K extends string>(record: Readonly<Record<K, number>>): K[] {
  return Object.keys(record) as K[];
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
