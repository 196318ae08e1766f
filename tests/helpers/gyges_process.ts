/** A running `gyges ... --json`: its lines as typed events, its end, and its certain end. */
import { byteReader, readLines } from "../../lib/control/lines.ts";
import type { GygesEvent, StateEvent } from "../../lib/events.ts";
import { parseEvent } from "../../lib/monitor/summary.ts";
import { patience } from "./patience.ts";

/** A wait that takes longer has failed, on however busy a machine. */
const PATIENCE_MS = patience(30_000);
/** As a shell has it. */
const SEGFAULT = 128 + 11;
/** Deno's words for an error that nobody caught, and Rust's. */
const UNCAUGHT = /^error: Uncaught|panicked at/m;
/** Those of a gyges that goes on after one which no test has made. */
const OUTLIVED = /^Internal error(?!.*on purpose)/;
/** Events shown when a wait fails. */
const SHOWN_EVENTS = 12;

type EventOf<T extends GygesEvent["type"]> = Extract<GygesEvent, { type: T }>;

/** What a process left. */
export interface Ended {
  /** Exit code, 128 + signal when a signal killed it. */
  code: number;
  events: readonly GygesEvent[];
  stderr: string;
}

export interface StartOptions {
  /** On top of this process's own environment. */
  env?: Record<string, string>;
  /** What starts it, as by exec. @default nothing */
  under?: readonly string[];
}

/** A child process, of this machine or of an emulated one. */
export interface Child {
  readonly stdout: ReadableStream<Uint8Array>;
  readonly stderr: ReadableStream<Uint8Array>;
  readonly status: Promise<{ code: number }>;
  /** On this machine; none in an emulated one. */
  readonly pid?: number;
  kill(signal: Deno.Signal): void;
}

/** The arguments of a `gyges ... --json`, and the same without its key for messages. */
export function jsonCommand(args: readonly string[]): { args: string[]; words: string } {
  // What follows "--" is another program's.
  const end = args.includes("--") ? args.indexOf("--") : args.length;
  return {
    args: [...args.slice(0, end), "--json", ...args.slice(end)],
    words: `gyges ${args.join(" ").replaceAll(/#[\w-]{43}/g, "#KEY")}`,
  };
}

export class GygesProcess implements AsyncDisposable {
  readonly words: string;
  readonly events: GygesEvent[] = [];
  readonly #child: Child;
  readonly #patienceMs: number;
  readonly #done: Promise<Ended>;
  #wake = Promise.withResolvers<void>();
  #stderr = "";
  /** It has ended as no gyges ever should, whoever waited for its end. */
  #crash: Error | null = null;
  #running = true;

  /** @param patienceMs how long it is waited for @default 30_000 */
  constructor(words: string, child: Child, patienceMs: number = PATIENCE_MS) {
    this.words = words;
    this.#child = child;
    this.#patienceMs = patienceMs;
    this.#done = this.#watch();
    // Whoever waits hears of a line that is no event; until then it is nobody's.
    this.#done.catch(() => {});
  }

  /** Starts the file `path` on this machine. */
  static spawn(path: string, line: readonly string[], { env, under = [] }: StartOptions = {}): GygesProcess {
    const { args, words } = jsonCommand(line);
    const [program = path, ...rest] = [...under, path, ...args];
    const streams = { stdin: "null", stdout: "piped", stderr: "piped" } as const;
    return new GygesProcess(words, new Deno.Command(program, { args: rest, ...streams, ...(env && { env }) }).spawn());
  }

  /** Throws if it is not on this machine. */
  get pid(): number {
    if (this.#child.pid === undefined) throw new Error(`"${this.words}" is not a process of this machine`);
    return this.#child.pid;
  }

  get running(): boolean {
    return this.#running;
  }

  /** The first event of `type` for which `fits` holds, of those that were and those to come. */
  async waitFor<T extends GygesEvent["type"]>(
    type: T,
    fits: (event: EventOf<T>) => boolean = () => true,
  ): Promise<EventOf<T>> {
    const what = `an event "${type}"`;
    const deadline = performance.now() + this.#patienceMs;
    for (let seen = 0;;) {
      const { promise } = this.#wake;
      for (; seen < this.events.length; seen++) {
        const event = this.events[seen];
        if (event && isOf(event, type) && fits(event)) return event;
      }
      if (!this.#running) {
        await this.#done;
        throw this.#failure(`ended and never gave ${what}`);
      }
      await this.#inTime(promise, deadline - performance.now(), what);
    }
  }

  /** Waits until its side of a migration has reached `state`. */
  reached(state: StateEvent["state"]): Promise<StateEvent> {
    return this.waitFor("state", (event) => event.state === state);
  }

  /** States it went through, in order. */
  get states(): StateEvent["state"][] {
    return this.events.flatMap((event) => event.type === "state" ? [event.state] : []);
  }

  /** Waits for its end, whatever its code. */
  ended(patienceMs: number = this.#patienceMs): Promise<Ended> {
    return this.#inTime(this.#done, patienceMs, "its end");
  }

  /** Waits for its end; throws with all that it said unless its code is `code`. */
  async endedWith(code: number, patienceMs: number = this.#patienceMs): Promise<Ended> {
    const ended = await this.ended(patienceMs);
    if (ended.code !== code) throw this.#failure(`ended with code ${ended.code}, and ${code} was expected`);
    return ended;
  }

  signal(name: Deno.Signal): void {
    this.#child.kill(name);
  }

  /** Sure to be gone when it resolves. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#running) {
      try {
        this.#child.kill("SIGKILL");
      } catch (error) {
        // It ended in between.
        if (!(error instanceof TypeError) && !(error instanceof Deno.errors.NotFound)) throw error;
      }
    }
    await this.#child.status;
    await this.#done.catch(() => {});
    if (this.#crash) throw this.#crash;
  }

  async #watch(): Promise<Ended> {
    try {
      await Promise.all([this.#readEvents(), this.#readWords()]);
      const { code } = await this.#child.status;
      if (code === SEGFAULT || UNCAUGHT.test(this.#stderr)) {
        throw this.#crash = this.#failure("ended by a fault of its own");
      }
      if (this.events.some((event) => event.type === "note" && OUTLIVED.test(event.detail))) {
        throw this.#crash = this.#failure("had a fault of its own");
      }
      return { code, events: this.events, stderr: this.#stderr };
    } finally {
      this.#running = false;
      this.#wake.resolve();
    }
  }

  async #readEvents(): Promise<void> {
    const reader = this.#child.stdout.getReader();
    try {
      for await (const line of readLines(byteReader(reader))) {
        this.events.push(parseEvent(JSON.parse(line)));
        this.#wake.resolve();
        this.#wake = Promise.withResolvers();
      }
    } finally {
      await reader.cancel();
    }
  }

  async #readWords(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.#child.stderr) this.#stderr += decoder.decode(chunk, { stream: true });
  }

  async #inTime<T>(promise: Promise<T>, ms: number, what: string): Promise<T> {
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(() => late.reject(this.#failure(`did not give ${what} in time`)), Math.max(0, ms));
    try {
      return await Promise.race([promise, late.promise]);
    } finally {
      clearTimeout(timer);
    }
  }

  #failure(what: string): Error {
    const last = this.events.slice(-SHOWN_EVENTS).map((event) => `  ${JSON.stringify(event)}`);
    return new Error([`"${this.words}" ${what}; its last words:`, ...last, this.#stderr].join("\n"));
  }
}

function isOf<T extends GygesEvent["type"]>(event: GygesEvent, type: T): event is EventOf<T> {
  return event.type === type;
}
