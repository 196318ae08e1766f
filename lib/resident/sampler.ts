/** Makes samples of what a process is doing; rates are taken between two of them. */
import type { Sample } from "../events.ts";
import { toNs } from "../migration/stats.ts";

/** What the sampler asks of its process at each sample. */
export type Snapshot = Omit<Sample, "type" | "name" | "elapsed_ns" | "wire_bytes_per_second" | "eta_ns"> & {
  elapsedMs: number;
};

export class Sampler {
  readonly #name: string;
  #lastAt = 0;
  #lastBytes = 0;
  #rate = 0;

  constructor(name: string) {
    this.#name = name;
  }

  sample(snapshot: Snapshot): Sample {
    const { elapsedMs, ...rest } = snapshot;
    const now = performance.now();
    const seconds = (now - this.#lastAt) / 1000;
    if (this.#lastAt > 0 && seconds > 0) this.#rate = Math.max(0, (rest.wire_bytes - this.#lastBytes) / seconds);
    this.#lastAt = now;
    this.#lastBytes = rest.wire_bytes;
    const restBytes = rest.missing_pages * 4096;
    return {
      type: "sample",
      name: this.#name,
      ...rest,
      elapsed_ns: toNs(elapsedMs),
      wire_bytes_per_second: Math.round(this.#rate),
      eta_ns: rest.side === "idle" || this.#rate < 1 ? null : toNs(restBytes / this.#rate * 1000),
    };
  }
}
