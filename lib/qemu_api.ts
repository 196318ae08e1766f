/** What the command line may ask of the library about guests of QEMU: one function per command. */
import { RuntimeDir } from "./control/runtime_dir.ts";
import type { ExitCode } from "./errors.ts";
import type { Summary } from "./events.ts";
import { QemuMachine } from "./machine/qemu.ts";
import type { MigrateOptions, PagerChoice, PrepareOptions } from "./options.ts";
import { chooseRam } from "./pager/choose.ts";
import { pagerOfFiles } from "./pager/kinds.ts";
import { describe, type QemuDescription } from "./qemu/describe.ts";
import { WaitingQemu } from "./qemu/destination.ts";
import { findQemu, launchQemu } from "./qemu/launch.ts";
import { armInjection } from "./resident/fault_injection.ts";
import { holdGuest, moveGuest, receiveGuest, type RunOptions } from "./resident/serve.ts";

/** Starts a QEMU whose guest can move and holds it until it ends or has moved away; `run`. */
export async function holdQemu(
  name: string,
  { command, pager: choice }: { command: readonly string[]; pager: PagerChoice },
  run: RunOptions,
): Promise<ExitCode> {
  using directory = await RuntimeDir.claim(name);
  armInjection(run.onEvent);
  const pager = chooseRam(choice);
  const folder = directory.path;
  const running = await launchQemu({ command, folder, ramFolder: pager.ramFolder, incoming: false });
  const native = pager.kind === "native";
  const machine = await QemuMachine.create({ ...running, folder, pagerOf: pagerOfFiles, waiting: false, native });
  return await holdGuest(directory, { machine, start: () => Promise.resolve() }, run);
}

/** Starts a QEMU that waits for a guest, receives it and holds it from then on; `prepare -- QEMU...`. */
export async function prepareQemu(
  name: string,
  { command, ...options }: PrepareOptions & { command: readonly string[] },
  run: RunOptions,
): Promise<ExitCode> {
  const pager = chooseRam(options.pager);
  using directory = await RuntimeDir.claim(name);
  armInjection(run.onEvent);
  await using waiting = await WaitingQemu.start(command, directory.path, pager);
  return await receiveGuest(directory, { options, build: (shape, pager) => waiting.take(shape, pager) }, run);
}

export interface MigrateQemuOptions extends MigrateOptions, RunOptions {
  /** Path of its monitor's socket. */
  qmp: string;
  /** Name that other commands know the move by; null: one with QEMU's pid. */
  name: string | null;
  /** QEMU is left stopped, not ended, once its guest has moved. */
  keepSource: boolean;
}

/** What the QEMU behind a monitor has, and what keeps its guest from moving; `describe`. */
export async function describeQemu(qmp: string): Promise<QemuDescription> {
  const running = await findQemu(qmp);
  using _process = running.process;
  using _qmp = running.qmp;
  return await describe(running);
}

/** Moves the guest of a QEMU that nobody of Gyges holds; resolves when the move is complete. */
export async function migrateQemu(ticket: string, options: MigrateQemuOptions): Promise<Summary> {
  const { qmp, name, keepSource, onEvent, signal, ...migrate } = options;
  const running = await findQemu(qmp);
  using directory = await RuntimeDir.claim(name ?? `qemu-${running.process.pid}`);
  armInjection(onEvent);
  const folder = directory.path;
  const machine = await QemuMachine.create({
    ...running,
    folder,
    pagerOf: pagerOfFiles,
    waiting: false,
    keep: keepSource,
    native: migrate.pager === "native",
  });
  const run = { onEvent, ...(signal ? { signal } : {}) };
  return await moveGuest(directory, { machine, ticket, migrate }, run);
}
