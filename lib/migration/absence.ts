/** What the destination does while its source is away: reads on where it can, waits, takes it up again, or tells it the end. */
import { NativeError } from "../../ffi/native_error.ts";
import { EXIT } from "../errors.ts";
import type { DestinationState, GygesEvent } from "../events.ts";
import type { DestinationPager } from "../pager/pager.ts";
import type { Peer } from "../wire/peer.ts";
import { type Resumption, Returns } from "./control_link.ts";
import type { SinkWatch } from "./sink_watch.ts";
import type { StateMachine } from "./states.ts";
import { DEADLINE_MS, delay } from "./timing.ts";

const TO_REPLACE_IT =
  "If its gyges has died and QEMU has not, run there gyges attach, with the name that gyges vm list tells";

/** The migration as it is when asked. */
export interface Now {
  pages: () => DestinationPager;
  events: () => SinkWatch;
  /** The guest is loaded, and only the source can say whether it is to run. */
  inDoubt: () => boolean;
  missingPages: () => number;
  /** The source's QEMU has the pages whatever becomes of its gyges, and another can serve them. */
  sourceIsReplaceable: () => boolean;
}

export class Absence {
  readonly #states: StateMachine<DestinationState>;
  readonly #now: Now;
  readonly #onEvent: (event: GygesEvent) => void;
  /** Control connections of this session, after the first was lost. */
  readonly #returns = new Returns();
  /** It may take its place again: what was left of its link has been dropped. */
  #awaited = false;
  /** The guest was here and is no more; resolves once a source that has come back knows. */
  #lost = false;
  readonly #told = Promise.withResolvers<void>();

  constructor(states: StateMachine<DestinationState>, now: Now, onEvent: (event: GygesEvent) => void) {
    this.#states = states;
    this.#now = now;
    this.#onEvent = onEvent;
  }

  // ---- for the door ----

  /** The state that a source reads when it comes back. */
  get answer(): DestinationState {
    return this.#lost ? "failed" : this.#states.state;
  }

  /** A source that came back would be taken up. */
  get awaitsSource(): boolean {
    return this.#lost || this.#returns.awaited;
  }

