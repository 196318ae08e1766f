/**
 * How a guest's RAM moves: what both state machines ask of a pager, whichever it is.
 *
 * A kind of pager (`Pager`) makes the RAM file, since where RAM lives decides what can catch its faults. Each end has a
 * pager of its own: over RDMA the two need not be of one kind, because the destination reads what the source's region
 * table names; over TCP both are user pagers.
 *
 *   source                                        destination
 *      prepare()     listens, makes the token  ->    connect()    dials, is told a token it must show
 *      connect()     once the transport is settled
 *      regions()     before each round,        ->    setRegions() before the set that came with it
 *                    discard and handover
 *      dropLink(), prepare(), connect()        ->    dropLink(), connect()       after a lost link
 */
import type { Channel } from "../../ffi/channel.ts";
import type { PagerEvents, PageRole } from "../../ffi/page_source.ts";
import type { PageSet } from "../../ffi/page_set.ts";
import type { PageStats } from "../../ffi/page_stats.ts";
import type { Ram } from "../../ffi/ram.ts";
import type { Machine } from "../machine/machine.ts";
import type { HostPort, PagerKind, Transport, TransportChoice } from "../options.ts";
import type { Rendezvous, WireStats } from "../wire/messages.ts";
import type { Ticket } from "../wire/ticket.ts";

/** Why this host cannot do something, as `gyges doctor` would say it. */
export interface Lack {
  check: string;
  found: string;
  remedy: string;
}

/** What a source can do towards a destination that it does not know yet. */
export interface TransportOffer {
  /** Not empty. */
  transports: Transport[];
  /** Where the source listens; null without "rdma" among the transports, and `noRdma` says why then. */
  rdma: Rendezvous | null;
  noRdma: string;
}

export interface PrepareSourceOptions {
  transport: TransportChoice;
  rdmaListen: HostPort | null;
  /** Host in the ticket: of several addresses one in the same network is the best. */
  towards: string;
}

/** What page connections are opened with, where the transport needs any. */
export interface SourceLink {
  transport: Transport;
  ticket: Ticket;
  session: string;
}

export interface SourcePagerOptions {
  /** Bytes per second over all connections, 0 without limit; over RDMA it is the destination's to keep. */
  bandwidthBytesPerSecond: number;
  /** TCP connections for prefetch. */
  prefetchConnections: number;
}

/** The source's half: for one migration, made while the guest runs. Ends all service when disposed of. */
export interface SourcePager extends AsyncDisposable {
  readonly kind: PagerKind;
  readonly gone: boolean;

  /**
   * Begins to listen where `transport` allows RDMA. Called before the offer, and again, with the same options, before
   * the source comes back after a lost link: what it says then may differ. Throws PreflightError when none of what was
   * asked for can be had.
   */
  prepare(options: PrepareSourceOptions): Promise<TransportOffer>;
  /**
   * The destination has settled on a transport. TCP: opens its page connections. RDMA: the destination has connected
   * already when this is called at first; after a lost link it does so in its own time. Throws NativeError.
   */
  connect(link: SourceLink): Promise<void>;

  /**
   * Adds the present pages to `set`: all others are known to be zero. First with the guest running, before the first
   * `regions()`; then, in full mode, quickly, into the same set, with it stopped. Resolves with how many the set has.
   */
  scanPresent(set: PageSet): Promise<number>;
  /** From here on every write is noted: by what, in words. Comes before the first `scanPresent()` of a pre-copy. */
  dirtyStart(): Promise<string>;
  /** Adds what was written since the last call, or the start; resolves with how many pages that were. */
  dirtyCollect(set: PageSet): Promise<number>;
  /** Nothing when it was not started. */
  dirtyStop(): Promise<void>;

  /**
   * The table of remote regions, see lib/wire/messages.ts, for every page of the sets collected until now; null when
   * the one that was told last still holds, and over TCP. Registers what has become present since: called after a
   * set was collected, before it is sent, and only while the destination reads nothing.
   */
  regions(): Promise<Uint8Array<ArrayBuffer> | null>;

