/** The user pager: userfaultfd on a RAM file in anonymous shared memory; pages over TCP connections. */
import type { Channel } from "../../ffi/channel.ts";
import { PageSink } from "../../ffi/page_sink.ts";
import { type PagerEvents, type PageRole, PageSource } from "../../ffi/page_source.ts";
import type { PageSet } from "../../ffi/page_set.ts";
import type { PageStats } from "../../ffi/page_stats.ts";
import { Ram } from "../../ffi/ram.ts";
import { PreflightError } from "../errors.ts";
import type { Machine } from "../machine/machine.ts";
import { openPages } from "../migration/link.ts";
import type { Transport } from "../options.ts";
import { ProtocolError } from "../wire/peer.ts";
import type {
  DestinationPager,
  DestinationPagerOptions,
  Lack,
  Pager,
  PrepareSourceOptions,
  SourceLink,
  SourcePager,
  SourcePagerOptions,
  TransportOffer,
} from "./pager.ts";

const WINDOW = {
  /** Without a limit: enough to keep a fast link busy. */
  unlimited: { precopy: 4 << 20, postcopy: 512 << 10 },
  /** With one: so many milliseconds of the link, so that an end or a fault waits no longer than that. */
  precopyMs: 4,
  postcopyMs: 1,
  minBytes: 64 << 10,
} as const;

const NO_RDMA: Lack = {
  check: "rdma",
  found: "the user pager of this build moves pages over TCP only",
  remedy: "use --transport tcp, or the kernel pager",
};

export const userPager: Pager = {
  kind: "user",
  lack: (transport: Transport) => transport === "rdma" ? NO_RDMA : null,
  makeRam: (bytes) => Ram.create(bytes),
  source: (machine, options) => new UserSourcePager(machine, options),
  destination: (machine, options) => new UserDestinationPager(machine, options),
};

class UserSourcePager implements SourcePager {
  readonly kind = "user";
  readonly #machine: Machine;
  readonly #source: PageSource;
  readonly #prefetchConnections: number;

  constructor(machine: Machine, options: SourcePagerOptions) {
    this.#machine = machine;
    this.#source = new PageSource(machine.ram, options.bandwidthBytesPerSecond);
    this.#prefetchConnections = options.prefetchConnections;
  }

  get gone(): boolean {
    return this.#source.gone;
  }

  prepare({ transport }: PrepareSourceOptions): Promise<TransportOffer> {
    if (transport === "rdma") {
      throw new PreflightError(`Cannot move the guest by RDMA as ${NO_RDMA.found}`, NO_RDMA);
    }
    const noRdma = transport === "tcp" ? "--transport tcp was given at the source" : NO_RDMA.found;
    return Promise.resolve({ transports: ["tcp"], rdma: null, noRdma });
  }

  /** Opens all page connections at once. */
  async connect({ ticket, session }: SourceLink): Promise<void> {
    const prefetch = Array.from({ length: this.#prefetchConnections }, () => "prefetch" as const);
    const results = await Promise.allSettled((["demand", ...prefetch] as const).map(async (role) => {
      this.#source.add(await openPages(ticket, session, role), role);
    }));
    for (const result of results) {
      if (result.status === "rejected") throw result.reason;
    }
  }

  scanPresent(set: PageSet): Promise<number> {
    return this.#source.scanPresent(set);
  }

  dirtyStart(): Promise<void> {
    return this.#machine.dirtyStart();
  }

  dirtyCollect(set: PageSet): Promise<number> {
    return this.#machine.dirtyCollect(set);
  }

  dirtyStop(): Promise<void> {
    return this.#machine.dirtyStop();
  }

  regions(): Promise<null> {
    return Promise.resolve(null);
  }

  stats(): PageStats {
    return this.#source.stats();
  }

  wait(timeoutMs: number): Promise<PagerEvents | null> {
    return this.#source.wait(timeoutMs);
  }

  dropLink(): Promise<void> {
    return this.#source.dropChannels();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#source[Symbol.asyncDispose]();
  }
}

class UserDestinationPager implements DestinationPager {
  readonly kind = "user";
  readonly transport: Transport;
  readonly #sink: PageSink;

  constructor(machine: Machine, { transport, bandwidthBytesPerSecond: rate, prefetch }: DestinationPagerOptions) {
    this.transport = transport;
    this.#sink = new PageSink(machine.ram, {
      precopyWindowBytes: windowOf(rate, WINDOW.precopyMs, WINDOW.unlimited.precopy),
      postcopyWindowBytes: windowOf(rate, WINDOW.postcopyMs, WINDOW.unlimited.postcopy),
      prefetch,
    });
  }

  get gone(): boolean {
    return this.#sink.gone;
  }

  connect(): Promise<void> {
    return Promise.resolve();
  }

  addPages(channel: Channel, role: PageRole): void {
    this.#sink.add(channel, role);
  }

  dropLink(): Promise<void> {
    return this.#sink.dropChannels();
  }

  setRegions(): Promise<void> {
    throw new ProtocolError("The source sends a table of RDMA regions over TCP");
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
    this.#sink.disarm();
    return Promise.resolve();
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

function windowOf(rate: number, ms: number, unlimited: number): number {
  if (rate === 0) return unlimited;
  return Math.round(Math.min(unlimited, Math.max(WINDOW.minBytes, rate * ms / 1000)));
}
