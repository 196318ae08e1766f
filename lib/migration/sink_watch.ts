/** Turns the sink's events into flags that anybody may wait for; none is lost between two looks. */
import type { PageSink } from "../../ffi/page_sink.ts";
import type { PagerEvents } from "../../ffi/page_source.ts";

const SLICE_MS = 1_000;

export class SinkWatch {
  readonly #sink: PageSink;
  #seen: PagerEvents = { roundDone: false, complete: false, linkLost: false, failed: false };
  #changed = Promise.withResolvers<void>();
  #looks = 0;

  constructor(sink: PageSink) {
    this.#sink = sink;
    void this.#pump();
  }

  get seen(): Readonly<PagerEvents> {
    return this.#seen;
  }

  /** Resolves at the next event. Take it before looking at `seen`. */
  get changed(): Promise<void> {
    return this.#changed.promise;
  }

  /** Waits for the end of a pre-copy round and forgets it. False: a page connection failed instead. */
  async roundEnded(): Promise<boolean> {
    for (;;) {
      const { changed } = this;
      if (this.#seen.linkLost || this.#seen.failed || this.#sink.gone) return false;
      if (this.#seen.roundDone) {
        this.#seen = { ...this.#seen, roundDone: false };
        return true;
      }
      await changed;
    }
  }

  /** After the connections were dropped: what they reported until then is history. */
  async forgetLosses(): Promise<void> {
    // The look under way, and what it finds, belong to the past; so does one that it may have found just now.
    const until = this.#looks + 2;
    while (this.#looks < until && !this.#sink.gone) {
      const { changed } = this;
      this.#sink.wake();
      await changed;
    }
    this.#seen = { ...this.#seen, linkLost: false, failed: false };
  }

  async #pump(): Promise<void> {
    while (!this.#sink.gone) {
      const events = await this.#sink.wait(SLICE_MS);
      this.#looks++;
      if (events) this.#merge(events);
      const { resolve } = this.#changed;
      this.#changed = Promise.withResolvers();
      resolve();
    }
  }

  #merge(events: PagerEvents): void {
    const { roundDone, complete, linkLost, failed } = this.#seen;
    this.#seen = {
      roundDone: roundDone || events.roundDone,
      complete: complete || events.complete,
      linkLost: linkLost || events.linkLost,
      failed: failed || events.failed,
    };
  }
}
