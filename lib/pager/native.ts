/** The native pager: QEMU's own migration moves RAM and state; Gyges carries its connections, orders it, and counts. */
import type { Channel } from "../../ffi/channel.ts";
import type { PagerEvents, PageRole } from "../../ffi/page_source.ts";
import type { PageSet } from "../../ffi/page_set.ts";
import { NO_PAGE_STATS, type PageStats } from "../../ffi/page_stats.ts";
import { PAGE_BYTES } from "../../ffi/ram.ts";
import { Tunnel } from "../../ffi/tunnel.ts";
import { UsageError } from "../errors.ts";
import type { Machine } from "../machine/machine.ts";
import { openPages } from "../migration/link.ts";
import { delay } from "../migration/timing.ts";
import type { OwnMigration, OwnProgress } from "../qemu/own_migration.ts";
import type { QemuVersion } from "../qemu/qmp.ts";
import type { WireStats } from "../wire/messages.ts";
import type {
  DestinationPager,
  DestinationPagerOptions,
  Lack,
  Pager,
  PrepareSourceOptions,
  SourceLink,
  SourcePager,
  TransportOffer,
} from "./pager.ts";

/** How often QEMU is asked how far it is. */
const LOOK_MS = 200;
const NO_EVENTS: PagerEvents = { roundDone: false, complete: false, linkLost: false, failed: false };

export const nativePager: Pager = {
  kind: "native",
  lack(transport): Lack | null {
    if (transport === "tcp") return null;
    return { check: "rdma", found: "QEMU's own migration goes over TCP here", remedy: "use --transport tcp" };
  },
  ramFolder: null,
  makeRam() {
    throw new UsageError("Cannot give a micro-VM to the native pager, which is QEMU's own migration: use --pager user");
  },
  source: (machine) => new NativeSourcePager(machine),
  destination: (machine, options) => new NativeDestinationPager(machine, options),
};

/** Wakes whoever waits, or whoever comes next. */
class Bell {
  #next = Promise.withResolvers<void>();

  ring(): void {
    this.#next.resolve();
  }

