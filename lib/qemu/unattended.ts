/**
 * A guest of QEMU whose gyges has died: where its RAM is in gygesfs the kernel brings the pages that are missing all the
 * same, and tells how far it is.
 */
import { type KernelImport, KernelSink } from "../../ffi/kernel_sink.ts";
import { NativeError } from "../../ffi/native_error.ts";
import { NativeProcess } from "../../ffi/process.ts";
import { PAGE_BYTES, Ram } from "../../ffi/ram.ts";
import { monitorPathIn } from "../control/runtime_dir.ts";
import { RAM_FOLDER } from "../host/ram_folder.ts";
import type { DestinationState, Sample } from "../events.ts";
import { toWireStats } from "../migration/stats.ts";
import { Sampler } from "../resident/sampler.ts";
import { mapsOf, pieceOf, sharedMappings } from "./guest_ram.ts";

const STATES: Readonly<Record<KernelImport["phase"], DestinationState | null>> = {
  none: null,
  precopy: "precopy",
  armed: "loading",
  running: "running",
  complete: "completed",
  // The last user of the file, or somebody by hand, has given the missing pages up.
  abandoned: "failed",
};

/** Only looks; while it is open the file, and so its import, outlives QEMU. */
export class UnattendedGuest implements AsyncDisposable {
  readonly #process: NativeProcess;
  readonly #ram: Ram;
  readonly #import: KernelSink;
  readonly #sampler: Sampler;

  private constructor(name: string, process: NativeProcess, ram: Ram) {
    this.#process = process;
    this.#ram = ram;
    this.#import = new KernelSink(ram, LOOK_ONLY);
    this.#sampler = new Sampler(name);
  }

  /** The guest of the dead process `name`, whose directory is left; null: the kernel moves none. */
  static async open(name: string, directory: string): Promise<UnattendedGuest | null> {
    const process = qemuOf(directory);
    if (!process) return null;
    const mapping = sharedMappings(mapsOf(process)).find(({ file }) => file.startsWith(`${RAM_FOLDER}/`));
    if (!mapping) {
      process[Symbol.dispose]();
      return null;
    }
    const guest = new UnattendedGuest(name, process, Ram.attach(process.pid, [pieceOf(process, mapping)]));
    if (guest.#import.state().phase !== "none") return guest;
    await guest[Symbol.asyncDispose]();
    return null;
  }

  /** Whether QEMU has ended, once it has or `timeoutMs` is up. */
  ended(timeoutMs: number): Promise<boolean> {
    return this.#process.ended(timeoutMs);
  }

  sample(): Sample {
    const stats = toWireStats(this.#import.stats());
    return this.#sampler.sample({
      side: "destination",
      state: this.#state,
      // What the dead process knew is gone with it.
      mode: null,
      elapsedMs: 0,
      precopy_round: 0,
      total_pages: this.#ram.bytes / PAGE_BYTES,
      present_pages: stats.present_pages,
      missing_pages: stats.missing_pages,
      pulled_pages: stats.precopy_pages + stats.postcopy_pages,
      wire_bytes: stats.wire_bytes,
      demand_faults: stats.demand_faults,
      fault_latency_ns: stats.fault_latency_ns,
      guest: null,
    });
  }

  get #state(): DestinationState {
    const { phase, linked } = this.#import.state();
    if (phase === "running" && !linked) return "paused";
    return STATES[phase] ?? "failed";
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#import[Symbol.asyncDispose]();
    this.#ram[Symbol.dispose]();
    this.#process[Symbol.dispose]();
  }
}

const LOOK_ONLY = { bytesPerSecond: 0, precopyWindowPages: 0, postcopyWindowPages: 0, prefetch: false } as const;

function qemuOf(directory: string): NativeProcess | null {
  try {
    return NativeProcess.listeningOn(monitorPathIn(directory));
  } catch (error) {
    // It has ended too, or the dead process held no QEMU.
    if (error instanceof NativeError) return null;
    throw error;
  }
}
