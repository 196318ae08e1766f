/** Gyges in a lab host, as the helpers for guests and migrations want it. */
import assert from "node:assert/strict";
import type { GuestReport, Sample } from "../../lib/events.ts";
import { GygesProcess, jsonCommand, type StartOptions } from "../helpers/gyges_process.ts";
import { until } from "../helpers/host.ts";
import type { GuestHost } from "../helpers/pair.ts";
import type { LabHost } from "./host.ts";

/** Emulation is slow, and slower on a busy machine. */
const PATIENCE_MS = 90_000;

export interface LabStartOptions extends StartOptions {
  /** Words before gyges: what it is to run under. */
  under?: readonly string[];
}

export class GygesHost implements GuestHost {
  readonly #host: LabHost;

  constructor(host: LabHost) {
    this.#host = host;
  }

  start(line: readonly string[], { env = {}, under = [] }: LabStartOptions = {}): GygesProcess {
    const { args, words } = jsonCommand(line);
    const settings = Object.entries(env).map(([name, value]) => `${name}=${value}`);
    const command = [...under, "env", ...settings, "gyges", ...args].map(quoted).join(" ");
    const process = new GygesProcess(words, this.#host.start(`exec ${command}`), PATIENCE_MS);
    this.#host.said.push(() => [words, ...process.events.map((event) => JSON.stringify(event))].join("\n"));
    return process;
  }

  async guest(name: string): Promise<GuestReport> {
    const { events: [event] } = await this.start(["vm", "status", name]).endedWith(0);
    assert.equal(event?.type, "guest");
    return event.guest;
  }

  async guestUntil(name: string, fits: (guest: GuestReport) => boolean): Promise<GuestReport> {
    let guest: GuestReport | undefined;
    const state = () => `guest "${name}": ${JSON.stringify(guest)}`;
    await until(async () => fits(guest = await this.guest(name)), state, PATIENCE_MS);
    assert.ok(guest);
    return guest;
  }

  async sample(name: string): Promise<Sample> {
    const { events: [event] } = await this.start(["monitor", name, "--once"]).endedWith(0);
    assert.equal(event?.type, "sample");
    return event;
  }
}

function quoted(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