  /**
   * Throws when what the destination may read is not the guest's memory any more. With the guest stopped the answer
   * lasts; it may be awaited while the machine is saved. @default it always is
   */
  checkReadable?(): Promise<void>;

  /** Counters of what was served; null where the destination reads by itself and only it can tell. */
  stats(): PageStats | null;
  /** The destination's counters, with those that only this end has. @default as they are */
  account?(theirs: WireStats): WireStats;
  /**
   * What happened since the last call; null when nothing did in time, or at the end. One caller at a time. `complete`:
   * the destination has every page and says so by itself, as nobody there ended what brought them.
   */
  wait(timeoutMs: number): Promise<PagerEvents | null>;
  /** Closes what is left of a lost link, and forgets what it reported. RDMA's is the destination's to replace. */
  dropLink(): Promise<void>;
}

export interface DestinationPagerOptions {
  transport: Transport;
  /** Bytes per second over the whole link, 0 without limit. */
  bandwidthBytesPerSecond: number;
  /** false: only once no fault has come for a second. */
  prefetch: boolean;
  prefetchConnections: number;
  /** The pager was armed already, by a process that has died; never a kernel's. @default false */
  takeOver?: boolean;
}

/** The destination's half: for one migration, made before the machine is loaded. */
export interface DestinationPager extends AsyncDisposable {
  readonly kind: PagerKind;
  readonly transport: Transport;
  readonly gone: boolean;

  /**
   * RDMA: connects to the source, at first and again after `dropLink()`, then perhaps elsewhere; bounded by a time
   * of its own, some seconds. TCP: nothing, as page connections come through `addPages()`. Throws NativeError.
   */
  connect(rendezvous: Rendezvous | null): Promise<void>;
  /** After `dropLink()`: pages come over TCP from here on, whatever they came by. @default they cannot */
  goOverTcp?(): void;
  /** A page connection over TCP, taken over; a pager that does not use TCP closes it. */
  addPages(channel: Channel, role: PageRole): void;
  /** Closes what is left of a lost link; what was under way is wanted again, and what was reported is forgotten. */
  dropLink(): Promise<void>;

  /** The source's region table; nothing is under way. Throws NativeError EINVAL for a table that cannot be right. */
  setRegions(table: Uint8Array<ArrayBuffer>): Promise<void>;
  /** Pulls the pages of an encoded set until all are here or `deadlineMs` is up; resolves when that has begun. */
  round(set: Uint8Array<ArrayBuffer>, deadlineMs: number): Promise<void>;
  endRound(): Promise<void>;
  /** The pages of an encoded set are only at the source; stale copies go. Between rounds. Resolves with all missing. */
  discard(set: Uint8Array<ArrayBuffer>): Promise<number>;
  /** Post-copy begins, see design: every page that nothing vouches for goes. Resolves with the pages missing. */
  arm(): Promise<number>;
  /** The guest is to run: prefetch may begin. Once. */
  run(): Promise<void>;
  /** After `complete`: the RAM file is ordinary memory again. */
  disarm(): Promise<void>;

  stats(): PageStats;
  /** What happened since the last call; null when nothing did in time, or at the end. One caller at a time. */
  wait(timeoutMs: number): Promise<PagerEvents | null>;
  /** Ends a wait under way. */
  wake(): void;
}

/** One kind of pager on this host. */
export interface Pager {
  readonly kind: PagerKind;
  /** Why this host cannot use it over `transport`, as far as a look tells; null: it can. */
  lack(transport: Transport): Lack | null;
  /** Where another process, QEMU, makes RAM files that this pager can move; null: RAM may be wherever it is. */
  readonly ramFolder: string | null;
  /** An empty RAM file that this pager can move. Throws PreflightError, NativeError. */
  makeRam(bytes: number): Ram;
  source(machine: Machine, options: SourcePagerOptions): SourcePager;
  /** Throws NativeError; EPERM: this process may not catch page faults. */
  destination(machine: Machine, options: DestinationPagerOptions): DestinationPager;
}
