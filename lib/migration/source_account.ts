/** What the source knows of a move's figures: its own, and the destination's as it last told them. */
import type { Summary } from "../events.ts";
import type { Machine } from "../machine/machine.ts";
import type { Mode } from "../options.ts";
import type { SourcePager } from "../pager/pager.ts";
import type { MessageOf, WireStats } from "../wire/messages.ts";
import { makeSummary, NO_STATS, toNs } from "./stats.ts";

/** Whose figures they are. */
interface Moving {
  mode: Mode;
  tls: boolean;
  machine: Machine;
  pager: SourcePager;
}

/** What another process goes on from, should this one die. */
export interface SourceFigures {
  settled: Pick<MessageOf<"accepted">, "pager" | "transport">;
  told: WireStats;
  presentPages: number;
  precopyMs: number;
  rounds: number;
  handoverMs: number;
}

export class SourceAccount implements SourceFigures {
  /** What the two ends have settled on. */
  settled: SourceFigures["settled"] = { pager: "user", transport: "tcp" };
  /** The destination's counters as it last told them. */
  told: WireStats = NO_STATS;
  presentPages = 0;
  precopyMs = 0;
  rounds = 0;
  /** From the stop of the guest until the destination was known to have loaded it. */
  handoverMs = 0;
  /** From `run` until `running` was heard, which is later than the guest's first step; null: a lost link came between. */
  startMs: number | null = null;
  readonly #moving: Moving;
  readonly #startedAt = performance.now();
  /** Pages that the destination lacked at the commit point, and those served until then. */
  #missingAtCommit = 0;
  #servedBefore = 0;

  constructor(moving: Moving) {
    this.#moving = moving;
  }

  get figures(): SourceFigures {
    const { settled, told, presentPages, precopyMs, rounds, handoverMs } = this;
    return { settled, told, presentPages, precopyMs, rounds, handoverMs };
  }

  /** Of a process that died. It has served pages that are not known here, so nothing is said of what is left. */
  goOnFrom(figures: SourceFigures): void {
    Object.assign(this, figures);
  }

  get elapsedMs(): number {
    return performance.now() - this.#startedAt;
  }

  get stats(): WireStats {
    return this.#moving.pager.account?.(this.told) ?? this.told;
  }

  /** Bytes that crossed for pages so far, as far as is known here. */
  get wireBytes(): number {
    const { pager } = this.#moving;
    return (pager.gone ? null : pager.stats()?.wireBytes) ?? this.stats.wire_bytes;
  }

  /** Pages that the destination does not have yet, as far as is known here before the commit point. */
  get missingPages(): number {
    return Math.max(0, this.presentPages - this.told.precopy_pages);
  }

  /** The destination has the machine, and lacks these pages. */
  loaded(missingPages: number): void {
    this.told = { ...this.told, missing_pages: missingPages };
    this.#missingAtCommit = missingPages;
    this.#servedBefore = this.#served ?? 0;
  }

  /** Not every page has left here, so the destination cannot have completed. */
  get incomplete(): boolean {
    if (this.#moving.machine.own) return this.stats.missing_pages > 0;
    const served = this.#served;
    return served !== null && served - this.#servedBefore < this.#missingAtCommit;
  }

  /** Pages that are known to have left here so far; null where only the destination can tell. */
  get #served(): number | null {
    const stats = this.#moving.pager.stats();
    return stats && stats.postcopyPages + stats.zeroPages;
  }

  /** Of a move whose destination has told how it ended. */
  summary(complete: Omit<MessageOf<"complete">, "type">): Summary {
    const { mode, tls, machine } = this.#moving;
    this.told = complete.stats;
    return makeSummary({
      mode,
      ...this.settled,
      tls,
      ramBytes: machine.ramBytes,
      pageBytes: machine.shape.page_bytes,
      totalMs: this.elapsedMs,
      // The destination's figure has the flight of `loaded`, which is counted here already, and this side's that of
      // `running`, which held up no guest: the shorter is nearer.
      downtimeMs: this.handoverMs + Math.min(complete.start_ns / 1e6, this.startMs ?? Infinity),
      precopyMs: this.precopyMs,
      precopyRounds: this.rounds,
      stats: this.stats,
      guest: complete.guest,
    });
  }

  /** Of one where nobody is left who would: every page is there, and faults are counted as last told. */
  summaryUntold(): Summary {
    const { machine } = this.#moving;
    const pageBytes = machine.shape.page_bytes;
    const came = this.told.precopy_pages + this.#missingAtCommit;
    return this.summary({
      stats: {
        ...this.told,
        present_pages: machine.ramBytes / pageBytes,
        missing_pages: 0,
        postcopy_pages: this.#missingAtCommit,
        wire_bytes: came * pageBytes,
      },
      start_ns: toNs(this.startMs ?? 0),
      guest: { corrupt: null, verified_pages: null, largest_stall_ns: null },
    });
  }
}
