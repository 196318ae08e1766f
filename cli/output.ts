/**
 * What the commands say. stdout carries the result, stderr the diagnostics. With `--json` stdout carries JSON objects
 * only, one a line, errors too, and an error is the last line.
 */
import { toErrorEvent } from "../lib/control/error_event.ts";
import type { GygesEvent, Sample } from "../lib/events.ts";
import type { QemuDescription } from "../lib/qemu/describe.ts";
import type { BuiltModule } from "../lib/host/module_build.ts";
import type { InstalledModule } from "../lib/host/module_install.ts";
import type { ModuleStatus } from "../lib/host/module_status.ts";
import { formatNs } from "../lib/units.ts";
import { adviceFor, exitCodeOf } from "./exit.ts";
import { Progress } from "./progress.ts";
import { guestText, stateText, summaryText } from "./render.ts";
import { standardStreams, type Terminal } from "./terminal.ts";

/** Objects of the command line's own, beside those of lib/events.ts. */
export type CliObject =
  | GygesEvent
  | { type: "started"; name: string; pid: number }
  | {
    type: "check";
    name: string;
    status: "ok" | "warn" | "fail";
    found: string;
    needed: string;
    remedy: string | null;
  }
  | ({ type: "machine" } & QemuDescription)
  | { type: "module" } & ModuleStatus
  | { type: "module_built" } & BuiltModule
  | { type: "module_installed" } & InstalledModule
  | { type: "comparison"; scenario: string; [figure: string]: unknown };

export interface OutputOptions {
  json: boolean;
  /** @default {standardStreams} */
  terminal?: Terminal;
  /** Samples are the result (`monitor`) and go to stdout when stderr is no terminal. @default {false} */
  samplesAreResult?: boolean;
}

export class Output {
  readonly json: boolean;
  readonly #terminal: Terminal;
  readonly #progress: Progress;

  constructor(options: OutputOptions) {
    this.json = options.json;
    this.#terminal = options.terminal ?? standardStreams;
    const plain = options.samplesAreResult ? (line: string) => this.result(line) : (line: string) => this.say(line);
    this.#progress = new Progress(this.#terminal, plain);
  }

  /** Nobody reads stdout any more. */
  get closed(): boolean {
    return this.#terminal.outClosed;
  }

  /** The answer for people, on stdout; nothing with `--json`. */
  result(text: string): void {
    if (this.json) return;
    this.#progress.clear();
    this.#terminal.out(`${text}\n`);
  }

  /** A diagnostic for people, on stderr; nothing with `--json`. */
  say(text: string): void {
    if (this.json) return;
    this.#progress.clear();
    this.#terminal.err(`${text}\n`);
  }

  /** Objects with `--json`, otherwise `text` of them. */
  answer(objects: readonly CliObject[], text: () => string): void {
    if (!this.json) return this.result(text());
    for (const object of objects) this.object(object);
  }

  /** One object with `--json`; nothing otherwise. */
  object(object: CliObject): void {
    if (this.json) this.#terminal.out(`${JSON.stringify(object)}\n`);
  }

  event(event: GygesEvent): void {
    // There will be another.
    if (event.type === "sample" && this.#terminal.isBehind) return;
    if (this.json) return this.object(event);
    switch (event.type) {
      case "ticket":
        return this.result(event.ticket);
      case "summary":
        return this.result(summaryText(event));
      case "guest":
        return this.result(guestText(event));
      case "sample":
        return this.#progress.show(event);
      case "state":
        return this.say(stateText(event));
      case "promise": {
        const bound = event.total_ns_at_most;
        return this.say(bound === null ? event.detail : `Total time at most ${formatNs(bound)}: ${event.detail}`);
      }
      case "note":
        return this.say(event.level === "warning" ? `warning: ${event.detail}` : event.detail);
      case "error":
        return this.say(`gyges: ${event.message}`);
      default:
        return event satisfies never;
    }
  }

  /** How far things are, for people only. */
  progress(sample: Sample): void {
    if (!this.json) this.event(sample);
  }

  /** The error that ends the command. */
  error(error: unknown): void {
    const event = toErrorEvent(error);
    if (this.json) return this.object(event);
    this.say(`gyges: ${event.message}`);
    const advice = adviceFor(exitCodeOf(error));
    if (advice) this.say(advice);
    if (Deno.env.get("GYGES_DEBUG") && error instanceof Error) this.say(String(error.stack ?? error));
  }

  /** Takes the progress line away. */
  end(): void {
    this.#progress.clear();
  }
}
