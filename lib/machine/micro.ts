/** The micro-VM as a Machine. */
import { MicroVm } from "../../ffi/micro_vm.ts";
import type { PageSet } from "../../ffi/page_set.ts";
import { PAGE_BYTES, type Ram } from "../../ffi/ram.ts";
import { joined } from "../bytes.ts";
import type { GuestReport, RamCheck } from "../events.ts";
import type { MicroVmOptions, PagerKind } from "../options.ts";
import type { WireMicro } from "../wire/messages.ts";
import type { Machine, MachineEvent, StatePiece } from "./machine.ts";

/** The RAM file of a new machine, and the pager that made it. */
export interface MicroMachineRam {
  ram: Ram;
  pager: PagerKind;
}

const STOP_MS = 2_000;
/** Eight vCPUs with all their state are far smaller. */
const MAX_STATE_BYTES = 1 << 20;

export class MicroMachine implements Machine {
  readonly maxStateBytes = MAX_STATE_BYTES;
  readonly shape: WireMicro;
  readonly ram: Ram;
  readonly pager: PagerKind;
  readonly #vm: MicroVm;
  #running = false;

  private constructor(shape: WireMicro, { ram, pager }: MicroMachineRam, vm: MicroVm) {
    this.shape = shape;
    this.ram = ram;
    this.pager = pager;
    this.#vm = vm;
  }

  /** A machine with parked vCPUs on empty RAM, which it takes over, also when it throws. Throws NativeError. */
  static async create(shape: WireMicro, made: MicroMachineRam): Promise<MicroMachine> {
    const { ram } = made;
    try {
      const vm = await MicroVm.create(ram, {
        vcpus: shape.vcpus,
        irqchip: shape.irqchip,
        workload: shape.workload,
        writePer1024: shape.write_per_1024,
        workingSetBytes: shape.working_set_bytes,
        ratePagesPerSecond: shape.rate_pages_per_s,
        seed: BigInt(shape.seed),
      });
      return new MicroMachine(shape, made, vm);
    } catch (error) {
      ram[Symbol.dispose]();
      throw error;
    }
  }

  get ramBytes(): number {
    return this.ram.bytes;
  }

  get running(): boolean {
    return this.#running;
  }

  boot(): void {
    this.#vm.boot();
  }

  run(): Promise<void> {
    this.#vm.run();
    this.#running = true;
    return Promise.resolve();
  }

  async stop(timeoutMs: number): Promise<void> {
    await this.#vm.stop(timeoutMs);
    this.#running = false;
  }

  prepareSave(): Promise<void> {
    return Promise.resolve();
  }

  /** It goes with this process. */
  giveAway(): void {}

  undoSave(): Promise<void> {
    return Promise.resolve();
  }

  async *save(): AsyncGenerator<StatePiece> {
    yield await Promise.resolve({ bytes: this.#vm.save(), more: false });
  }

  async restore(pieces: AsyncIterable<Uint8Array<ArrayBuffer>>): Promise<void> {
    await this.#vm.restore(joined(await Array.fromAsync(pieces)));
  }

  async dirtyStart(): Promise<string> {
    await this.#vm.dirtyStart();
    return "KVM's dirty log";
  }

  dirtyCollect(set: PageSet): Promise<number> {
    return this.#vm.dirtyCollect(set);
  }

  dirtyStop(): Promise<void> {
    return this.#vm.dirtyStop();
  }

  report(): Omit<GuestReport, "location"> {
    const report = this.#vm.report();
    return {
      running: this.#running,
      vcpus: report.vcpus,
      ram_bytes: this.ram.bytes,
      passes: report.passes,
      verified_pages: report.verifiedPages,
      written_pages: report.writtenPages,
      corrupt: report.corrupt,
      first_corrupt_page: report.firstCorruptPage,
      largest_stall_ns: report.largestStallNs,
      clock_backsteps: report.clockBacksteps,
    };
  }

  resetStall(): void {
    this.#vm.resetStall();
  }

  async checkRam(): Promise<RamCheck | null> {
    const check = await this.#vm.checkRam();
    return {
      pages: check.pages,
      filled_pages: check.filledPages,
      zero_pages: check.zeroPages,
      bad_pages: check.badPages,
      first_bad_page: check.firstBadPage,
    };
  }

  /** The next thing the guest tells; null when it told nothing in time. */
  wait(timeoutMs: number): Promise<MachineEvent | null> {
    return this.#vm.wait(timeoutMs);
  }

  shutDown(): Promise<void> {
    return this.stop(STOP_MS);
  }

  /** Its memory goes with the process. */
  abandon(): Promise<void> {
    return Promise.resolve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#vm[Symbol.asyncDispose]();
    this.ram[Symbol.dispose]();
  }
}

/** What `vm start` asks for, as a machine. */
export function shapeOf(options: MicroVmOptions): WireMicro {
  return {
    kind: "micro",
    ram_bytes: options.ramBytes,
    page_bytes: PAGE_BYTES,
    vcpus: options.vcpus,
    irqchip: options.irqchip,
    workload: options.workload,
    write_per_1024: Math.round(options.writeRatio * 1024),
    working_set_bytes: options.workingSetBytes,
    rate_pages_per_s: options.ratePagesPerSecond,
    seed: crypto.getRandomValues(new BigUint64Array(1))[0]?.toString() ?? "1",
  };
}
