/** The kernel pager: RAM files of gygesfs, whose missing pages the kernel READs from the source when they are touched. */
import type { Channel } from "../../ffi/channel.ts";
import { gygesfsAt, rdmaDevices } from "../../ffi/kernel_host.ts";
import { KernelSink } from "../../ffi/kernel_sink.ts";
import { isNoRdma, KernelSource } from "../../ffi/kernel_source.ts";
import { NativeError } from "../../ffi/native_error.ts";
import type { PagerEvents } from "../../ffi/page_source.ts";
import type { PageSet } from "../../ffi/page_set.ts";
import type { PageStats } from "../../ffi/page_stats.ts";
import { PAGE_BYTES, Ram } from "../../ffi/ram.ts";
import { PreflightError } from "../errors.ts";
import { RAM_FOLDER } from "../host/ram_folder.ts";
import type { Machine } from "../machine/machine.ts";
import { pause } from "../migration/timing.ts";
import type { Transport } from "../options.ts";
import type { Rendezvous } from "../wire/messages.ts";
import { ProtocolError } from "../wire/peer.ts";
import type {
  DestinationPager,
  DestinationPagerOptions,
  Lack,
  Pager,
  PrepareSourceOptions,
  SourcePager,
  TransportOffer,
} from "./pager.ts";

const TOKEN_BYTES = 32;
const CONNECT_MS = 5_000;
/** With a limit: so much of the link is asked for at once; the window of an unlimited one is the module's affair. */
const WINDOW_MS = { precopy: 20, postcopy: 5 } as const;
const MIN_WINDOW_PAGES = 8;

export const kernelPager: Pager = {
  kind: "kernel",
  ramFolder: RAM_FOLDER,
  lack,
  makeRam: (bytes) => Ram.createIn(RAM_FOLDER, bytes),
  source: (machine) => new KernelSourcePager(machine),
  destination: (machine, options) => new KernelDestinationPager(machine, options),
};

function lack(transport: Transport): Lack | null {
  if (transport === "tcp") {
    return {
      check: "transport",
      found: "the kernel pager moves pages by RDMA only",
      remedy: "use --transport rdma, or --pager user on both ends",
    };
  }
  const absent = gygesfsAt(RAM_FOLDER);
  if (absent) {
    const found = absent.code === "EACCES" ? `${RAM_FOLDER} is not for this user` : `no gygesfs is at ${RAM_FOLDER}`;
    return { check: "module", found, remedy: "as root run: gyges module load" };
  }
  if (rdmaDevices() > 0) return null;
  return {
    check: "rdma",
    found: "this host has no RDMA device",
    remedy: "for soft-RoCE run: modprobe rdma_rxe && rdma link add rxe0 type rxe netdev DEVICE",
  };
}

class KernelSourcePager implements SourcePager {
  readonly kind = "kernel";
  readonly #source: KernelSource;
  #offer: TransportOffer | null = null;

  constructor(machine: Machine) {
    this.#source = new KernelSource(machine.ram);
  }

  get gone(): boolean {
    return this.#source.gone;
  }

