/** What another process needs that goes on with a guest whose process died at the destination. */
import type { Machine, Remains } from "../machine/machine.ts";
import type { Mode, Transport } from "../options.ts";
import type { DestinationPager } from "../pager/pager.ts";
import type { WireStats } from "../wire/messages.ts";

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

/** What is taken over from a process that died. */
export interface TakenOver {
  loaded: Loaded;
  machine: Machine;
  /** The guest has not run here: whether it is to only the source can say. */
  inDoubt: boolean;
  /** Null: it was disarmed already, every page is here. */
  pager: DestinationPager | null;
}
