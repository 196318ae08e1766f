/** What another process needs that goes on with a move whose process died, at either end. */
import type { Machine, Remains } from "../machine/machine.ts";
import type { Mode, Transport } from "../options.ts";
import type { DestinationPager } from "../pager/pager.ts";
import type { WireStats } from "../wire/messages.ts";
import type { Ticket } from "../wire/ticket.ts";
import type { SourceFigures } from "./source_account.ts";

/** A destination as it is once its guest is loaded; all that another process needs to go on with it. */
export interface Loaded {
  machine: Remains;
  mode: Mode;
  transport: Transport;
  /** Of the whole link, 0 without limit. */
  bandwidthBytesPerSecond: number;
  prefetch: boolean;
  prefetchConnections: number;
  /** The region table that holds, see lib/wire/messages.ts; empty over TCP. */
  regions: Uint8Array<ArrayBuffer>;
  precopyMs: number;
  rounds: number;
  /** Unix time in milliseconds. */
  loadedAt: number;
  /** From then to the guest's first step, or until it was taken, stopped; null: neither, as far as is known. */
  startMs: number | null;
  /** As they were then. */
  stats: WireStats;
}

/** A source as it is just before it says `run`: QEMU has the guest's pages, and another process can go on serving them. */
export interface Left {
  ticket: Ticket;
  session: string;
  mode: Mode;
  /** Somebody had stopped the guest: it is not to run at the destination either. */
  stopped: boolean;
  /** Of the whole link, 0 without limit. */
  bandwidthBytesPerSecond: number;
  prefetchConnections: number;
  figures: SourceFigures;
}

/** What is taken over from a process that died at the destination. */
export interface TakenOver {
  loaded: Loaded;
  machine: Machine;
  /** The guest has not run here: whether it is to only the source can say. */
  inDoubt: boolean;
  /** Null: it was disarmed already, every page is here. */
  pager: DestinationPager | null;
}
