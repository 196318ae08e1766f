/** The kernel pager's destination side: gygesfs pulls the pages of a RAM file by RDMA READ when they are touched. */
import { cString, Handle, OutPointer } from "./handle.ts";
import { shim } from "./library.ts";
import { unwrap } from "./native_error.ts";
import { type PagerEvents, pagerEvents } from "./page_source.ts";
import { type PageStats, PageStatsView } from "./page_stats.ts";
import type { Ram } from "./ram.ts";

export interface KernelSinkConfig {
  /** 0: no limit. */
  bytesPerSecond: number;
  /** Pages asked for and not yet here, in rounds and after them; 0: as the module sees fit. */
  precopyWindowPages: number;
  postcopyWindowPages: number;
  prefetch: boolean;
}

export interface KernelConnectOptions {
  /** Digits. */
  host: string;
  port: number;
  token: Uint8Array<ArrayBuffer>;
  timeoutMs: number;
}

/** enum gyges_phase, by its numbers. */
const PHASES = ["none", "precopy", "armed", "running", "complete", "abandoned"] as const;

/** Where the import of a RAM file stands. */
export interface KernelImport {
  phase: typeof PHASES[number];
  /** The source is connected. */
  linked: boolean;
}

export class KernelSink extends Handle implements AsyncDisposable {
  readonly #stats: PageStatsView;
  #waiting: Promise<number> = Promise.resolve(0);

  /** `ram` is one of Ram.createIn() and must outlive this. */
  constructor(ram: Ram, config: KernelSinkConfig) {
    // struct gy_kernel_sink_config
    const raw = new DataView(new ArrayBuffer(24));
    raw.setBigUint64(0, BigInt(Math.round(config.bytesPerSecond)), true);
    raw.setUint32(8, config.precopyWindowPages, true);
    raw.setUint32(12, config.postcopyWindowPages, true);
    raw.setUint32(16, config.prefetch ? 1 : 0, true);
    const out = new OutPointer();
    const op = "import guest RAM";
    unwrap(op, shim().gy_kernel_sink_create(ram.pointer, new Uint8Array(raw.buffer), out.cell));
    super(out.take(op));
    const stats = shim().gy_kernel_sink_stats(this.pointer);
    if (!stats) throw new Error("gy_kernel_sink_stats() gave no memory");
    this.#stats = new PageStatsView(stats);
  }

  /** Throws NativeError: ECONNREFUSED, ENETUNREACH, ETIMEDOUT, ENODEV (no RDMA device on the way), EPERM. */
  async connect({ host, port, token, timeoutMs }: KernelConnectOptions): Promise<void> {
    const result = shim().gy_kernel_sink_connect(this.pointer, cString(host), port, token, timeoutMs);
    unwrap(`connect by RDMA to ${host}:${port}`, await result);
  }

  async drop(): Promise<void> {
    unwrap("drop the RDMA link", await shim().gy_kernel_sink_drop(this.pointer));
  }

  /** Throws NativeError EINVAL: the table cannot be right. */
  async regions(table: Uint8Array<ArrayBuffer>): Promise<void> {
    const result = await shim().gy_kernel_sink_regions(this.pointer, table, BigInt(table.length));
    unwrap("take the source's table of memory regions", result);
  }

  /** Begins a pre-copy round over an encoded set; resolves with the pages missing then. EBADMSG, EBUSY, ERANGE. */
  async round(set: Uint8Array<ArrayBuffer>, deadlineMs: number): Promise<number> {
    const limit = Math.max(0, Math.ceil(deadlineMs));
    return unwrap(
      "begin a pre-copy round",
      await shim().gy_kernel_sink_round(this.pointer, set, BigInt(set.length), limit),
    );
  }

  endRound(): void {
    unwrap("end a pre-copy round", shim().gy_kernel_sink_end_round(this.pointer));
  }

  /** These pages are only at the source; their stale copies are dropped. Resolves with the pages missing. */
  async discard(set: Uint8Array<ArrayBuffer>): Promise<number> {
    return unwrap("drop stale pages", await shim().gy_kernel_sink_discard(this.pointer, set, BigInt(set.length)));
  }

  /** Post-copy begins; resolves with the pages missing. */
  async arm(): Promise<number> {
    return unwrap("arm the pager", await shim().gy_kernel_sink_arm(this.pointer));
  }

  run(): void {
    unwrap("start prefetch", shim().gy_kernel_sink_run(this.pointer));
  }

  /** After `complete`: the RAM file is ordinary memory again. */
  async disarm(): Promise<void> {
    unwrap("disarm the pager", await shim().gy_kernel_sink_disarm(this.pointer));
  }

  /** What happened since the last call; null when nothing did in time. One caller at a time. */
  async wait(timeoutMs: number): Promise<PagerEvents | null> {
    if (this.gone) return null;
    const waiting = shim().gy_kernel_sink_wait(this.pointer, timeoutMs);
    this.#waiting = waiting;
    return pagerEvents("wait for pages", await waiting);
  }

  /** Ends a wait under way. */
  wake(): void {
    shim().gy_kernel_sink_wake(this.pointer);
  }

  stats(): PageStats {
    unwrap("read the pager's counters", shim().gy_kernel_sink_refresh(this.pointer));
    return this.#stats.read();
  }

  /** Of the file, whoever began it. */
  state(): KernelImport {
    const linked = new Uint32Array(1);
    const op = "look at the import of guest RAM";
    const phase = PHASES[unwrap(op, shim().gy_kernel_sink_phase(this.pointer, linked))];
    if (!phase) throw new Error("The module knows a phase that this program does not");
    return { phase, linked: linked[0] === 1 };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const pointer = this.release();
    if (!pointer) return;
    // A wait under way still uses the memory.
    shim().gy_kernel_sink_wake(pointer);
    await this.#waiting;
    await shim().gy_kernel_sink_destroy(pointer);
  }
}
