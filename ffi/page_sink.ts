/** The user pager's destination side; its threads, page sets and userfaultfd live in the library. */
import type { Channel } from "./channel.ts";
import { cString, Handle, OutPointer, OutText } from "./handle.ts";
import { shim } from "./library.ts";
import { unwrap } from "./native_error.ts";
import { type PagerEvents, pagerEvents, type PageRole, ROLE } from "./page_source.ts";
import { type PageStats, PageStatsView } from "./page_stats.ts";
import type { Ram } from "./ram.ts";

export interface PageSinkConfig {
  precopyWindowBytes: number;
  postcopyWindowBytes: number;
  prefetch: boolean;
  /** The guest's RAM was armed before, by an agent that has died. */
  takeOver: boolean;
  /** Over RDMA, in all; 0 without limit. */
  bytesPerSecond: number;
}

export interface RdmaDialOptions {
  /** Digits. */
  host: string;
  port: number;
  /** GYGES_TOKEN_BYTES */
  token: Uint8Array<ArrayBuffer>;
  /** 1 to 16. */
  prefetchLinks: number;
  timeoutMs: number;
}

export class PageSink extends Handle implements AsyncDisposable {
  readonly #stats: PageStatsView;
  #waiting: Promise<number> = Promise.resolve(0);

  /**
   * `ram` must outlive this. Throws NativeError; EPERM: this process may not use userfaultfd; ENOENT, in a take-over: the
   * guest has all its pages.
   */
  constructor(ram: Ram, config: PageSinkConfig) {
    // struct gy_sink_config
    const raw = new DataView(new ArrayBuffer(32));
    raw.setBigUint64(0, BigInt(config.precopyWindowBytes), true);
    raw.setBigUint64(8, BigInt(config.postcopyWindowBytes), true);
    raw.setUint32(16, config.prefetch ? 1 : 0, true);
    raw.setUint32(20, config.takeOver ? 1 : 0, true);
    raw.setBigUint64(24, BigInt(Math.round(config.bytesPerSecond)), true);
    const out = new OutPointer();
    const err = new OutText();
    const op = "catch page faults of guest RAM";
    const bytes = new Uint8Array(raw.buffer);
    unwrap(op, shim().gy_sink_create(ram.pointer, bytes, out.cell, err.bytes, err.bytes.length), err.text);
    super(out.take(op));
    const stats = shim().gy_sink_stats(this.pointer);
    if (!stats) throw new Error("gy_sink_stats() gave no memory");
    this.#stats = new PageStatsView(stats);
  }

  /** Takes the channel over, also when it throws. */
  add(channel: Channel, role: PageRole): void {
    unwrap("pull over a page connection", shim().gy_sink_add(this.pointer, channel.give(), ROLE[role]));
  }

  /**
   * Pulls by RDMA from the source that listens there. Throws NativeError: ECONNREFUSED (nobody listens, or another
   * token), ENODEV, ENETUNREACH, ETIMEDOUT, ENOENT (no libraries).
   */
  async dial({ host, port, token, prefetchLinks, timeoutMs }: RdmaDialOptions): Promise<void> {
    const err = new OutText();
    const name = cString(host);
    const result = await shim().gy_sink_dial(
      this.pointer,
      name,
      port,
      token,
      prefetchLinks,
      timeoutMs,
      err.bytes,
      err.bytes.length,
    );
    unwrap(`connect to ${host}:${port} by RDMA`, result, err.text);
  }

  /** Where which page is at the source, see gy_sink_regions(). Throws NativeError EINVAL, EBUSY. */
  async regions(table: Uint8Array<ArrayBuffer>): Promise<void> {
    unwrap("take in the source's regions", await shim().gy_sink_regions(this.pointer, table, BigInt(table.length)));
  }

  async dropChannels(): Promise<void> {
    await shim().gy_sink_drop_channels(this.pointer);
  }

  /** Begins a pre-copy round over an encoded set; resolves with the number of pages wanted. EBADMSG, EBUSY. */
  async round(set: Uint8Array<ArrayBuffer>, deadlineMs: number): Promise<number> {
    const result = await shim().gy_sink_round(
      this.pointer,
      set,
      BigInt(set.length),
      Math.max(0, Math.ceil(deadlineMs)),
    );
    return unwrap("begin a pre-copy round", result);
  }

  endRound(): void {
    unwrap("end a pre-copy round", shim().gy_sink_end_round(this.pointer));
  }

  /** These pages are only at the source; their stale copies are dropped. Resolves with the pages wanted. */
  async discard(set: Uint8Array<ArrayBuffer>): Promise<number> {
    return unwrap("drop stale pages", await shim().gy_sink_discard(this.pointer, set, BigInt(set.length)));
  }

  /** Post-copy begins, or goes on after a take-over; resolves with the pages missing. */
  async arm(): Promise<number> {
    return unwrap("arm the pager", await shim().gy_sink_arm(this.pointer));
  }

  run(): void {
    unwrap("start prefetch", shim().gy_sink_run(this.pointer));
  }

  /** After `complete`: the RAM file is ordinary memory again. */
  disarm(): void {
    unwrap("disarm the pager", shim().gy_sink_disarm(this.pointer));
  }

  /** What happened since the last call; null when nothing did in time. One caller at a time. */
  async wait(timeoutMs: number): Promise<PagerEvents | null> {
    if (this.gone) return null;
    const waiting = shim().gy_sink_wait(this.pointer, timeoutMs);
    this.#waiting = waiting;
    return pagerEvents("wait for pages", await waiting);
  }

  /** Ends a wait under way. */
  wake(): void {
    shim().gy_sink_wake(this.pointer);
  }

  stats(): PageStats {
    return this.#stats.read();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const pointer = this.release();
    if (!pointer) return;
    // A wait under way still uses the memory.
    shim().gy_sink_wake(pointer);
    await this.#waiting;
    await shim().gy_sink_destroy(pointer);
  }
}
