/** What the command line may ask of the library: one function per command. */
import type { ExitCode } from "./errors.ts";
import type { GuestEvent, GygesEvent, Sample, Summary } from "./events.ts";
import type { MicroVmOptions, MigrateOptions, PrepareOptions } from "./options.ts";

export interface RunOptions {
  /** Called for each thing worth telling, in order. */
  onEvent: (event: GygesEvent) => void;
  /** Aborting asks for an orderly end: the first Ctrl-C. */
  signal?: AbortSignal;
}

/** Holds a new micro-VM until it is stopped or has moved away; `vm start`. */
export function holdMicroVm(_name: string, _vm: MicroVmOptions, _run: RunOptions): Promise<ExitCode> {
  throw new Error("not built yet");
}

/** Waits for a guest, receives it and holds it from then on; `prepare --micro`. */
export function prepareMicroVm(_name: string, _options: PrepareOptions, _run: RunOptions): Promise<ExitCode> {
  throw new Error("not built yet");
}

/** Moves the guest that process `name` holds to the destination behind `ticket`; resolves when it is complete. */
export function migrate(
  _name: string,
  _ticket: string,
  _options: MigrateOptions & RunOptions,
): Promise<Summary> {
  throw new Error("not built yet");
}

/** Samples of process `name`, one each `intervalMs`, until it ends or `signal` aborts. */
export function monitor(_name: string, _options: { intervalMs: number; signal?: AbortSignal }): AsyncIterable<Sample> {
  throw new Error("not built yet");
}

/** Cancels the migration that process `name` is making; resolves once the guest runs at the source again. */
export function cancel(_name: string): Promise<void> {
  throw new Error("not built yet");
}

/** The guest's own report; with `verify` the guest is stopped for a moment and all of its RAM checked by the host. */
export function vmStatus(_name: string, _options: { verify: boolean }): Promise<GuestEvent> {
  throw new Error("not built yet");
}

/** Names of the processes that own a directory here and answer, with what they are doing. */
export function vmList(): Promise<Sample[]> {
  throw new Error("not built yet");
}

/** Stops the guest, checks all of its RAM, ends the process that holds it. */
export function vmStop(_name: string): Promise<GuestEvent> {
  throw new Error("not built yet");
}
