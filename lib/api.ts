/** What the command line may ask of the library: one function per command. */
import * as v from "valibot";
import { NativeError } from "../ffi/native_error.ts";
import { askMigration } from "./control/ask_migration.ts";
import { ControlClient } from "./control/client.ts";
import { inRoom, listRunning, RuntimeDir } from "./control/runtime_dir.ts";
import { ControlServer } from "./control/server.ts";
import { EXIT, type ExitCode, PreflightError } from "./errors.ts";
import type { GuestEvent, GygesEvent, Sample, Summary } from "./events.ts";
import { requireHost, requireMemory } from "./host/preflight.ts";
import { MicroMachine, shapeOf } from "./machine/micro.ts";
import { DestinationMigration } from "./migration/destination.ts";
import { guestSchema, sampleSchema, summarySchema } from "./monitor/summary.ts";
import type { MicroVmOptions, MigrateOptions, PrepareOptions } from "./options.ts";
import { chooseRam } from "./pager/choose.ts";
import type { Pager } from "./pager/pager.ts";
import { armInjection } from "./resident/fault_injection.ts";
import { Reception } from "./resident/reception.ts";
import { Resident } from "./resident/resident.ts";
import type { WireMachine } from "./wire/messages.ts";
import { parseTicket } from "./wire/ticket.ts";

export interface RunOptions {
  /** Called for each thing worth telling, in order. */
  onEvent: (event: GygesEvent) => void;
  /** Aborting asks for an orderly end: the first Ctrl-C. */
  signal?: AbortSignal;
}

/** Holds a new micro-VM until it is stopped or has moved away; `vm start`. */
export async function holdMicroVm(name: string, vm: MicroVmOptions, run: RunOptions): Promise<ExitCode> {
  requireHost();
  using directory = await RuntimeDir.claim(name);
  armInjection(run.onEvent);
  const machine = await buildMachine(shapeOf(vm), chooseRam(vm.pager));
  const resident = new Resident(name, run.onEvent);
  resident.hold(machine);
  machine.boot();
  machine.run();
  await using server = await inRoom(directory.path, () => new ControlServer(directory.socketPath, resident.handlers));
  run.onEvent({ type: "guest", name, guest: { location: "here", ...machine.report() } });
  return await untilEnded(resident, { machine, server }, run);
}

/** Waits for a guest, receives it and holds it from then on; `prepare --micro`. */
export async function prepareMicroVm(name: string, options: PrepareOptions, run: RunOptions): Promise<ExitCode> {
  requireHost();
  // Before a ticket is out: a pager that was asked for by name must be there.
  chooseRam(options.pager);
  using directory = await RuntimeDir.claim(name);
  armInjection(run.onEvent);
  let machine: MicroMachine | null = null;
  const migration = new DestinationMigration({
    tls: options.tls,
    onEvent: run.onEvent,
    pager: options.pager,
    build: async (shape, pager) => machine = await buildMachine(shape, pager),
  });
  const resident = new Resident(name, run.onEvent);
  using reception = await Reception.open({ ...options, name, migration, onEvent: run.onEvent });
  resident.receiveBy(migration, (error) => reception.refuse(error));
  await using server = await inRoom(directory.path, () => new ControlServer(directory.socketPath, resident.handlers));
  const interrupt = () => void resident.interrupt();
  run.signal?.addEventListener("abort", interrupt, { once: true });
  run.onEvent({ type: "ticket", ticket: reception.ticket });
  const summary = await migration.receive(await reception.source);
  reception[Symbol.dispose]();
  run.signal?.removeEventListener("abort", interrupt);
  run.onEvent(summary);
  if (!machine) throw new Error("A migration completed without a machine");
  resident.hold(machine);
  return await untilEnded(resident, { machine, server }, run);
}

