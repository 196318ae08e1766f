/**
 * A guest of stock QEMU as a Machine: its monitor stops and continues it, its own migration stream carries CPU and device
 * state, and its RAM is in shared files that this process maps too. Where it is not, QEMU's own migration moves all.
 */
import * as v from "valibot";
import { Guard } from "../../ffi/guard.ts";
import { scansUndrained } from "../../ffi/inject.ts";
import { NativeError } from "../../ffi/native_error.ts";
import type { PageSet } from "../../ffi/page_set.ts";
import { NativeProcess } from "../../ffi/process.ts";
import { PAGE_BYTES, Ram } from "../../ffi/ram.ts";
import { WriteTracker } from "../../ffi/write_tracker.ts";
import { PreflightError, UsageError } from "../errors.ts";
import type { GuestReport } from "../events.ts";
import type { PagerKind } from "../options.ts";
import { whyDiscarding } from "../qemu/discards.ts";
import { MachineStateError } from "../qemu/errors.ts";
import { machineFacts, statusOf, unmovable } from "../qemu/facts.ts";
import { type Backend, backendsOf, type GuestRam, machineBytes, mapRam, whyNotShared } from "../qemu/guest_ram.ts";
import { lastWordsIn } from "../qemu/launch.ts";
import { OwnMigration, whyOutOfReach } from "../qemu/own_migration.ts";
import { QmpClient, QmpCommandError, type QmpEvent, QmpLostError } from "../qemu/qmp.ts";
import {
  awaitState,
  blockersOf,
  type Capabilities,
  giveState,
  openStream,
  resetCapabilities,
  setCapabilities,
  takeState,
} from "../qemu/state_stream.ts";
import { formatBytes } from "../units.ts";
import type { WireQemu } from "../wire/messages.ts";
import { type Machine, type MachineEvent, NotRunError, type Remains, type StatePiece } from "./machine.ts";

/** Loading may touch guest RAM, which then comes over the network. */
const STATE_MS = 5_000;
const RUN_MS = 5_000;
/** For a guest to power off when it is asked to. */
const POWER_DOWN_MS = 30_000;
const QUIT_MS = 5_000;
/** For the monitor of a guest that may wait for a page. */
const ADOPT_MS = 2_000;
/** QEMU's word for a guest that is loaded, or about to be, and has not run. */
const NOT_RUN: readonly string[] = ["paused", "inmigrate"];
const ANNOUNCE_MS = 600_000;
/** What a state may have besides what its ROM and video memory explain. */
const STATE_SLACK_BYTES = 1 << 20;
/** As libvirt and QEMU have it: five announcements within the first second. */
const ANNOUNCE = { initial: 50, max: 550, rounds: 5, step: 100 } as const;

export interface QemuMachineOptions {
  process: NativeProcess;
  qmp: QmpClient;
  /** Private to this process: for the socket that state goes through. */
  folder: string;
  /** Where the RAM files are decides. */
  pagerOf: (files: readonly string[]) => PagerKind;
  /** It waits for a guest: until it has run, it is ours to end. */
  waiting: boolean;
  /** Not ended when its guest has moved away. @default false */
  keep?: boolean;
  /** QEMU's own migration moves it, wherever its RAM is. @default where its RAM is not all in shared files */
  native?: boolean;
}

export class QemuMachine implements Machine {
  readonly shape: WireQemu;
  readonly ramBytes: number;
  readonly own?: OwnMigration;
  readonly pager: PagerKind;
  readonly maxStateBytes: number;
  readonly remains: Remains;
  readonly #process: NativeProcess;
  readonly #qmp: QmpClient;
  readonly #folder: string;
  readonly #keep: boolean;
  readonly #ram: Ram | null;
  readonly #ended = Promise.withResolvers<string>();
  readonly #events: MachineEvent[] = [];
  readonly #listening: Disposable;
  #wake = Promise.withResolvers<void>();
  /** As they were before prepareSave(). */
  #capabilities: Capabilities | null = null;
  /** What its state will go through. */
  #state: Deno.UnixConn | null = null;
  #tracker: WriteTracker | null = null;
  /** At the source, while we stop and continue the guest; at the destination, until it has one. */
  #guard: Guard | null = null;
  #waiting: boolean;
  #restored = false;
  #running: boolean;
  /** Whoever stopped it, it stands by our word: its disks' requests are done. */
  #still = false;
  /** It ran until we stopped it. */
  #stoppedByUs = false;
  /** How the guest ended by its own word, before its process went. */
  #shutdown: string | null = null;
  #over = false;

