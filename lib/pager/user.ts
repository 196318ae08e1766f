/** The user pager: userfaultfd on a RAM file in anonymous shared memory; pages over TCP connections or by RDMA READ. */
import type { Channel } from "../../ffi/channel.ts";
import { NativeError } from "../../ffi/native_error.ts";
import { PageSink } from "../../ffi/page_sink.ts";
import { noUserRdma, type PagerEvents, type PageRole, PageSource } from "../../ffi/page_source.ts";
import type { PageSet } from "../../ffi/page_set.ts";
import type { PageStats } from "../../ffi/page_stats.ts";
import { Ram } from "../../ffi/ram.ts";
import { PreflightError } from "../errors.ts";
import type { Machine } from "../machine/machine.ts";
import { openPages } from "../migration/link.ts";
import type { Transport } from "../options.ts";
import type { Rendezvous } from "../wire/messages.ts";
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

/** How long one way to reach a source may take to fail. */
const DIAL_MS = 5_000;
const STEADY = "use --transport tcp or the kernel pager, or let the guest's balloon rest, without free page reporting";
const TOKEN_BYTES = 32;

export const userPager: Pager = {
  kind: "user",
  ramFolder: "/dev/shm",
  lack: (transport) => transport === "rdma" ? rdmaLack(noUserRdma()) : null,
  makeRam: (bytes) => Ram.create(bytes),
  source: (machine, options) => new UserSourcePager(machine, options),
  destination: (machine, options) => new UserDestinationPager(machine, options),
};

/**
 * Over RDMA present pages cannot be told by a second look, as registering RAM allocates all of it: what is present is
 * what was when registering had not begun, and what the guest has written since tracking began, which was before that.
 * And it pins all of it: a page that the guest gives back to the host is still read as it was, whatever the guest has
 * there later.
 */
class UserSourcePager implements SourcePager {
  readonly kind = "user";
  readonly #machine: Machine;
  readonly #source: PageSource;
  readonly #prefetchConnections: number;
  #transport: Transport = "tcp";
  #rendezvous: Rendezvous | null = null;
  #tracking = false;
  #scanned = false;
  #registered = false;
  /** Asked once: where the source comes back, its machine may be gone. */
  #discarding: string | null | undefined;

  constructor(machine: Machine, options: SourcePagerOptions) {
    this.#machine = machine;
    this.#source = new PageSource(machine.ram, options.bandwidthBytesPerSecond);
    this.#prefetchConnections = options.prefetchConnections;
  }

  get gone(): boolean {
    return this.#source.gone;
  }

  async prepare(options: PrepareSourceOptions): Promise<TransportOffer> {
    const { transport, rdmaListen } = options;
    if (transport === "tcp") return overTcp("--transport tcp was given at the source");
    if (this.#discarding === undefined) this.#discarding = await this.#machine.whyDiscarding?.() ?? null;
    if (this.#discarding !== null) {
      const why = `${this.#discarding}, and RDMA would read those pages as they were`;
      if (transport === "auto" && rdmaListen === null) return overTcp(why);
      throw new PreflightError(`Cannot use the user pager over RDMA as ${why}`, { check: "balloon", remedy: STEADY });
    }
    try {
      this.#rendezvous ??= await this.#listen(options);
      return {
        transports: transport === "rdma" ? ["rdma"] : ["rdma", "tcp"],
        rdma: this.#rendezvous,
        noRdma: "",
      };
    } catch (error) {
      if (!(error instanceof NativeError)) throw error;
      const lack = rdmaLack(error);
      // What was asked for by name is not done in another way.
      if (transport === "auto" && rdmaListen === null) return overTcp(`${lack.found}: ${lack.remedy}`);
      throw rdmaError(error);
    }
  }

  async #listen({ rdmaListen, towards }: PrepareSourceOptions): Promise<Rendezvous> {
    const token = crypto.getRandomValues(new Uint8Array(TOKEN_BYTES));
    const { host, port } = rdmaListen ?? { host: null, port: 0 };
    const address = await this.#source.listen({ host, port, towards, token });
    return { addresses: [address], token: token.toHex() };
  }

  async connect(link: SourceLink): Promise<void> {
    this.#transport = link.transport;
    if (link.transport === "tcp") await this.#openPages(link);
  }