/** Moves the guest that process `name` holds to the destination behind `ticket`; resolves when it is complete. */
export async function migrate(
  name: string,
  ticket: string,
  options: MigrateOptions & RunOptions,
): Promise<Summary> {
  const { onEvent, signal, ...params } = options;
  parseTicket(ticket);
  using client = await ControlClient.connect(name);
  const result = await askMigration(client, { params: { ticket, ...params }, onEvent, ...(signal ? { signal } : {}) });
  return v.parse(summarySchema, result);
}

/** Samples of process `name`, one each `intervalMs`, until it ends or `signal` aborts. */
export async function* monitor(
  name: string,
  options: { intervalMs: number; signal?: AbortSignal },
): AsyncIterable<Sample> {
  using client = await ControlClient.connect(name);
  const queue: Sample[] = [];
  let wake = Promise.withResolvers<void>();
  let over = false;
  const ended = client.call("monitor", { interval_ms: options.intervalMs }, {
    onEvent(event) {
      if (event.type === "sample") queue.push(event);
      wake.resolve();
    },
    ...(options.signal ? { signal: options.signal } : {}),
  }).catch((error) => {
    // The process ends when its guest has moved away or was stopped, and an operator detaches: both are ordinary.
    if (!(options.signal?.aborted ?? false) && queue.length === 0 && !over) return error;
  }).finally(() => {
    over = true;
    wake.resolve();
  });
  while (!over || queue.length > 0) {
    const sample = queue.shift();
    if (sample) yield sample;
    else {
      await wake.promise;
      wake = Promise.withResolvers();
    }
  }
  const error = await ended;
  if (error instanceof Error) throw error;
}

/** Cancels the migration that process `name` is making; resolves once the guest runs at the source again. */
export async function cancel(name: string): Promise<void> {
  using client = await ControlClient.connect(name);
  await client.call("cancel");
}

/** The guest's own report; with `verify` the guest is stopped for a moment and all of its RAM checked by the host. */
export async function vmStatus(name: string, options: { verify: boolean }): Promise<GuestEvent> {
  using client = await ControlClient.connect(name);
  return v.parse(guestSchema, await client.call("status", options));
}

/** Names of the processes that own a directory here and answer, with what they are doing. */
export async function vmList(): Promise<Sample[]> {
  const samples = await Promise.allSettled(
    listRunning().map(async ({ name }) => {
      using client = await ControlClient.connect(name);
      return v.parse(sampleSchema, await client.call("sample", {}, { timeoutMs: 2_000 }));
    }),
  );
  return samples.flatMap((sample) => sample.status === "fulfilled" ? [sample.value] : []);
}

/** Stops the guest, checks all of its RAM, ends the process that holds it. */
export async function vmStop(name: string): Promise<GuestEvent> {
  using client = await ControlClient.connect(name);
  return v.parse(guestSchema, await client.call("stop"));
}

async function buildMachine(shape: WireMachine, pager: Pager): Promise<MicroMachine> {
  requireMemory(shape.ram_bytes);
  try {
    return await MicroMachine.create(shape, { ram: pager.makeRam(shape.ram_bytes), pager: pager.kind });
  } catch (cause) {
    if (!(cause instanceof NativeError)) throw cause;
    throw new PreflightError(cause.message, {
      check: "kvm",
      remedy: "run gyges doctor, which names what to mend",
      cause,
    });
  }
}

async function untilEnded(
  resident: Resident,
  { machine, server }: { machine: MicroMachine; server: ControlServer },
  run: RunOptions,
): Promise<ExitCode> {
  const interrupt = () => void resident.interrupt();
  run.signal?.addEventListener("abort", interrupt, { once: true });
  if (run.signal?.aborted) interrupt();
  const code = await resident.ended;
  run.signal?.removeEventListener("abort", interrupt);
  // First, as whoever asks may ask for the guest.
  await server[Symbol.asyncDispose]();
  // A guest that is lost may never let go of its threads; the process's end takes them with it.
  if (code === EXIT.completed) await machine[Symbol.asyncDispose]();
  return code;
}