  /** A source has come back, and has been told the state. Takes the connection over. */
  end(back: Resumption): void {
    if (!this.#lost) return this.#returns.add(back);
    back.peer[Symbol.dispose]();
    this.#told.resolve();
  }

  /** The source that is about to come back serves pages over TCP; without effect where that cannot be. */
  goOverTcp(): void {
    if (!this.#awaited) return;
    const pages = this.#now.pages();
    if (pages.transport === "tcp" || !pages.goOverTcp) return;
    pages.goOverTcp();
    this.#note("warning", "Pages come over TCP from here on");
  }

  // ---- for the migration ----

  /** The guest has ended: whoever comes back in time is told. */
  async tellLost(): Promise<void> {
    this.#lost = true;
    using late = delay(DEADLINE_MS.tellLoss);
    await Promise.race([this.#told.promise, late.promise]);
  }

  /** The source's next control connection; null if it has not come back in time. */
  async next(): Promise<Resumption | null> {
    using over = delay(DEADLINE_MS.reconnect);
    return await this.#returns.next(over.promise);
  }

  /** The same, and never null, however long it takes. */
  whenever(): Promise<Resumption | null> {
    return this.#returns.next();
  }

  /** Its control connection once the source is back; null: no page is missing any more. */
  async outlast(lost: Peer, error: unknown): Promise<Peer | null> {
    lost[Symbol.dispose]();
    const back = await this.#readOn(error);
    if (back || this.#now.events().seen.complete) return back;
    return await this.#pause(lost, error);
  }

  /** Drops what is left of a link. No page comes after this; that the last one had come is seen. */
  async letGo(lost: Peer): Promise<void> {
    lost[Symbol.dispose]();
    await this.#now.pages().dropLink();
    await this.#now.events().forgetLosses();
  }

  /** Waits, without end, for the source to come back. */
  async untilBack(error: unknown): Promise<Peer> {
    let reported = false;
    this.#awaited = true;
    for (;;) {
      using late = reported ? null : delay(DEADLINE_MS.reconnect);
      const back = await this.#returns.next(late?.promise);
      if (back && await this.#relink(back)) {
        this.#awaited = false;
        return back.peer;
      }
      if (!back && !reported) {
        this.#reportLoss(error);
        reported = true;
      }
    }
  }

  /**
   * No process of the source takes part in a READ: what has become of the one that speaks for it is no matter to pages
   * that come by RDMA. Null: they come no more, or none is missing. A device need not notice that the other host is dead.
   */
  async #readOn(error: unknown): Promise<Peer | null> {
    const [pages, events] = [this.#now.pages(), this.#now.events()];
    if (pages.transport !== "rdma" || this.#pagesOver) return null;
    this.#note("warning", `The source says nothing any more (${wordsOf(error)}); its pages go on coming by RDMA`);
    for (let last = { missing: -1, at: 0 }; !this.#pagesOver;) {
      const now = performance.now();
      const missing = this.#now.missingPages();
      if (missing !== last.missing) last = { missing, at: now };
      else if (now - last.at > DEADLINE_MS.stall) return null;
      const back = await this.#returns.next(events.changed);
      if (!back) continue;
      if (back.overTcp) {
        // It comes again, and finds the link dropped.
        back.peer[Symbol.dispose]();
        return null;
      }
      this.#note("info", "The source is back");
      return back.peer;
    }
    return null;
  }

  /** The last page is here, or none comes until the source connects anew. */
  get #pagesOver(): boolean {
    const { complete, linkLost, failed } = this.#now.events().seen;
    return complete || linkLost || failed;
  }

  /** The guest waits intact, on the pages that are missing, until the source is back. Null: none is missing. */
  async #pause(lost: Peer, error: unknown): Promise<Peer | null> {
    this.#states.to("paused", `the link to the source is lost: ${wordsOf(error)}`);
    await this.letGo(lost);
    // A kernel pager drops its link with the last page, and a source that hears of that first takes it for a loss.
    const peer = this.#now.events().seen.complete ? null : await this.untilBack(error);
    if (peer) this.#states.to("running", "the link is back");
    return peer;
  }

  /** Over RDMA this side connects again too; a source that cannot be reached that way will try anew. */
  async #relink({ peer, rdma, overTcp }: Resumption): Promise<boolean> {
    // One that comes back without an address has only a word to say.
    if (!rdma && !overTcp) return true;
    const pages = this.#now.pages();
    if (overTcp) {
      if (pages.transport === "tcp") return true;
      this.#note("warning", "The source is back with pages over TCP, which do not come by that here");
      peer[Symbol.dispose]();
      return false;
    }
    try {
      await pages.connect(rdma);
      return true;
    } catch (error) {
      if (!(error instanceof NativeError)) throw error;
      this.#note("warning", `The source is back, but not by RDMA: ${error.message}`);
      peer[Symbol.dispose]();
      await pages.dropLink();
      return false;
    }
  }

  #reportLoss(error: unknown): void {
    const [inDoubt, missingPages] = [this.#now.inDoubt(), this.#now.missingPages()];
    const advice = this.#now.sourceIsReplaceable() ? `. ${TO_REPLACE_IT}` : "";
    const away = `The source has not come back for ${DEADLINE_MS.reconnect / 1000} s (${wordsOf(error)})`;
    this.#onEvent({
      type: "error",
      code: EXIT.linkLost,
      name: "MigrationError",
      message: inDoubt
        ? `${away}. The guest is loaded here and has not run; whether it is to run only the source can say: keep both alive`
        : `${away}. The guest is intact and waits here for ${missingPages} pages that only the source holds: ` +
          `keep the source alive${advice}`,
      guest_location: inDoubt ? "unknown" : "destination-incomplete",
    });
  }

  #note(level: "info" | "warning", detail: string): void {
    this.#onEvent({ type: "note", level, detail });
  }
}

/** What went wrong with a link, for whoever waits for it. */
export function wordsOf(error: unknown): string {
  if (error instanceof NativeError && error.code === "ECONNABORTED") return "the source closed the connection";
  return error instanceof Error ? error.message : String(error);
}
