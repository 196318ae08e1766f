/** What a migration needs of a virtual machine, whatever kind it is. */
import type { PageSet } from "../../ffi/page_set.ts";
import type { Ram } from "../../ffi/ram.ts";
import type { GuestReport, RamCheck } from "../events.ts";
import type { PagerKind } from "../options.ts";
import type { WireMachine } from "../wire/messages.ts";

export interface Machine extends AsyncDisposable {
  /** What the destination must build. */
  readonly shape: WireMachine;
  readonly ram: Ram;
  /** The pager that RAM was made for. */
  readonly pager: PagerKind;
  readonly running: boolean;

  run(): void;
  /** When it resolves no vCPU runs and RAM is final. Throws NativeError ETIMEDOUT. */
  stop(timeoutMs: number): Promise<void>;
  /** CPU and device state of the stopped machine. */
  save(): Uint8Array<ArrayBuffer>;
  /** Throws NativeError for a state that is damaged or foreign. */
  restore(state: Uint8Array<ArrayBuffer>): Promise<void>;

  dirtyStart(): Promise<void>;
  /** Adds what was written since the last call. */
  dirtyCollect(set: PageSet): Promise<number>;
  dirtyStop(): Promise<void>;

  report(): Omit<GuestReport, "location">;
  /** Stall figures begin anew; only while no page is missing. */
  resetStall(): void;
  /** Checks every page of the stopped machine. */
  checkRam(): Promise<RamCheck>;
}
