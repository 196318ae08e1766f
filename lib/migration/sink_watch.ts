/** Turns a pager's events into flags that anybody may wait for; none is lost between two looks. */
import type { PagerEvents } from "../../ffi/page_source.ts";
import type { DestinationPager } from "../pager/pager.ts";

const SLICE_MS = 1_000;

export class SinkWatch {
  readonly #pager: DestinationPager;
  #seen: PagerEvents = { roundDone: false, complete: false, linkLost: false, failed: false };
  #changed = Promise.withResolvers<void>();
  #looks = 0;

  constructor(pager: DestinationPager) {
    this.#pager = pager;
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
      if (this.#seen.linkLost || this.#seen.failed || this.#pager.gone) return false;
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
    while (this.#looks < until && !this.#pager.gone) {
      const { changed } = this;
      this.#pager.wake();
      await changed;
    }
    this.#seen = { ...this.#seen, linkLost: false, failed: false };
  }

  async #pump(): Promise<void> {
    while (!this.#pager.gone) {
      const events = await this.#pager.wait(SLICE_MS);
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
