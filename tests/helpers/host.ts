/** A host for tests: the built gyges with a runtime directory of its own, and every process started in it. */
import assert from "node:assert/strict";
import * as v from "valibot";
import { ControlClient } from "../../lib/control/client.ts";
import { monitorPathIn } from "../../lib/control/runtime_dir.ts";
import type { GuestReport, Sample } from "../../lib/events.ts";
import { guestSchema, sampleSchema } from "../../lib/monitor/summary.ts";
import { builtFiles } from "./binary.ts";
import { type Ended, GygesProcess, type StartOptions } from "./gyges_process.ts";
import { patience } from "./patience.ts";

const SHARED_MEMORY = "/dev/shm";
const POLL_MS = 20;
const PATIENCE_MS = patience(30_000);

export class Host implements AsyncDisposable {
  readonly runtimeDir: string;
  readonly #path: string;
  readonly #processes: GygesProcess[] = [];
  readonly #sharedBefore = listing(SHARED_MEMORY);

  private constructor(runtimeDir: string, path: string) {
    this.runtimeDir = runtimeDir;
    this.#path = path;
  }

  static async open(): Promise<Host> {
    const [built] = builtFiles();
    if (!built) throw new Error("There is no dist/gyges: run ./build.sh build");
    const runtimeDir = await Deno.makeTempDir({ prefix: "gyges-kvm-" });
    return new Host(runtimeDir, built.path);
  }

  /** Starts `gyges ...args --json`. */
  start(args: readonly string[], options: StartOptions = {}): GygesProcess {
    const env = { ...options.env, GYGES_RUNTIME_DIR: this.runtimeDir };
    const process = GygesProcess.spawn(this.#path, args, { ...options, env });
    this.#processes.push(process);
    return process;
  }

  /** Runs `gyges ...args --json` to its end. */
  run(args: readonly string[], options: StartOptions = {}): Promise<Ended> {
    return this.start(args, options).ended();
  }

  /** Path of the monitor that gyges gave to the QEMU of `name`. */
  monitorOf(name: string): string {
    return monitorPathIn(`${this.runtimeDir}/${name}`);
  }

  /** What the guest of `name` says of itself, asked over the control socket. */
  async guest(name: string): Promise<GuestReport> {
    using client = await ControlClient.connect(name, { base: this.runtimeDir });
    return v.parse(guestSchema, await client.call("status", { verify: false })).guest;
  }

  /** What `name` is doing. */
  async sample(name: string): Promise<Sample> {
    using client = await ControlClient.connect(name, { base: this.runtimeDir });
    return v.parse(sampleSchema, await client.call("sample"));
  }

  /** Asks for the guest's report until `fits`; the report that did. */
  async guestUntil(name: string, fits: (guest: GuestReport) => boolean): Promise<GuestReport> {
    let guest: GuestReport | undefined;
    await until(async () => fits(guest = await this.guest(name)), () => `guest "${name}": ${JSON.stringify(guest)}`);
    assert.ok(guest);
    return guest;
  }

  /** Asks for samples until `fits`; the sample that did. */
  async sampleUntil(name: string, fits: (sample: Sample) => boolean): Promise<Sample> {
    let sample: Sample | undefined;
    await until(async () => fits(sample = await this.sample(name)), () => `"${name}": ${JSON.stringify(sample)}`);
    assert.ok(sample);
    return sample;
  }

  /** Nothing runs any more, and nothing is left in the runtime directory or in shared memory. */
  assertEmpty(): void {
    const running = this.#processes.filter((process) => process.running).map((process) => process.words);
    assert.deepEqual(running, [], "processes still run");
    assert.deepEqual(listing(this.runtimeDir), [], "the runtime directory is not empty");
    const shared = listing(SHARED_MEMORY).filter((name) => !this.#sharedBefore.includes(name));
    assert.deepEqual(shared.filter((name) => name.includes("gyges")), [], "files are left in shared memory");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const process of this.#processes.toReversed()) await process[Symbol.asyncDispose]();
    await Deno.remove(this.runtimeDir, { recursive: true });
  }
}

/** Waits until `holds`; throws with `state()` if it takes too long. */
export async function until(
  holds: () => boolean | Promise<boolean>,
  state: () => string,
  patienceMs = PATIENCE_MS,
): Promise<void> {
  const deadline = performance.now() + patienceMs;
  while (!await holds()) {
    if (performance.now() > deadline) throw new Error(`It did not come to pass in ${patienceMs / 1000} s: ${state()}`);
    await pause(POLL_MS);
  }
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function listing(directory: string): string[] {
  return [...Deno.readDirSync(directory)].map((entry) => entry.name).sort();
}
