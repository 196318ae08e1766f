/** A `gyges ... --json` of our own as a child: its events as they come, its end, and its certain end. */
import { fromErrorEvent } from "../control/error_event.ts";
import { byteReader, readLines } from "../control/lines.ts";
import type { GygesEvent } from "../events.ts";
import { selfCommand } from "../host/self.ts";
import { parseEvent } from "../monitor/summary.ts";

/** Time for an orderly end before a child is killed. */
const END_GRACE_MS = 2_000;

export interface ChildOptions {
  onEvent?: (event: GygesEvent) => void;
}

export class GygesChild implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #words: string;
  readonly #events: GygesEvent[] = [];
  readonly #reading: Promise<void>;
  #wake = Promise.withResolvers<void>();
  #ended = false;

  constructor(args: readonly string[], options: ChildOptions = {}) {
    const { program, before } = selfCommand();
    this.#words = `gyges ${args.join(" ")}`;
    this.#child = new Deno.Command(program, {
      args: [...before, ...args, "--json"],
      stdin: "null",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    this.#reading = this.#read(options.onEvent ?? (() => {}));
    // Whoever waits hears of a failure; until then it is nobody's.
    this.#reading.catch(() => {});
  }

  /** The first event of `type`; throws the child's own error, or one that says how it ended. */
  async waitFor<T extends GygesEvent["type"]>(type: T): Promise<Extract<GygesEvent, { type: T }>> {
    for (;;) {
      for (const event of this.#events) {
        if (isOf(event, type)) return event;
        if (event.type === "error") throw fromErrorEvent(event);
      }
      if (this.#ended) {
        throw new Error(`"${this.#words}" ended with code ${(await this.#child.status).code}, unexpectedly`);
      }
      await this.#wake.promise;
    }
  }

  /** Waits for the end and throws unless the code is 0. */
  async end(): Promise<void> {
    await this.#reading;
    const { code } = await this.#child.status;
    const error = this.#events.find((event) => event.type === "error");
    if (error?.type === "error") throw fromErrorEvent(error);
    if (code !== 0) throw new Error(`"${this.#words}" ended with code ${code}`);
  }

  async #read(onEvent: (event: GygesEvent) => void): Promise<void> {
    const reader = this.#child.stdout.getReader();
    try {
      for await (const line of readLines(byteReader(reader))) {
        const event = parseEvent(JSON.parse(line));
        this.#events.push(event);
        onEvent(event);
        this.#wake.resolve();
        this.#wake = Promise.withResolvers();
      }
    } finally {
      this.#ended = true;
      this.#wake.resolve();
      await reader.cancel();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!await this.#endsWithin(0)) {
      this.#kill("SIGTERM");
      if (!await this.#endsWithin(END_GRACE_MS)) this.#kill("SIGKILL");
    }
    await this.#child.status;
    await this.#reading.catch(() => {});
  }

  async #endsWithin(ms: number): Promise<boolean> {
    const timer = Promise.withResolvers<false>();
    const timeout = setTimeout(() => timer.resolve(false), ms);
    const ended = await Promise.race([this.#child.status.then(() => true), timer.promise]);
    clearTimeout(timeout);
    return ended;
  }

  #kill(signal: Deno.Signal): void {
    try {
      this.#child.kill(signal);
    } catch (error) {
      // It ended in between.
      if (!(error instanceof TypeError) && !(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
}

function isOf<T extends GygesEvent["type"]>(event: GygesEvent, type: T): event is Extract<GygesEvent, { type: T }> {
  return event.type === type;
}