  private constructor(options: QemuMachineOptions, { shape, backends, ram, pager, running }: Found) {
    this.shape = shape;
    this.ramBytes = shape.ram_bytes;
    this.#ram = ram;
    this.remains = { shape, backends };
    if (!ram) this.own = new OwnMigration(options.qmp, `${options.folder}/qemu.sock`);
    this.pager = pager;
    this.maxStateBytes = shape.state_bytes_at_most;
    this.#process = options.process;
    this.#qmp = options.qmp;
    this.#folder = options.folder;
    this.#keep = options.keep ?? false;
    this.#waiting = options.waiting;
    this.#running = running;
    this.#listening = this.#qmp.listen((event) => this.#heard(event));
    void this.#qmp.closed.then((reason) => this.#lost(reason));
  }

  /** Takes process and monitor over, also when it throws. Throws PreflightError: its RAM cannot be moved, or not seen. */
  static async create(options: QemuMachineOptions): Promise<QemuMachine> {
    try {
      const machine = new QemuMachine(options, await look(options));
      if (options.waiting) {
        machine.#guard = Guard.toKill(options.process.pid);
        if (machine.pager === "user") await tryFaults(machine.ram);
        if (!machine.own) machine.#state = await awaitState(options.qmp, machine.#stream);
      }
      return machine;
    } catch (error) {
      options.qmp[Symbol.dispose]();
      if (options.waiting) options.process.kill();
      options.process[Symbol.dispose]();
      throw error;
    }
  }

