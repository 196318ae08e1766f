/** What the command line may ask of the library: one function per command. */
import * as v from "valibot";
import { NativeError } from "../ffi/native_error.ts";
import { askMigration } from "./control/ask_migration.ts";
import { ControlClient, ControlError } from "./control/client.ts";
import { listRunning, listSurvivors, runtimeBase, RuntimeDir, type Survivor } from "./control/runtime_dir.ts";
import { type ExitCode, HandshakeError, PreflightError } from "./errors.ts";
import type { GuestEvent, Sample, Summary } from "./events.ts";
import { requireHost, requireMemory } from "./host/preflight.ts";
import { MicroMachine, shapeOf } from "./machine/micro.ts";
import { guestSchema, sampleSchema, summarySchema } from "./monitor/summary.ts";
import { pause } from "./migration/timing.ts";
import type { MicroVmOptions, MigrateOptions, PrepareOptions } from "./options.ts";
import { chooseRam } from "./pager/choose.ts";
import type { Pager } from "./pager/pager.ts";
import { armInjection } from "./resident/fault_injection.ts";
import { holdGuest, receiveGuest, type RunOptions } from "./resident/serve.ts";
import type { WireMachine, WireMicro } from "./wire/messages.ts";
import { parseTicket } from "./wire/ticket.ts";

/** Holds a new micro-VM until it is stopped or has moved away; `vm start`. */
export async function holdMicroVm(name: string, vm: MicroVmOptions, run: RunOptions): Promise<ExitCode> {
  requireHost();
  using directory = await RuntimeDir.claim(name);
  armInjection(run.onEvent);
  const machine = await buildMicro(shapeOf(vm), chooseRam(vm.pager));
  const start = () => {
    machine.boot();
    return machine.run();
  };
  return await holdGuest(directory, { machine, start }, run);
}

/** Waits for a guest, receives it and holds it from then on; `prepare --micro`. */
export async function prepareMicroVm(name: string, options: PrepareOptions, run: RunOptions): Promise<ExitCode> {
  requireHost();
  // Before a ticket is out: a pager that was asked for by name must be there.
  chooseRam(options.pager);
  using directory = await RuntimeDir.claim(name);
  armInjection(run.onEvent);
  return await receiveGuest(directory, { options, build: buildMachine }, run);
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

export interface MonitorOptions {
  intervalMs: number;
  signal?: AbortSignal;
}

/** Samples of process `name`, one each `intervalMs`, until it ends or `signal` aborts; if it has died, of its guest. */
export async function* monitor(name: string, options: MonitorOptions): AsyncIterable<Sample> {
  const client = await ControlClient.connect(name).catch((error) => error);
  if (client instanceof ControlClient) yield* monitorProcess(client, options);
  else yield* monitorUnattended(name, client, options);
}

/** Throws `why` where no guest of process `name`, which has died, is left that the kernel moves. */
async function* monitorUnattended(name: string, why: unknown, options: MonitorOptions): AsyncIterable<Sample> {
  if (!(why instanceof ControlError && why.failure === "stale")) throw why;
  const { UnattendedGuest } = await import("./qemu/unattended.ts");
  await using guest = await UnattendedGuest.open(name, `${runtimeBase()}/${name}`);
  if (!guest) throw why;
  do {
    yield guest.sample();
    await pause(options.intervalMs, options.signal);
  } while (!options.signal?.aborted && !await guest.ended(0));
}

async function* monitorProcess(process: ControlClient, options: MonitorOptions): AsyncIterable<Sample> {
  using client = process;
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

/** Cancels the migration that process `name` is making; resolves once the guest is at the source as it was. */
export async function cancel(name: string): Promise<void> {
  using client = await ControlClient.connect(name);
  await client.call("cancel");
}

/** The guest's own report; with `verify` the guest is stopped for a moment and all of its RAM checked by the host. */
export async function vmStatus(name: string, options: { verify: boolean }): Promise<GuestEvent> {
  using client = await ControlClient.connect(name);
  return v.parse(guestSchema, await client.call("status", options));
}

/** What the processes do that own a directory here and answer, and the QEMUs that those which died have left. */
export async function vmList(): Promise<{ samples: Sample[]; survivors: Survivor[] }> {
  const samples = await Promise.allSettled(
    listRunning().map(async ({ name }) => {
      using client = await ControlClient.connect(name);
      return v.parse(sampleSchema, await client.call("sample", {}, { timeoutMs: 2_000 }));
    }),
  );
  return {
    samples: samples.flatMap((sample) => sample.status === "fulfilled" ? [sample.value] : []),
    survivors: await listSurvivors(),
  };
}

/** Stops the guest, checks all of its RAM, ends the process that holds it. */
export async function vmStop(name: string): Promise<GuestEvent> {
  using client = await ControlClient.connect(name);
  return v.parse(guestSchema, await client.call("stop"));
}

async function buildMachine(shape: WireMachine, pager: Pager): Promise<MicroMachine> {
  if (shape.kind === "micro") return await buildMicro(shape, pager);
  throw new HandshakeError(
    "The source's machine is a QEMU and this side waits for a micro-VM: run gyges prepare NAME -- qemu-system-x86_64 ...",
    { field: "machine", ours: "micro", theirs: shape.kind },
  );
}

async function buildMicro(shape: WireMicro, pager: Pager): Promise<MicroMachine> {
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
