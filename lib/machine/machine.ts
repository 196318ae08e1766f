/** What a migration needs of a virtual machine, whatever kind it is. */
import type { PageSet } from "../../ffi/page_set.ts";
import type { Ram } from "../../ffi/ram.ts";
import { EXIT, GygesError } from "../errors.ts";
import type { GuestReport, RamCheck } from "../events.ts";
import type { PagerKind } from "../options.ts";
import type { Backend } from "../qemu/guest_ram.ts";
import type { OwnMigration } from "../qemu/own_migration.ts";
import type { StatePiece } from "../qemu/state_stream.ts";
import type { WireMachine, WireQemu } from "../wire/messages.ts";

export type { StatePiece } from "../qemu/state_stream.ts";

/** What befell a guest. */
export type MachineEvent =
  | { type: "booted" }
  /** It found a page of its own damaged. */
  | { type: "corrupt" }
  /** It cannot go on. */
  | { type: "failed"; text: string }
  /** It ended by itself, in order. */
  | { type: "ended"; text: string };

/** A machine could not be run, has not run, and stands as before. */
export class NotRunError extends GygesError {
  override readonly name = "NotRunError";
  readonly exitCode = EXIT.hostUnable;
}

/** What a process needs to know of a machine that goes on without the one that made it. */
export interface Remains {
  shape: WireQemu;
  /** null: RAM is private to it, and its own migration moves it. */
  backends: Backend[] | null;
}

export interface Machine extends AsyncDisposable {
  /** What the destination must build. */
  readonly shape: WireMachine;
  readonly ramBytes: number;
  /** Throws where RAM is private to another process: with the native pager. */
  readonly ram: Ram;
  /** The pager that RAM was made for. */
  readonly pager: PagerKind;
  readonly running: boolean;
  /** It does not run, and not by our word: whoever has stopped it wants it so. @default false */
  readonly held?: boolean;
  /** The most that save() may give. */
  readonly maxStateBytes: number;
  /** How it moves its RAM and state by itself, with the native pager; there is no save() then. */
  readonly own?: OwnMigration;

  /** Resolves once the guest runs. Throws NotRunError where that is sure not to have begun, else it may have. */
  run(): Promise<void>;
  /** Instead of run(): the guest is here for good, and stays held. @default it cannot be */
  stayStopped?(): Promise<void>;
  /** Throws PreflightError where the guest is in a state that does not move. @default it never is */
  checkMovable?(): Promise<void>;
  /** What save() needs and can be done while the guest runs. */
  prepareSave(): Promise<void>;
  /** The guest stays: as it was before prepareSave(). */
  undoSave(): Promise<void>;
  /** From here on the guest is not to run here again, whatever becomes of this process. */
  giveAway(): void;
  /** When it resolves no vCPU runs and RAM is final. Throws NativeError ETIMEDOUT. */
  stop(timeoutMs: number): Promise<void>;
  /** CPU and device state of the stopped machine, as it comes. Whoever reads on no more ends it, and may run it again. */
  save(): AsyncIterable<StatePiece>;
  /** Reads all of `pieces`. Throws for a state that is damaged or foreign. */
  restore(pieces: AsyncIterable<Uint8Array<ArrayBuffer>>): Promise<void>;

  /** From here on every write is noted: by what, in words. */
  dirtyStart(): Promise<string>;
  /** Adds what was written since the last call. */
  dirtyCollect(set: PageSet): Promise<number>;
  dirtyStop(): Promise<void>;

  /**
   * Why pages of the running guest are discarded all the time, and others come in their place, in words; null: they
   * are not, unless somebody asks for it. @default null
   */
  whyDiscarding?(): Promise<string | null>;

  report(): Omit<GuestReport, "location">;
  /** Stall figures begin anew; only while no page is missing. */
  resetStall(): void;
  /** Checks every page of the stopped machine; null: only its guest knows what they should be. */
  checkRam(): Promise<RamCheck | null>;

  /** Of a machine that outlives this process. */
  readonly remains?: Remains;
  /** Resolves, with the reason, if the guest ends without this process, which goes on. */
  readonly ended?: Promise<string>;
  /** The next thing that befell the guest; null when nothing did in time. One caller at a time. */
  wait(timeoutMs: number): Promise<MachineEvent | null>;
  /** An orderly end of the guest. Throws UsageError where it does not comply. */
  shutDown(): Promise<void>;
  /** The guest has gone elsewhere for good: what is left of it here ends. */
  abandon(): Promise<void>;
}
