/** The micro-VM: a KVM machine whose guest proves its own memory. */
import { Handle, OutPointer, OutText, type Pointer } from "./handle.ts";
import { shim } from "./library.ts";
import { ERRNO, NativeError, unwrap } from "./native_error.ts";
import type { PageSet } from "./page_set.ts";
import { HIST_BYTES, type Histogram, readHistogram } from "./page_stats.ts";
import type { Ram } from "./ram.ts";

export const WORKLOAD = { uniform: 1, sequential: 2, zipf: 3 } as const;
const FLAG_IRQCHIP = 1;
const CONFIG_BYTES = 56;
const REPORT_COUNTERS = 12;
const NONE = 0xffff_ffff_ffff_ffffn;

/** struct gy_vm_config. */
export interface MicroVmConfig {
  vcpus: number;
  irqchip: boolean;
  workload: keyof typeof WORKLOAD;
  writePer1024: number;
  workingSetBytes: number;
  ratePagesPerSecond: number;
  seed: bigint;
}

/** struct gy_guest_report. */
export interface NativeGuestReport {
  vcpus: number;
  booted: boolean;
  running: boolean;
  passes: number;
  verifiedPages: number;
  writtenPages: number;
  corrupt: number;
  firstCorruptPage: number | null;
  largestStallNs: number;
  clockBacksteps: number;
  /** vCPUs whose report page is still at the source; their share is not in the sums. */
  unreadVcpus: number;
  stall: Histogram;
}

/** struct gy_ram_check. */
export interface NativeRamCheck {
  pages: number;
  filledPages: number;
  zeroPages: number;
  badPages: number;
  firstBadPage: number | null;
}

export type MicroVmEvent =
  | { type: "booted" }
  | { type: "corrupt" }
  | { type: "failed"; text: string };

function encodeConfig(config: MicroVmConfig): Uint8Array<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(CONFIG_BYTES));
  view.setUint32(0, config.vcpus, true);
  view.setUint32(4, config.irqchip ? FLAG_IRQCHIP : 0, true);
  view.setUint32(8, WORKLOAD[config.workload], true);
  view.setUint32(12, config.writePer1024, true);
  view.setBigUint64(16, BigInt(config.workingSetBytes), true);
  view.setBigUint64(24, BigInt(config.ratePagesPerSecond), true);
  view.setBigUint64(32, config.seed, true);
  return new Uint8Array(view.buffer);
}

function pageOrNull(page: bigint): number | null {
  return page === NONE ? null : Number(page);
}

export class MicroVm extends Handle implements AsyncDisposable {
  #waiting: Promise<number> = Promise.resolve(0);

  private constructor(pointer: Pointer) {
    super(pointer);
  }

  /** Makes a machine with parked vCPUs; `ram` must outlive it. Throws NativeError with KVM's reason in words. */
  static async create(ram: Ram, config: MicroVmConfig): Promise<MicroVm> {
    const out = new OutPointer();
    const err = new OutText();
    const raw = encodeConfig(config);
    const result = await shim().gy_vm_create(ram.pointer, raw, out.cell, err.bytes, err.bytes.length);
    unwrap("make the micro-VM", result, err.text);
    return new MicroVm(out.take("make the micro-VM"));
  }

  /** Loads the guest program. */
  boot(): void {
    unwrap("boot the micro-VM", shim().gy_vm_boot(this.pointer));
  }

  run(): void {
    unwrap("run the micro-VM", shim().gy_vm_run(this.pointer));
  }

  /** No vCPU runs when it resolves. Throws NativeError ETIMEDOUT when one waits for a page that does not come. */
  async stop(timeoutMs: number): Promise<void> {
    unwrap("stop the micro-VM", await shim().gy_vm_stop(this.pointer, timeoutMs));
  }

