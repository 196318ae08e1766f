/** What the command line may ask of the library about guests of QEMU: one function per command. */
import { NativeError } from "../ffi/native_error.ts";
import { NativeProcess } from "../ffi/process.ts";
import { monitorPathIn, RuntimeDir } from "./control/runtime_dir.ts";
import { EXIT, type ExitCode, UsageError } from "./errors.ts";
import type { Summary } from "./events.ts";
import { QemuMachine } from "./machine/qemu.ts";
import type { MigrateOptions, PagerChoice, PrepareOptions } from "./options.ts";
import type { Loaded, TakenOver } from "./migration/loaded.ts";
import { lossError, pagesGone } from "./migration/loss.ts";
import { chooseRam } from "./pager/choose.ts";
import { pagerOfFiles } from "./pager/kinds.ts";
import { nativePager } from "./pager/native.ts";
import type { DestinationPager } from "./pager/pager.ts";
import { userPager } from "./pager/user.ts";
import { describe, type QemuDescription } from "./qemu/describe.ts";
import { WaitingQemu } from "./qemu/destination.ts";
import { findQemu, launchQemu } from "./qemu/launch.ts";
import { QmpClient } from "./qemu/qmp.ts";
import { type AttachRecord, forgetRecord, readRecord } from "./resident/attach_record.ts";
import { armInjection } from "./resident/fault_injection.ts";
import {
  attachGuest,
  holdGuest,
  moveGuest,
  receiveGuest,
  type RunOptions,
  serveLeft,
  tellLost,
} from "./resident/serve.ts";

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

/**
 * Goes on with the move in which process `name` died: with the guest that it was receiving, which is held from then on, or
 * with serving the pages of one that has left; `attach`.
 */
export async function attachQemu(name: string, run: RunOptions): Promise<ExitCode> {
  using directory = await RuntimeDir.adopt(name);
  armInjection(run.onEvent);
  const record = readRecord(directory);
  return record.side === "source"
    ? await attachToSource(directory, record, run)
    : await attachToDestination(directory, record, run);
}

async function attachToSource(
  directory: RuntimeDir,
  { left, keepSource }: AttachRecord & { side: "source" },
  run: RunOptions,
): Promise<ExitCode> {
  const machine = await takeSource(directory.path, keepSource);
  if (!machine) {
    forgetRecord(directory);
    throw pagesGone(directory.name);
  }
  if (machine.running) {
    const path = monitorPathIn(directory.path);
    await machine[Symbol.asyncDispose]();
    throw new UsageError(
      `Cannot attach "${directory.name}" as its guest runs here: move it by gyges migrate TICKET --qmp ${path}`,
    );
  }
  run.onEvent(await serveLeft(directory, { machine, left, keepSource }, run));
  return EXIT.completed;
}

/** Null: QEMU is gone too, and the pages with it. */
async function takeSource(folder: string, keep: boolean): Promise<QemuMachine | null> {
  const path = monitorPathIn(folder);
  const process = await unlessGone(() => Promise.resolve(NativeProcess.listeningOn(path)));
  if (!process) return null;
  const qmp = await QmpClient.connect(path);
  return await QemuMachine.create({ process, qmp, folder, pagerOf: pagerOfFiles, waiting: false, keep });
}

async function attachToDestination(
  directory: RuntimeDir,
  { credentials, loaded }: AttachRecord & { side: "destination" },
  run: RunOptions,
): Promise<ExitCode> {
  const { name } = directory;
  const taken = await takeOver(directory.path, loaded);
  if (taken) return await attachGuest(directory, { taken, credentials }, run);
  forgetRecord(directory);
  await tellLost(name, credentials, run);
  // One that was killed before the guest ran has had its QEMU ended by its guard.
  const ran = loaded.startMs !== null;
  const loss = { guest: `The guest of "${name}"`, why: "its QEMU has ended", pages: "pages", ran };
  throw lossError(loss, ran ? "paused" : "loading");
}

/** What says of a process that it is gone, or of its socket, or that nobody listens on that. */
const GONE: readonly string[] = ["ESRCH", "ENOENT", "ECONNREFUSED"];

/** Null: QEMU is gone too. */
async function takeOver(folder: string, loaded: Loaded): Promise<TakenOver | null> {
  return await unlessGone(async () => {
    const path = monitorPathIn(folder);
    const process = NativeProcess.listeningOn(path);
    const options = { process, qmp: await QmpClient.open(path), folder, pagerOf: pagerOfFiles };
    const machine = await QemuMachine.adopt(options, loaded.machine, loaded.startMs !== null);
    return { loaded, machine, pager: await armedPager(machine, loaded), inDoubt: machine.waiting };
  });
}

async function unlessGone<T>(work: () => Promise<T>): Promise<T | null> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof NativeError && GONE.includes(error.code)) return null;
    throw error;
  }
}

/** The pager as it was left; null: it had brought every page. */
async function armedPager(machine: QemuMachine, loaded: Loaded): Promise<DestinationPager | null> {
  if (machine.own) {
    const progress = await machine.own.glance();
    return progress?.status === "completed" ? null : nativePager.destination(machine, { ...loaded, takeOver: true });
  }
  try {
    return userPager.destination(machine, { ...loaded, takeOver: true });
  } catch (error) {
    if (error instanceof NativeError && error.code === "ENOENT") return null;
    throw error;
  }
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
  // Where one that takes this one's place looks for it.
  Deno.symlinkSync(Deno.realPathSync(qmp), monitorPathIn(folder));
  const machine = await QemuMachine.create({
    ...running,
    folder,
    pagerOf: pagerOfFiles,
    waiting: false,
    keep: keepSource,
    native: migrate.pager === "native",
  });
  const run = { onEvent, ...(signal ? { signal } : {}) };
  return await moveGuest(directory, { machine, ticket, migrate, keepSource }, run);
}