  /** Opens all page connections at once. */
  async #openPages({ ticket, session }: SourceLink): Promise<void> {
    const prefetch = Array.from({ length: this.#prefetchConnections }, () => "prefetch" as const);
    const results = await Promise.allSettled((["demand", ...prefetch] as const).map(async (role) => {
      this.#source.add(await openPages(ticket, session, role), role);
    }));
    for (const result of results) {
      if (result.status === "rejected") throw result.reason;
    }
  }

  async scanPresent(set: PageSet): Promise<number> {
    if (this.#transport === "tcp") return await this.#source.scanPresent(set);
    if (this.#scanned) {
      await this.dirtyCollect(set);
      return set.count;
    }
    if (!this.#tracking) await this.dirtyStart();
    this.#scanned = true;
    return await this.#source.scanPresent(set);
  }

  async dirtyStart(): Promise<string> {
    const way = await this.#machine.dirtyStart();
    this.#tracking = true;
    return way;
  }

  dirtyCollect(set: PageSet): Promise<number> {
    return this.#machine.dirtyCollect(set);
  }

  async checkReadable(): Promise<void> {
    if (!this.#registered || !await this.#source.broken()) return;
    throw new Error(`Memory of the guest was given back to the host while RDMA had all of it pinned: ${STEADY}`);
  }

  async dirtyStop(): Promise<void> {
    if (this.#tracking) await this.#machine.dirtyStop();
    this.#tracking = false;
  }

  /** All of RAM is one region, which is registered once. */
  async regions(): Promise<Uint8Array<ArrayBuffer> | null> {
    if (this.#transport === "tcp" || this.#registered) return null;
    try {
      const table = await this.#source.region();
      this.#registered = true;
      return table;
    } catch (error) {
      if (error instanceof NativeError) throw rdmaError(error);
      throw error;
    }
  }

  /** Over RDMA the destination reads by itself, and only it can tell the sum where it has done so for a part. */
  stats(): PageStats | null {
    return this.#transport === "tcp" && !this.#registered ? this.#source.stats() : null;
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
  #transport: Transport;
  readonly #sink: PageSink;
  readonly #prefetchLinks: number;

  constructor(machine: Machine, options: DestinationPagerOptions) {
    const { transport, bandwidthBytesPerSecond: rate, prefetch, takeOver = false } = options;
    this.#transport = transport;
    this.#prefetchLinks = options.prefetchConnections;
    this.#sink = new PageSink(machine.ram, {
      precopyWindowBytes: windowOf(rate, WINDOW.precopyMs, WINDOW.unlimited.precopy),
      postcopyWindowBytes: windowOf(rate, WINDOW.postcopyMs, WINDOW.unlimited.postcopy),
      prefetch,
      takeOver,
      // Over TCP the source keeps the limit.
      bytesPerSecond: transport === "rdma" ? rate : 0,
    });
  }

  get transport(): Transport {
    return this.#transport;
  }

  get gone(): boolean {
    return this.#sink.gone;
  }

  async connect(rendezvous: Rendezvous | null): Promise<void> {
    if (this.transport === "tcp") return;
    if (!rendezvous) throw new ProtocolError("The source does not say where it can be reached by RDMA");
    const token = Uint8Array.fromHex(rendezvous.token);
    const failures: NativeError[] = [];
    for (const { host, port } of rendezvous.addresses) {
      try {
        return await this.#sink.dial({ host, port, token, prefetchLinks: this.#prefetchLinks, timeoutMs: DIAL_MS });
      } catch (error) {
        if (!(error instanceof NativeError)) throw error;
        failures.push(error);
      }
    }
    throw failures[0];
  }

  goOverTcp(): void {
    this.#transport = "tcp";
  }

  addPages(channel: Channel, role: PageRole): void {
    if (this.transport === "tcp") this.#sink.add(channel, role);
    else channel[Symbol.dispose]();
  }

  dropLink(): Promise<void> {
    return this.#sink.dropChannels();
  }

  async setRegions(table: Uint8Array<ArrayBuffer>): Promise<void> {
    if (this.transport === "tcp") throw new ProtocolError("The source sends a table of RDMA regions over TCP");
    await this.#sink.regions(table);
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

function overTcp(noRdma: string): TransportOffer {
  return { transports: ["tcp"], rdma: null, noRdma };
}

/** The lack behind a failure to use RDMA, with what mends it. */
function rdmaLack(error: NativeError): Lack;
function rdmaLack(error: NativeError | null): Lack | null;
function rdmaLack(error: NativeError | null): Lack | null {
  return error && {
    check: error.code === "ENOMEM" ? "memlock" : "rdma",
    found: error.detail,
    remedy: REMEDIES[error.code] ?? "look for it in rdma link, ibv_devinfo and the kernel log, or use --transport tcp",
  };
}

const REMEDIES: Readonly<Record<string, string>> = {
  ENOENT: "run: apt-get install -y librdmacm1 ibverbs-providers",
  ENODEV: "rdma link shows the devices and their network devices; for soft-RoCE run: modprobe rdma_rxe && rdma link " +
    "add rxe0 type rxe netdev DEVICE",
  ENOMEM: "raise the limit (ulimit -l unlimited, or LimitMEMLOCK=infinity in a systemd unit), run as root, or use " +
    "--transport tcp",
  EADDRINUSE: "give --rdma-listen another port; 0 finds one",
  EADDRNOTAVAIL: "give --rdma-listen an address of this host",
  EINVAL: "give --rdma-listen an address in digits",
};

function rdmaError(error: NativeError): PreflightError {
  const { check, remedy } = rdmaLack(error);
  return new PreflightError(error.message, { check, remedy, cause: error });
}

function windowOf(rate: number, ms: number, unlimited: number): number {
  if (rate === 0) return unlimited;
  return Math.round(Math.min(unlimited, Math.max(WINDOW.minBytes, rate * ms / 1000)));
}