  get ram(): Ram {
    if (!this.#ram) throw new Error(`The RAM of process ${this.pid} is its own`);
    return this.#ram;
  }

  /**
   * One that a process which died has left at a destination, loaded, and perhaps `taken` for good. Throws PreflightError:
   * its RAM is not seen. It may have to wait for a page before its monitor answers: then it runs.
   */
  static async adopt(
    options: Omit<QemuMachineOptions, "waiting">,
    { shape, backends }: Remains,
    taken: boolean,
  ): Promise<QemuMachine> {
    const { process, qmp, pagerOf } = options;
    const found = backends && mapRam(backends, process);
    const status = await statusWithin(qmp, ADOPT_MS);
    const machine = new QemuMachine({ ...options, waiting: !taken && NOT_RUN.includes(status ?? "") }, {
      shape,
      backends,
      ram: found && attach(process, found),
      pager: found ? pagerOf(found.files) : "native",
      running: status === null || status === "running",
    });
    machine.#restored = true;
    if (machine.#running) machine.#announce();
    return machine;
  }

  /** It has a guest that has not run here. */
  get waiting(): boolean {
    return this.#waiting;
  }

  get running(): boolean {
    return this.#running;
  }

  get held(): boolean {
    return !this.#running && !this.#stoppedByUs;
  }

  get ended(): Promise<string> {
    return this.#ended.promise;
  }

  get pid(): number {
    return this.#process.pid;
  }

  async run(): Promise<void> {
    await this.#takeGuest();
    await this.#qmp.call("cont", {}, RUN_MS).catch((error) => this.#notRun(error));
    const { status, running } = await statusOf(this.#qmp);
    if (!running) throw new PreflightError(`QEMU's guest does not run but is "${status}"`, RUN_LACK);
    this.#running = true;
    this.#still = this.#stoppedByUs = false;
    this.#waiting = false;
    if (this.#restored) this.#announce();
  }

  /** Whoever lets it run later, by whichever monitor, has it announced then. */
  async stayStopped(): Promise<void> {
    await this.#takeGuest();
    this.#waiting = false;
  }

  async #takeGuest(): Promise<void> {
    if (this.own && this.#restored) await this.own.untilLoaded();
    // With a guest it is no more of no use.
    if (this.#waiting) this.#dismissGuard();
  }

  /** QEMU's status decides: one that has begun to run is paused only by our word. Throws. */
  async #notRun(error: unknown): Promise<never> {
    if (!(error instanceof QmpCommandError)) throw error;
    const { status } = await statusOf(this.#qmp);
    if (status === "paused") throw new NotRunError(error.message, { cause: error });
    throw error;
  }

  /** Switches learn where the guest is now; it does not wait for that. */
  #announce(): void {
    this.#restored = false;
    void this.#qmp.ready(ANNOUNCE_MS).then(() => this.#qmp.call("announce-self", ANNOUNCE)).catch(() => {});
  }

  /** QEMU answers once its disks' requests are done too. */
  async stop(timeoutMs: number): Promise<void> {
    this.#stoppedByUs ||= this.#running;
    await this.#qmp.call("stop", {}, timeoutMs);
    this.#running = false;
    this.#still = true;
  }

  /** A guest that we stop, for however short a time, runs on if we die. One that somebody else has stopped does not. */
  #standGuard(): void {
    if (this.#running) this.#guard ??= Guard.toRun(this.#qmp.path);
  }

  #dismissGuard(): void {
    this.#guard?.[Symbol.dispose]();
    this.#guard = null;
  }

  giveAway(): void {
    this.#dismissGuard();
  }

  async checkMovable(): Promise<void> {
    const { status } = await statusOf(this.#qmp);
    const remedy = unmovable(status);
    if (remedy !== null) throw new PreflightError(`QEMU's guest is "${status}"`, { check: "qemu", remedy });
  }

  async prepareSave(): Promise<void> {
    this.#standGuard();
    if (this.own) return;
    // Over RDMA all of RAM has become present since the last look.
    await this.#tracker?.prepare();
    this.#capabilities ??= await setCapabilities(this.#qmp);
    this.#state ??= await openStream(this.#qmp, this.#stream);
  }

  async undoSave(): Promise<void> {
    await this.own?.undo();
    const before = this.#capabilities;
    this.#capabilities = null;
    this.#closeStream();
    this.#dismissGuard();
    if (before) await resetCapabilities(this.#qmp, before);
  }

  save(): AsyncIterable<StatePiece> {
    return takeState(this.#qmp, { stream: this.#takeStream(), timeoutMs: STATE_MS, maxBytes: this.maxStateBytes });
  }

  async restore(pieces: AsyncIterable<Uint8Array<ArrayBuffer>>): Promise<void> {
    this.#restored = true;
    // QEMU loads by itself what it is sent by the other, which from some moment on cannot run its guest again.
    if (this.own) return this.#dismissGuard();
    await giveState(this.#qmp, pieces, { stream: this.#takeStream(), timeoutMs: STATE_MS }).catch((cause) => {
      // Other errors are of what the source sends.
      if (!(cause instanceof MachineStateError || cause instanceof QmpLostError)) throw cause;
      const why = `${cause.message}${lastWordsIn(this.#folder)}`;
      throw new MachineStateError(`The destination's QEMU cannot load the guest: ${why}`, { cause });
    });
    const { status } = await statusOf(this.#qmp);
    if (status !== "paused") throw new PreflightError(`QEMU has loaded its guest and is "${status}"`, RUN_LACK);
  }

  get #stream() {
    return { process: this.#process, socketPath: `${this.#folder}/state.sock` };
  }

  /** It carries one state. */
  #takeStream(): Deno.UnixConn {
    const stream = this.#state;
    this.#state = null;
    if (!stream) throw new Error(`Nothing was opened for the state of process ${this.pid}`);
    return stream;
  }

  #closeStream(): void {
    this.#state?.[Symbol.dispose]();
    this.#state = null;
  }

  async dirtyStart(): Promise<string> {
    this.#standGuard();
    try {
      const tracker = this.#tracker = await WriteTracker.open(this.ram);
      await this.#drained(() => tracker.start());
      return tracker.way;
    } catch (cause) {
      await this.dirtyStop();
      if (!(cause instanceof NativeError)) throw cause;
      throw new PreflightError(cause.message, {
        check: "dirty-tracking",
        remedy: "use --mode full --transport tcp, which needs no tracking",
        cause,
      });
    }
  }

  /**
   * With the guest stopped for the moment of the look: a page that a disk is reading into by direct I/O is marked when
   * that begins, and its content comes later without a mark. By soft-dirty bits what is written during the look is lost,
   * whoever writes it.
   */
  async dirtyCollect(set: PageSet): Promise<number> {
    const tracker = this.#tracker;
    if (!tracker) throw new Error("Writes are not tracked");
    if (this.#running) await tracker.prepare();
    return await this.#drained(() => tracker.collect(set));
  }

  async dirtyStop(): Promise<void> {
    await this.#tracker?.[Symbol.asyncDispose]();
    this.#tracker = null;
  }

  async #drained<T>(look: () => Promise<T>): Promise<T> {
    if (scansUndrained()) return await look();
    if (!this.#running) {
      // One that has stopped by itself, as for a disk's error, says so before its other requests are done.
      if (!this.#still) await statusOf(this.#qmp);
      return await look();
    }
    this.#stoppedByUs = true;
    await this.#qmp.call("stop");
    try {
      return await look();
    } finally {
      await this.#qmp.call("cont");
    }
  }

  whyDiscarding(): Promise<string | null> {
    return whyDiscarding(this.#qmp);
  }

  report(): Omit<GuestReport, "location"> {
    return {
      running: this.#running,
      vcpus: this.shape.vcpus,
      ram_bytes: this.ramBytes,
      passes: null,
      verified_pages: null,
      written_pages: null,
      corrupt: null,
      first_corrupt_page: null,
      largest_stall_ns: null,
      clock_backsteps: null,
    };
  }

  resetStall(): void {}

  checkRam(): Promise<null> {
    return Promise.resolve(null);
  }

  async wait(timeoutMs: number): Promise<MachineEvent | null> {
    const event = this.#events.shift();
    if (event) return event;
    const late = Promise.withResolvers<void>();
    const timer = setTimeout(() => late.resolve(), timeoutMs);
    await Promise.race([this.#wake.promise, late.promise]);
    clearTimeout(timer);
    this.#wake = Promise.withResolvers();
    return this.#events.shift() ?? null;
  }

  async shutDown(): Promise<void> {
    // One that does not run hears nothing.
    if (!this.#running) return await this.abandon();
    await this.#qmp.call("system_powerdown");
    if (await this.#process.ended(POWER_DOWN_MS)) {
      this.#running = false;
      return;
    }
    throw new UsageError(
      `The guest of process ${this.pid} has not powered off within ${
        POWER_DOWN_MS / 1000
      } s of being asked to: shut it ` +
        "down from inside, or end QEMU by its monitor's quit",
    );
  }

  async abandon(): Promise<void> {
    if (this.#keep) return await this.undoSave();
    this.#over = true;
    await this.#quit();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#over && this.#process.gone) return;
    this.#over = true;
    await this.dirtyStop();
    if (this.#waiting) await this.#quit();
    this.#closeStream();
    this.#dismissGuard();
    this.#listening[Symbol.dispose]();
    this.#qmp[Symbol.dispose]();
    this.#ram?.[Symbol.dispose]();
    this.#process[Symbol.dispose]();
  }

  /** One that is stuck on a page that never comes does not hear of it. */
  async #quit(): Promise<void> {
    await this.#qmp.call("quit", {}, QUIT_MS).catch(() => {});
    if (await this.#process.ended(QUIT_MS)) return;
    this.#process.kill();
    await this.#process.ended(QUIT_MS);
  }

  #heard(event: QmpEvent): void {
    const { name, data } = event;
    if (name === "STOP") this.#running = false;
    if (name === "RESUME") {
      this.#running = true;
      this.#still = this.#stoppedByUs = false;
      if (this.#restored && !this.#waiting) this.#announce();
    }
    if (name === "SHUTDOWN") this.#shutdown = reasonOf(data);
    if (name === "GUEST_PANICKED") this.#tell({ type: "failed", text: "its kernel has panicked" });
  }

  #lost(reason: QmpLostError): void {
    this.#running = false;
    if (this.#over) return;
    const text = this.#shutdown ?? `QEMU, process ${this.pid}, has ended (${reason.message})`;
    this.#tell({ type: this.#shutdown === null ? "failed" : "ended", text });
    this.#ended.resolve(text);
  }

  #tell(event: MachineEvent): void {
    this.#events.push(event);
    this.#wake.resolve();
  }
}

const RUN_LACK = {
  check: "qemu",
  remedy: "look at its log and at query-status in its monitor",
} as const;

function reasonOf(data: unknown): string {
  const parsed = v.safeParse(v.object({ reason: v.string() }), data);
  return parsed.success ? parsed.output.reason : "shutdown";
}

/** Null: the monitor does not answer yet. */
async function statusWithin(qmp: QmpClient, timeoutMs: number): Promise<string | null> {
  try {
    await qmp.ready(timeoutMs);
    return (await statusOf(qmp)).status;
  } catch (error) {
    if (!(error instanceof QmpLostError)) throw error;
    return null;
  }
}

interface Found {
  shape: WireQemu;
  /** null, as is RAM: they are QEMU's own affair. */
  backends: Backend[] | null;
  ram: Ram | null;
  pager: PagerKind;
  running: boolean;
}

async function look(options: QemuMachineOptions): Promise<Found> {
  const { process, qmp, pagerOf, waiting } = options;
  const [blocker] = waiting ? [] : await blockersOf(qmp);
  if (blocker !== undefined) {
    throw new PreflightError(`This guest cannot move, says its QEMU: ${blocker}`, {
      check: "qemu",
      remedy: "detach what it names, or stop using it; gyges describe --qmp SOCKET shows what is left",
    });
  }
  const backends = await backendsOf(qmp);
  const machine = await machineBytes(qmp);
  const found = options.native || whyNotShared(backends, machine) !== null ? null : mapRam(backends, process);
  const outOfReach = found ? null : whyOutOfReach(process);
  if (outOfReach !== null) {
    throw new PreflightError(`The native pager cannot move this guest: ${outOfReach}`, {
      check: "qemu",
      remedy: "have its RAM in shared files, which Gyges moves by itself, or run QEMU as root",
    });
  }
  const { running, vcpus, machineType } = await machineFacts(qmp);
  const ram = found && attach(process, found);
  try {
    const shape: WireQemu = {
      kind: "qemu",
      ram_bytes: ram?.bytes ?? machine,
      page_bytes: PAGE_BYTES,
      vcpus,
      version: qmp.version,
      machine_type: machineType,
      regions: backends.map(({ id, bytes }) => ({ id, bytes })),
      state_bytes_at_most: found ? STATE_SLACK_BYTES + await otherBlocksBytes(qmp, found) : 0,
    };
    return { shape, backends: found && backends, ram, pager: found ? pagerOf(found.files) : "native", running };
  } catch (error) {
    ram?.[Symbol.dispose]();
    throw error;
  }
}

function attach(process: NativeProcess, { pieces, backends }: GuestRam): Ram {
  try {
    return Ram.attach(process.pid, pieces);
  } catch (cause) {
    if (!(cause instanceof NativeError)) throw cause;
    const size = formatBytes(backends.reduce((sum, { bytes }) => sum + bytes, 0));
    throw new PreflightError(`${cause.message} (${size} in ${pieces.length} files)`, {
      check: "guest-ram",
      remedy: "run gyges as root",
      cause,
    });
  }
}

/** Rather now than when a source has come. */
async function tryFaults(ram: Ram): Promise<void> {
  try {
    await ram.tryFaults();
  } catch (cause) {
    if (!(cause instanceof NativeError)) throw cause;
    throw new PreflightError(cause.message, {
      check: "userfaultfd",
      remedy: cause.code === "EBUSY"
        ? "end the debugger, and run gyges as root"
        : "use a kernel that has /dev/userfaultfd (Linux 6.1), or run: sysctl -w vm.unprivileged_userfaultfd=1, or " +
          "start QEMU as root",
      cause,
    });
  }
}

/** RAM blocks besides the backends: ROMs, video memory. They are in QEMU's stream. */
async function otherBlocksBytes(qmp: QmpClient, { backends }: GuestRam): Promise<number> {
  const text = await qmp.ask(v.string(), "human-monitor-command", { "command-line": "info ramblock" });
  const ours = backends.reduce((sum, { bytes }) => sum + bytes, 0);
  return Math.max(0, ramBlockBytes(text) - ours);
}

/** Sum of what "info ramblock" has as used. */
export function ramBlockBytes(text: string): number {
  let bytes = 0;
  for (const line of text.split("\n")) {
    const numbers = line.match(/0x[0-9a-f]{16}/g);
    // Offset, used, total; then newer QEMUs have the address.
    if (numbers && numbers.length >= 3) bytes += Number(BigInt(numbers[1] ?? "0"));
  }
  return bytes;
}