  /** One listener for the whole migration: a destination that begins anew finds it where it was. */
  async prepare({ transport, rdmaListen, towards }: PrepareSourceOptions): Promise<TransportOffer> {
    if (transport === "tcp") throw new PreflightError("Cannot move the guest by TCP: its RAM is in gygesfs", NO_TCP);
    if (this.#offer) return this.#offer;
    const token = crypto.getRandomValues(new Uint8Array(TOKEN_BYTES));
    try {
      const listen = { host: rdmaListen?.host ?? null, port: rdmaListen?.port ?? 0, towards, token };
      const address = await this.#source.listen(listen);
      this.#offer = { transports: ["rdma"], rdma: { addresses: [address], token: token.toHex() }, noRdma: "" };
      return this.#offer;
    } catch (cause) {
      if (!(cause instanceof NativeError)) throw cause;
      throw new PreflightError(cause.message, {
        check: "rdma",
        remedy: isNoRdma(cause)
          ? "give --rdma-listen the address of a network device that has RDMA; rdma link shows them"
          : "give --rdma-listen HOST:PORT another port, and run as root",
        cause,
      });
    }
  }

  connect(): Promise<void> {
    return Promise.resolve();
  }

  scanPresent(set: PageSet): Promise<number> {
    return this.#source.scanPresent(set);
  }

  async dirtyStart(): Promise<string> {
    await this.#source.dirtyStart();
    return "gygesfs";
  }

  dirtyCollect(set: PageSet): Promise<number> {
    return this.#source.dirtyCollect(set);
  }

  dirtyStop(): Promise<void> {
    return this.#source.dirtyStop();
  }

  regions(): Promise<Uint8Array<ArrayBuffer> | null> {
    return this.#source.regions();
  }

  stats(): null {
    return null;
  }

  /** A destination that loses its link says so; nothing is sent from here by which it could be seen. */
  async wait(timeoutMs: number): Promise<PagerEvents | null> {
    await pause(timeoutMs);
    if (this.gone || !await this.#source.isRead()) return null;
    return { roundDone: false, complete: true, linkLost: false, failed: false };
  }

  dropLink(): Promise<void> {
    return Promise.resolve();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#source[Symbol.asyncDispose]();
  }
}

const NO_TCP = {
  check: "transport",
  remedy: "use --transport rdma, or start the guest with --pager user",
} as const;

class KernelDestinationPager implements DestinationPager {
  readonly kind = "kernel";
  readonly transport = "rdma";
  readonly #sink: KernelSink;

  constructor(machine: Machine, { bandwidthBytesPerSecond: rate, prefetch }: DestinationPagerOptions) {
    this.#sink = new KernelSink(machine.ram, {
      bytesPerSecond: rate,
      precopyWindowPages: windowOf(rate, WINDOW_MS.precopy),
      postcopyWindowPages: windowOf(rate, WINDOW_MS.postcopy),
      prefetch,
    });
  }

  get gone(): boolean {
    return this.#sink.gone;
  }

  async connect(rendezvous: Rendezvous | null): Promise<void> {
    if (!rendezvous) throw new ProtocolError("The source does not say where it can be reached by RDMA");
    const token = Uint8Array.fromHex(rendezvous.token);
    const failures: NativeError[] = [];
    for (const { host, port } of rendezvous.addresses) {
      try {
        await this.#sink.connect({ host, port, token, timeoutMs: CONNECT_MS });
        return;
      } catch (error) {
        if (!(error instanceof NativeError)) throw error;
        failures.push(error);
      }
    }
    throw failures[0];
  }

  addPages(channel: Channel): void {
    channel[Symbol.dispose]();
  }

  dropLink(): Promise<void> {
    return this.#sink.drop();
  }

  setRegions(table: Uint8Array<ArrayBuffer>): Promise<void> {
    return this.#sink.regions(table);
  }

  async round(set: Uint8Array<ArrayBuffer>, deadlineMs: number): Promise<void> {
    await this.#sink.round(set, deadlineMs);
  }

  endRound(): Promise<void> {
    this.#sink.endRound();
    return Promise.resolve();
  }

  discard(set: Uint8Array<ArrayBuffer>): Promise<number> {
    return this.#sink.discard(set);
  }

  arm(): Promise<number> {
    return this.#sink.arm();
  }

  run(): Promise<void> {
    this.#sink.run();
    return Promise.resolve();
  }

  disarm(): Promise<void> {
    return this.#sink.disarm();
  }

  stats(): PageStats {
    return this.#sink.stats();
  }

  wait(timeoutMs: number): Promise<PagerEvents | null> {
    return this.#sink.wait(timeoutMs);
  }

  wake(): void {
    this.#sink.wake();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#sink[Symbol.asyncDispose]();
  }
}

/** Pages of `ms` of a link of `rate` bytes per second; 0: no limit. */
function windowOf(rate: number, ms: number): number {
  return rate === 0 ? 0 : Math.max(MIN_WINDOW_PAGES, Math.round(rate * ms / 1000 / PAGE_BYTES));
}
