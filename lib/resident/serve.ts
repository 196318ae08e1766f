/** The two lives of a process that holds a guest: it has one from the start, or it receives one. */
import { toErrorEvent } from "../control/error_event.ts";
import { inRoom, type RuntimeDir } from "../control/runtime_dir.ts";
import { ControlServer } from "../control/server.ts";
import { EXIT, type ExitCode, GygesError } from "../errors.ts";
import type { GygesEvent, Summary } from "../events.ts";
import type { Machine } from "../machine/machine.ts";
import { DestinationMigration } from "../migration/destination.ts";
import type { Left, Loaded, TakenOver } from "../migration/loaded.ts";
import { stillAway } from "../migration/loss.ts";
import { DEADLINE_MS, delay } from "../migration/timing.ts";
import type { MigrateOptions, PrepareOptions } from "../options.ts";
import type { Pager } from "../pager/pager.ts";
import type { WireMachine } from "../wire/messages.ts";
import { parseTicket } from "../wire/ticket.ts";
import { type Credentials, forgetRecord, writeRecord, writeSourceRecord } from "./attach_record.ts";
import { outliveErrors } from "./outlive.ts";
import { Reception } from "./reception.ts";
import { type Keeper, Resident } from "./resident.ts";

/** For so long nobody need be told what is waited for. */
const QUIET_MS = 1_000;

export interface RunOptions {
  /** Called for each thing worth telling, in order. */
  onEvent: (event: GygesEvent) => void;
  /** Aborting asks for an orderly end: the first Ctrl-C. */
  signal?: AbortSignal;
}

function keeperIn(directory: RuntimeDir, { keepSource } = { keepSource: false }): Keeper {
  return {
    keep: (left) => writeSourceRecord(directory, left, { keepSource }),
    forget: () => forgetRecord(directory),
  };
}

/** Holds `machine` until it is stopped or has moved away; `start` lets its guest run. */
export async function holdGuest(
  directory: RuntimeDir,
  { machine, start }: { machine: Machine; start: () => Promise<void> },
  run: RunOptions,
): Promise<ExitCode> {
  const { name } = directory;
  using _errors = outliveErrors(run.onEvent);
  const resident = new Resident(name, run.onEvent, keeperIn(directory));
  resident.hold(machine);
  await start();
  await using server = await inRoom(directory.path, () => new ControlServer(directory.socketPath, resident.handlers));
  run.onEvent({ type: "guest", name, guest: { location: "here", ...machine.report() } });
  return await untilEnded(resident, { machine, server }, run);
}

/** Waits for a guest, receives it on what `build` makes, and holds it from then on. */
export async function receiveGuest(
  directory: RuntimeDir,
  { options, build }: {
    options: PrepareOptions;
    build: (shape: WireMachine, pager: Pager) => Promise<Machine>;
  },
  run: RunOptions,
): Promise<ExitCode> {
  const { name } = directory;
  using _errors = outliveErrors(run.onEvent);
  const keep = async (loaded: Loaded) => {
    if (reception.credentials) await writeRecord(directory, reception.credentials, loaded);
  };
  const { tls, pager } = options;
  const migration = new DestinationMigration({ tls, onEvent: run.onEvent, pager, build, keep });
  const resident = new Resident(name, run.onEvent, keeperIn(directory));
  using reception = await Reception.open({ ...options, name, migration, onEvent: run.onEvent });
  resident.receiveBy(migration, (error) => reception.refuse(error));
  await using server = await inRoom(directory.path, () => new ControlServer(directory.socketPath, resident.handlers));
  const receive = async () => {
    run.onEvent({ type: "ticket", ticket: reception.ticket });
    return await migration.receive(await reception.source);
  };
  return await holdArrived(directory, { migration, resident, reception, server, receive }, run);
}

/** Goes on with the guest that a process which died was receiving, and holds it from then on. */
export async function attachGuest(
  directory: RuntimeDir,
  { taken, credentials }: { taken: TakenOver; credentials: Credentials },
  run: RunOptions,
): Promise<ExitCode> {
  const { name } = directory;
  using _errors = outliveErrors(run.onEvent);
  const migration = attached(credentials, taken.inDoubt ? "loading" : "paused", run);
  const resident = new Resident(name, run.onEvent, keeperIn(directory));
  using reception = await Reception.reopen(credentials, { name, migration, onEvent: run.onEvent });
  resident.receiveBy(migration, () => {});
  await using server = await inRoom(directory.path, () => new ControlServer(directory.socketPath, resident.handlers));
  const receive = () => migration.attach(taken);
  return await holdArrived(directory, { migration, resident, reception, server, receive }, run);
}

/** Tells the source of a guest that is lost so, if it comes back within some seconds. */
export async function tellLost(name: string, credentials: Credentials, run: RunOptions): Promise<void> {
  const { onEvent } = run;
  const migration = attached(credentials, "paused", run);
  using _ = await Reception.reopen(credentials, { name, migration, onEvent });
  await migration.absence.tellLost();
}

function attached(
  { ticket }: Credentials,
  state: "loading" | "paused",
  { onEvent }: RunOptions,
): DestinationMigration {
  const build = () => Promise.reject(new Error("There was a machine already"));
  return new DestinationMigration({ tls: parseTicket(ticket).tls, onEvent, pager: "user", build }, state);
}

