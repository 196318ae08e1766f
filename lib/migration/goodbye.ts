/** The destination's last word: every page is here, and the source may go. It is kept for as long as it takes to be heard. */
import type { Summary } from "../events.ts";
import type { MessageOf } from "../wire/messages.ts";
import type { Absence } from "./absence.ts";
import { type ControlLink, listen, type Resumption } from "./control_link.ts";
import { DEADLINE_MS, delay } from "./timing.ts";

export class Goodbye {
  readonly #absence: Absence;
  readonly #complete: MessageOf<"complete">;

  constructor(absence: Absence, complete: MessageOf<"complete">) {
    this.#absence = absence;
    this.#complete = complete;
  }

  /** The source's own account; null where it is away and has not come back in time. */
  async say(first: ControlLink | null): Promise<Summary | null> {
    return (first && await this.#sayOver(first)) ?? await this.#sayToNext(() => this.#absence.next());
  }

  /**
   * Whenever it comes back. A source that found nobody here would take a guest for lost which had all of its memory when
   * the link went. Resolves once it has heard.
   */
  async sayLater(): Promise<void> {
    await this.#sayToNext(() => this.#absence.whenever());
  }

  async #sayToNext(next: () => Promise<Resumption | null>): Promise<Summary | null> {
    for (let back = await next(); back; back = await next()) {
      const summary = await this.#sayOver(listen(back.peer));
      if (summary) return summary;
    }
    return null;
  }

  async #sayOver(link: ControlLink): Promise<Summary | null> {
    using late = delay(DEADLINE_MS.answer);
    await link.peer.send(this.#complete).catch(() => {});
    await Promise.race([link.settled, late.promise]);
    link.peer[Symbol.dispose]();
    return link.message?.type === "finished" ? link.message.summary : null;
  }
}