  /** State of the stopped machine. */
  save(): Uint8Array<ArrayBuffer> {
    const bound = unwrap("size the machine's state", shim().gy_vm_state_bytes(this.pointer));
    const buffer = new Uint8Array(bound);
    const err = new OutText();
    const result = shim().gy_vm_save(this.pointer, buffer, BigInt(bound), err.bytes, err.bytes.length);
    return buffer.subarray(0, unwrap("save the machine's state", result, err.text));
  }

  /** Throws NativeError: EBADMSG damaged, EPROTO foreign version, EINVAL other shape. */
  async restore(state: Uint8Array<ArrayBuffer>): Promise<void> {
    const err = new OutText();
    const length = BigInt(state.length);
    const result = await shim().gy_vm_restore(this.pointer, state, length, err.bytes, err.bytes.length);
    unwrap("restore the machine's state", result, err.text);
  }

  report(): NativeGuestReport {
    const raw = new Uint8Array(REPORT_COUNTERS * 8 + HIST_BYTES);
    unwrap("read the guest's report", shim().gy_vm_report(this.pointer, raw));
    const view = new DataView(raw.buffer);
    const u64 = (index: number) => Number(view.getBigUint64(index * 8, true));
    return {
      vcpus: u64(0),
      booted: u64(1) !== 0,
      running: u64(2) !== 0,
      passes: u64(3),
      verifiedPages: u64(4),
      writtenPages: u64(5),
      corrupt: u64(6),
      firstCorruptPage: pageOrNull(view.getBigUint64(7 * 8, true)),
      largestStallNs: u64(8),
      clockBacksteps: u64(9),
      unreadVcpus: u64(10),
      stall: readHistogram(view, REPORT_COUNTERS * 8),
    };
  }

  /** Forgets the largest stall so far. Not while pages are missing. */
  resetStall(): void {
    unwrap("reset the guest's stall", shim().gy_vm_reset_stall(this.pointer));
  }

  /** Checks every page of the stopped machine. Throws NativeError EBUSY while it runs. */
  async checkRam(): Promise<NativeRamCheck> {
    const raw = new Uint8Array(64);
    unwrap("check guest RAM", await shim().gy_vm_check_ram(this.pointer, raw));
    const view = new DataView(raw.buffer);
    const u64 = (index: number) => Number(view.getBigUint64(index * 8, true));
    return {
      pages: u64(0),
      filledPages: u64(1),
      zeroPages: u64(2),
      badPages: u64(3),
      firstBadPage: pageOrNull(view.getBigUint64(4 * 8, true)),
    };
  }

  /** The next thing the guest tells; null when it told nothing in time. */
  async wait(timeoutMs: number): Promise<MicroVmEvent | null> {
    if (this.gone) return null;
    const err = new OutText();
    const waiting = shim().gy_vm_wait(this.pointer, timeoutMs, err.bytes, err.bytes.length);
    this.#waiting = waiting;
    const result = await waiting;
    if (result === -ERRNO.ETIMEDOUT || result === 0) return null;
    switch (unwrap("wait for the guest", result)) {
      case 1:
        return { type: "booted" };
      case 2:
        return { type: "corrupt" };
      case 3:
        return { type: "failed", text: err.text };
      default:
        throw new NativeError("wait for the guest", 71, `unknown event ${result}`);
    }
  }

  async dirtyStart(): Promise<void> {
    unwrap("track dirty pages", await shim().gy_vm_dirty_start(this.pointer));
  }

  async dirtyStop(): Promise<void> {
    unwrap("stop tracking dirty pages", await shim().gy_vm_dirty_stop(this.pointer));
  }

  /** Adds the pages written since the last call to `set`; resolves with how many there were. */
  async dirtyCollect(set: PageSet): Promise<number> {
    const result = await shim().gy_vm_dirty_collect(this.pointer, set.words, BigInt(set.words.length));
    return unwrap("collect dirty pages", result);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const pointer = this.release();
    if (!pointer) return;
    // A wait under way still uses the memory.
    await this.#waiting;
    await shim().gy_vm_destroy(pointer);
  }
}