interface Arrival {
  migration: DestinationMigration;
  resident: Resident;
  reception: Reception;
  server: ControlServer;
  receive: () => Promise<Summary>;
}

async function holdArrived(
  directory: RuntimeDir,
  { migration, resident, reception, server, receive }: Arrival,
  run: RunOptions,
): Promise<ExitCode> {
  const interrupt = () => void resident.interrupt();
  run.signal?.addEventListener("abort", interrupt, { once: true });
  try {
    run.onEvent(await receive());
    forgetRecord(directory);
  } catch (error) {
    // An error of our own after the commit point leaves a guest that another process may go on with.
    if (!migration.committed || error instanceof GygesError) forgetRecord(directory);
    throw error;
  }
  // Until then the source may come and ask.
  void migration.sourceKnows.then(() => reception[Symbol.dispose]());
  run.signal?.removeEventListener("abort", interrupt);
  const { machine } = migration;
  if (!machine) throw new Error("A migration completed without a machine");
  resident.hold(machine);
  return await untilEnded(resident, { machine, server }, run);
}

async function untilEnded(
  resident: Resident,
  { machine, server }: { machine: Machine; server: ControlServer },
  run: RunOptions,
): Promise<ExitCode> {
  const interrupt = () => void resident.interrupt();
  run.signal?.addEventListener("abort", interrupt, { once: true });
  if (run.signal?.aborted) interrupt();
  const code = await resident.ended;
  run.signal?.removeEventListener("abort", interrupt);
  await untilDestinationKnows(resident, run);
  // First, as whoever asks may ask for the guest.
  await server[Symbol.asyncDispose]();
  // A guest that is lost may never let go of its threads; the process's end takes them with it.
  if (code === EXIT.completed) await machine[Symbol.asyncDispose]();
  return code;
}

/** A guest of QEMU that leaves by this process, which ends with the move. */
interface Leaving {
  machine: Machine;
  /** QEMU is left stopped, not ended, once its guest has moved. */
  keepSource: boolean;
}

/** Moves the guest of `machine`, answering other commands meanwhile; lets go of the machine in the end. */
export async function moveGuest(
  directory: RuntimeDir,
  { ticket, migrate, ...leaving }: Leaving & { ticket: string; migrate: MigrateOptions },
  run: RunOptions,
): Promise<Summary> {
  const signal = run.signal ?? new AbortController().signal;
  return await answering(directory, leaving, run, async (resident) => {
    try {
      return await resident.migrate(parseTicket(ticket), migrate, { emit: run.onEvent, signal });
    } catch (error) {
      if (!resident.keepsPages) throw error;
      // Nobody but this process can serve the pages that the guest waits for.
      run.onEvent(toErrorEvent(error));
      return await resident.waitOn();
    }
  });
}

/**
 * Serves the pages of a guest whose process died at the source, until the destination has them all. Throws where it is
 * interrupted: another can go on.
 */
export async function serveLeft(
  directory: RuntimeDir,
  { left, ...leaving }: Leaving & { left: Left },
  run: RunOptions,
): Promise<Summary> {
  const interrupted = Promise.withResolvers<never>();
  // It may come before anybody waits for it.
  interrupted.promise.catch(() => {});
  const interrupt = () => interrupted.reject(stillAway(directory.name));
  run.signal?.addEventListener("abort", interrupt, { once: true });
  if (run.signal?.aborted) interrupt();
  const serve = (resident: Resident) => Promise.race([resident.serve(left, run.onEvent), interrupted.promise]);
  return await answering(directory, leaving, run, serve);
}

/** Does `work` with a resident that answers other commands; lets go of the machine in the end. */
async function answering<T>(
  directory: RuntimeDir,
  { machine, keepSource }: Leaving,
  run: RunOptions,
  work: (resident: Resident) => Promise<T>,
): Promise<T> {
  using _errors = outliveErrors(run.onEvent);
  // What there is to tell is told by the work itself.
  const resident = new Resident(directory.name, () => {}, keeperIn(directory, { keepSource }));
  await using held = machine;
  resident.hold(held);
  await using _server = await inRoom(directory.path, () => new ControlServer(directory.socketPath, resident.handlers));
  try {
    return await work(resident);
  } finally {
    await untilDestinationKnows(resident, run);
  }
}

/** One that cannot be reached is tried for as long as a lost link. */
async function untilDestinationKnows(resident: Resident, { onEvent }: RunOptions): Promise<void> {
  const knows = resident.destinationKnows.then(() => true);
  const within = async (ms: number) => {
    using late = delay(ms);
    return await Promise.race([knows, late.promise]) ?? false;
  };
  const note = (level: "info" | "warning", detail: string) => onEvent({ type: "note", level, detail });
  if (await within(QUIET_MS)) return;
  const seconds = DEADLINE_MS.reconnect / 1000;
  note("info", `The destination is not reached: for ${seconds} s this tries to tell it that its guest does not come`);
  if (await within(DEADLINE_MS.reconnect)) return;
  note(
    "warning",
    "The destination does not know that its guest does not come: there, end the gyges that waits by SIGKILL",
  );
}
