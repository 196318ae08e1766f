/**
 * Ctrl-C and SIGTERM: before the commit point they ask for an orderly end, after it they explain and do not kill. A
 * terminal that is closed (SIGHUP) ends no guest and no move: nobody has asked for it.
 */
import type { DestinationState, GygesEvent, SourceState } from "../lib/events.ts";
import { InterruptedError } from "./exit.ts";

const SIGNALS = ["SIGINT", "SIGTERM"] as const;

/** States in which the guest depends on two processes, so that ending one would hurt it, or might. */
const DEPENDENT: readonly (SourceState | DestinationState)[] = ["loading", "serving", "running", "paused"];

const EXPLANATION = {
  source: "The guest runs at the destination and still needs pages from here, so this goes on until it has them all.",
  destination: "The guest runs here and its memory is still arriving, so this goes on until all of it is here.",
  doubt: "The guest is loaded here and the source may just be saying that it is to run, so this goes on. Kill this " +
    "process only if the guest is seen running at the source.",
};

export interface InterruptsOptions {
  /** Told what a signal did, for people. */
  say: (text: string) => void;
  /** Where the operator can look, as a command. */
  lookWith: string;
  /** What it does when its terminal is closed. @default "end" */
  onHangup?: "end" | "go on";
}

/** Turns signals into an AbortSignal for as long as it is in scope. */
export class Interrupts implements Disposable {
  readonly #controller = new AbortController();
  readonly #options: InterruptsOptions;
  readonly #listener = () => this.interrupt();
  readonly #onHangup = () => this.hangUp();
  #dependent: keyof typeof EXPLANATION | null = null;

  constructor(options: InterruptsOptions) {
    this.#options = options;
    for (const name of SIGNALS) Deno.addSignalListener(name, this.#listener);
    Deno.addSignalListener("SIGHUP", this.#onHangup);
  }

  /** Aborts with InterruptedError on the first signal that is heeded. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Keeps track of whether the commit point has passed. */
  observe(event: GygesEvent): void {
    // A guest that is lost depends on nobody any more.
    if (event.type === "error" && event.guest_location === "lost") this.#dependent = null;
    if (event.type !== "state") return;
    if (event.state === "loading") this.#dependent = "doubt";
    else this.#dependent = DEPENDENT.includes(event.state) ? event.side : null;
  }

  /** What a signal does; apart for tests. */
  interrupt(): void {
    const { say, lookWith } = this.#options;
    if (this.#dependent) return say(`${EXPLANATION[this.#dependent]} Look with: ${lookWith}`);
    if (this.signal.aborted) return say("Still stopping; it ends by itself.");
    say("Stopping.");
    this.#controller.abort(new InterruptedError("Interrupted by the operator"));
  }

  /** What a terminal that is closed does; apart for tests. */
  hangUp(): void {
    const { say, lookWith, onHangup } = this.#options;
    if (onHangup === "go on") return say(`The terminal was closed; this goes on without it. Look with: ${lookWith}`);
    this.interrupt();
  }

  [Symbol.dispose](): void {
    for (const name of SIGNALS) Deno.removeSignalListener(name, this.#listener);
    Deno.removeSignalListener("SIGHUP", this.#onHangup);
  }
}
