/** Numbers that come again for the same seed (mulberry32). */
import assert from "node:assert/strict";

export class Dice {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 0 to below 1. */
  roll(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  chance(share: number): boolean {
    return this.roll() < share;
  }

  pick<T>(from: readonly T[]): T {
    const item = from[Math.floor(this.roll() * from.length)];
    assert.ok(item !== undefined);
    return item;
  }

  /** `from` in another order. */
  shuffled<T>(from: readonly T[]): T[] {
    return from.map((item) => ({ item, place: this.roll() })).sort((a, b) => a.place - b.place).map(({ item }) => item);
  }
}