  async wait(timeoutMs: number): Promise<void> {
    using late = delay(timeoutMs);
    await Promise.race([this.#next.promise, late.promise]);
    this.#next = Promise.withResolvers();
  }
}

class NativeSourcePager implements SourcePager {
  readonly kind = "native";
  readonly #own: OwnMigration;
  readonly #version: QemuVersion;
  readonly #tunnel: Tunnel;
  readonly #bell = new Bell();
  #progress: OwnProgress | null = null;
  /** Pages that had left when QEMU went on post-copy. */
  #precopyPages = 0;
  /** Links that were made so far. */
  #links = 0;
  /** Until QEMU goes on by a new link it says that it has lost the old one. */
  #linked = false;

  constructor(machine: Machine) {
    this.#own = ownOf(machine);
    this.#version = versionOf(machine);
    this.#tunnel = Tunnel.listen(this.#own.socketPath);
  }

  get gone(): boolean {
    return this.#tunnel.gone;
  }

  prepare({ transport }: PrepareSourceOptions): Promise<TransportOffer> {
    if (transport === "rdma") {
      throw new UsageError(
        "Cannot move the guest with --transport rdma as its RAM is private to its QEMU: leave --transport out, or start " +
          "the guest by gyges run",
      );
    }
    return Promise.resolve({ transports: ["tcp"], rdma: null, noRdma: "QEMU's own migration goes over TCP here" });
  }

  /** The destination's QEMU is not older: what this one can, that one can. */
  async connect({ ticket, session }: SourceLink): Promise<void> {
    for (let left = this.#own.connectionsWith(this.#version); left > 0; left--) {
      this.#tunnel.add(await openPages(ticket, session, "demand"));
    }
    if (this.#links++ > 0) await this.#own.resume();
    this.#linked = true;
  }

  scanPresent(_set: PageSet): Promise<number> {
    return Promise.resolve(0);
  }

  dirtyStart(): Promise<string> {
    return Promise.resolve("QEMU itself");
  }

  dirtyCollect(_set: PageSet): Promise<number> {
    return Promise.resolve(0);
  }

  dirtyStop(): Promise<void> {
    return Promise.resolve();
  }

  regions(): Promise<null> {
    return Promise.resolve(null);
  }

  stats(): null {
    return null;
  }

  account(theirs: WireStats): WireStats {
    if (!this.#progress) return theirs;
    const { status, sentBytes, sentPages, zeroPages, remainingBytes, requests } = this.#progress;
    return {
      ...theirs,
      missing_pages: status === "completed" ? 0 : Math.ceil(remainingBytes / PAGE_BYTES),
      precopy_pages: this.#precopyPages,
      postcopy_pages: sentPages - this.#precopyPages,
      zero_pages: zeroPages,
      demand_faults: requests,
      wire_bytes: sentBytes,
    };
  }

  async wait(timeoutMs: number): Promise<PagerEvents | null> {
    await this.#bell.wait(Math.min(timeoutMs, LOOK_MS));
    if (this.gone) return null;
    if (!this.#own.started) return null;
    const links = this.#links;
    const progress = await lookAt(this.#own);
    if (!progress) return null;
    if (progress !== "gone") this.#note(progress);
    return this.#linked && links === this.#links ? lossOf(progress) : null;
  }

  #note(progress: OwnProgress): void {
    this.#progress = progress;
    if (this.#own.precopying) this.#precopyPages = progress.sentPages;
  }

  dropLink(): Promise<void> {
    this.#linked = false;
    return this.#tunnel.drop();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#bell.ring();
    await this.#tunnel[Symbol.asyncDispose]();
  }
}

class NativeDestinationPager implements DestinationPager {
  readonly kind = "native";
  readonly transport;
  readonly #own: OwnMigration;
  readonly #pages: number;
  readonly #tunnel: Tunnel;
  readonly #bell = new Bell();
  #events = NO_EVENTS;
  #blocktimeMs = 0;
  #whole = false;
  /** QEMU listens for no connection since a link was lost. */
  #deaf;
  /** Until QEMU goes on by a new link it says that it has lost the old one. */
  #linked;
  #adding: Promise<void> = Promise.resolve();

  constructor(machine: Machine, { transport, takeOver = false }: DestinationPagerOptions) {
    this.#deaf = takeOver;
    this.#linked = !takeOver;
    this.#own = ownOf(machine);
    this.#pages = machine.ramBytes / PAGE_BYTES;
    this.transport = transport;
    this.#tunnel = Tunnel.dial(this.#own.socketPath);
  }

  get gone(): boolean {
    return this.#tunnel.gone;
  }

  connect(): Promise<void> {
    return Promise.resolve();
  }

  /** QEMU tells its connections apart by their order. */
  addPages(channel: Channel, _role: PageRole): void {
    this.#adding = this.#adding.then(() => this.#add(channel)).catch(() => {
      this.#tell({ linkLost: true });
      this.#bell.ring();
    });
  }

  async #add(channel: Channel): Promise<void> {
    try {
      if (this.#deaf) await this.#own.recover();
      this.#deaf = false;
    } catch (error) {
      channel[Symbol.dispose]();
      throw error;
    }
    if (this.gone) channel[Symbol.dispose]();
    else this.#tunnel.add(channel);
  }

  async dropLink(): Promise<void> {
    await this.#adding;
    await this.#tunnel.drop();
    this.#deaf = true;
    this.#linked = false;
    this.#events = { ...this.#events, linkLost: false, failed: false };
  }

  setRegions(_table: Uint8Array<ArrayBuffer>): Promise<void> {
    return Promise.resolve();
  }

  round(_set: Uint8Array<ArrayBuffer>, _deadlineMs: number): Promise<void> {
    return Promise.resolve();
  }

  /** The source's QEMU says when its round is over. */
  endRound(): Promise<void> {
    this.#tell({ roundDone: true });
    this.#bell.ring();
    return Promise.resolve();
  }

  discard(_set: Uint8Array<ArrayBuffer>): Promise<number> {
    return Promise.resolve(this.#pages);
  }

  arm(): Promise<number> {
    return Promise.resolve(this.#pages);
  }

  run(): Promise<void> {
    return Promise.resolve();
  }

  disarm(): Promise<void> {
    return Promise.resolve();
  }

  /** Pages are counted by the source's QEMU. */
  stats(): PageStats {
    return {
      ...NO_PAGE_STATS,
      totalPages: this.#pages,
      presentPages: this.#whole ? this.#pages : 0,
      missingPages: this.#whole ? 0 : this.#pages,
      wireBytes: this.#tunnel.bytes,
      blocktimeNs: Math.round(this.#blocktimeMs * 1e6),
    };
  }

  async wait(timeoutMs: number): Promise<PagerEvents | null> {
    await this.#bell.wait(Math.min(timeoutMs, LOOK_MS));
    if (this.gone) return null;
    const progress = await lookAt(this.#own);
    if (progress) this.#note(progress);
    const events = this.#events;
    this.#events = NO_EVENTS;
    return events;
  }

  #note(progress: OwnProgress | "gone"): void {
    const loss = lossOf(progress);
    if (loss && this.#linked) this.#tell(loss);
    if (progress === "gone") return;
    this.#linked ||= !this.#deaf && loss === null;
    this.#blocktimeMs = progress.blocktimeMs;
    if (progress.status !== "completed" || this.#whole) return;
    this.#whole = true;
    this.#tell({ complete: true });
  }

  #tell(events: Partial<PagerEvents>): void {
    const seen = this.#events;
    this.#events = {
      roundDone: seen.roundDone || events.roundDone === true,
      complete: seen.complete || events.complete === true,
      linkLost: seen.linkLost || events.linkLost === true,
      failed: seen.failed || events.failed === true,
    };
  }

  wake(): void {
    this.#bell.ring();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#adding;
    this.#bell.ring();
    await this.#tunnel[Symbol.asyncDispose]();
  }
}

/** How far QEMU is; null: it does not say, "gone": its monitor is. */
async function lookAt(own: OwnMigration): Promise<OwnProgress | "gone" | null> {
  try {
    return await own.glance();
  } catch {
    return "gone";
  }
}

function lossOf(progress: OwnProgress | "gone"): PagerEvents | null {
  if (progress === "gone" || progress.status === "failed") return { ...NO_EVENTS, failed: true };
  return progress.status === "postcopy-paused" ? { ...NO_EVENTS, linkLost: true } : null;
}

function ownOf(machine: Machine): OwnMigration {
  if (!machine.own) throw new Error("The native pager is for machines that move by themselves");
  return machine.own;
}

function versionOf({ shape }: Machine): QemuVersion {
  if (shape.kind !== "qemu") throw new Error("The native pager is for QEMU");
  return shape.version;
}
