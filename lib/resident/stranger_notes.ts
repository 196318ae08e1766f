/**
 * Tells the operator of connections that were not let in: the first at once, the rest by number, so that a flood of
 * them is no flood of notes.
 */
import type { GygesEvent } from "../events.ts";

const EVERY_MS = 5_000;

export interface StrangerNotesOptions {
  /** Connections that were dropped unheard so far. */
  silent: () => number;
  onEvent: (event: GygesEvent) => void;
}

export class StrangerNotes implements Disposable {
  readonly #options: StrangerNotesOptions;
  readonly #timer: ReturnType<typeof setInterval>;
  #told = false;
  #more = 0;
  #silentTold = 0;
  #over = false;

  constructor(options: StrangerNotesOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.#sumUp(), EVERY_MS);
    // It keeps no process alive.
    Deno.unrefTimer(this.#timer);
  }

  /** After the end nobody is told: a handshake may outlive the door, and the process has said its last word. */
  refused(why: string): void {
    if (this.#over) return;
    if (this.#told) this.#more++;
    else this.#note(`A connection was refused: ${why}`);
    this.#told = true;
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#sumUp();
    this.#over = true;
  }

  #sumUp(): void {
    const silent = this.#options.silent();
    const parts = [
      ...(this.#more > 0 ? [`${this.#more} more were refused`] : []),
      ...(silent > this.#silentTold ? [`${silent - this.#silentTold} said nothing whole and were dropped`] : []),
    ];
    this.#silentTold = silent;
    this.#more = 0;
    this.#told = false;
    if (parts.length > 0) this.#note(`Of the connections that came, ${parts.join(", and ")}`);
  }

  #note(detail: string): void {
    this.#options.onEvent({ type: "note", level: "warning", detail });
  }
}
