/** The two state machines of a migration. A transition that is not in its table is a bug, and throws. */
import type { DestinationState, SourceState } from "../events.ts";

type Table<S extends string> = Readonly<Record<S, readonly S[]>>;

export const SOURCE_TRANSITIONS: Table<SourceState> = {
  setup: ["precopy", "stopped", "failed"],
  // A QEMU that moves by itself stops its guest when all else is handed over.
  precopy: ["stopped", "handover", "failed"],
  stopped: ["handover", "failed"],
  handover: ["serving", "failed"],
  // From here the guest belongs to the destination. "failed", which means that the guest runs here, comes after it by one
  // way only: by the destination's word that it has not run the guest, and has ended what could have run it.
  serving: ["completed", "paused", "failed"],
  paused: ["serving", "completed", "failed"],
  completed: [],
  failed: [],
};

export const DESTINATION_TRANSITIONS: Table<DestinationState> = {
  listening: ["preparing", "failed"],
  preparing: ["precopy", "loading", "failed"],
  precopy: ["precopy", "loading", "failed"],
  loading: ["running", "failed"],
  running: ["completed", "paused"],
  paused: ["running", "completed"],
  completed: [],
  failed: [],
};

/** States from which the guest's place is the destination. */
export const COMMITTED_SOURCE_STATES: readonly SourceState[] = ["serving", "paused", "completed"];

export class StateMachine<S extends string> {
  readonly #table: Table<S>;
  readonly #onChange: (state: S, detail: string) => void;
  #state: S;

  constructor(table: Table<S>, initial: S, onChange: (state: S, detail: string) => void) {
    this.#table = table;
    this.#state = initial;
    this.#onChange = onChange;
  }

  get state(): S {
    return this.#state;
  }

  can(next: S): boolean {
    return this.#table[this.#state].includes(next);
  }

  /** Throws Error for a transition that the table does not have. */
  to(next: S, detail: string): void {
    if (!this.can(next)) throw new Error(`Illegal transition from "${this.#state}" to "${next}": ${detail}`);
    this.#state = next;
    this.#onChange(next, detail);
  }
}
