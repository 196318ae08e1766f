/**
 * The source's side of one migration. See design: setup, pre-copy, stop, handover, the commit point, serving.
 *
 * Until `run` is sent every failure ends with the guest running here. From then on this side never runs the guest
 * again: it serves pages until the destination says that it has them all, or keeps them for as long as it lives.
 */
import { applySkipDirty } from "../../ffi/inject.ts";
import { NativeError } from "../../ffi/native_error.ts";
import { PageSet } from "../../ffi/page_set.ts";
import { joined } from "../bytes.ts";
import { GygesError, HandshakeError, MigrationError, PreflightError } from "../errors.ts";
import type { GygesEvent, SourceState, Summary } from "../events.ts";
import type { Machine } from "../machine/machine.ts";
import type { MigrateOptions } from "../options.ts";
import { sourcePager } from "../pager/choose.ts";
import type { SourcePager, TransportOffer } from "../pager/pager.ts";
import type { OwnMigration } from "../qemu/own_migration.ts";
import type { MessageOf, WireStats, WithSet } from "../wire/messages.ts";
import { type Peer, PeerNotRunError, ProtocolError } from "../wire/peer.ts";
import type { Ticket } from "../wire/ticket.ts";
import { GoneWatch, tellGivenUp } from "./farewell.ts";
import { checkTls, openControl } from "./link.ts";
import type { Left } from "./loaded.ts";
import { cannotBeContinued, failedBeforeCommit, howToAttach, linkLost, lossAtSource, nobodyListens } from "./loss.ts";
import { handOverByItself } from "./own_move.ts";
import { decide, type FinishedRound } from "./precopy_policy.ts";
import { promiseOf } from "./promise.ts";
import { SourceAccount } from "./source_account.ts";
import { COMMITTED_SOURCE_STATES, SOURCE_TRANSITIONS, StateMachine } from "./states.ts";
import { pulledPages } from "./stats.ts";
import { DEADLINE_MS, pause } from "./timing.ts";
import { WayBack } from "./way_back.ts";

export interface SourceOptions {
  machine: Machine;
  ticket: Ticket;
  migrate: MigrateOptions;
  onEvent: (event: GygesEvent) => void;
  /** Keeps what another process needs, should this one die. Not called where none could go on. */
  keep: (left: Left) => Promise<void>;
}

/** Time kept back from the pre-copy limit, for dropping stale pages at the destination before the stop. */
const RESERVE_SHARE = 0.1;
const RESERVE_MAX_MS = 50;
/** The last round of pre-copy mode, with the guest stopped, has no limit of its own. */
const LAST_ROUND_MS = 3_600_000;
const NOTHING = new Uint8Array(0);

export class SourceMigration {
  readonly mode: MigrateOptions["mode"];
  readonly #machine: Machine;
  readonly #ticket: Ticket;
  readonly #options: MigrateOptions;
  readonly #onEvent: (event: GygesEvent) => void;
  readonly #states: StateMachine<SourceState>;
  readonly #abort = new AbortController();
  readonly #pages: number;
  readonly #pager: SourcePager;
  readonly #account: SourceAccount;
  /** Somebody had stopped the guest before the move began. */
  readonly #heldFirst: boolean;
  #peer: Peer | null = null;
  #session = "";
  /** The newest region table that the destination has not been sent. */
  #unsentRegions: Uint8Array<ArrayBuffer> = NOTHING;
  readonly #keep: SourceOptions["keep"];
  readonly #left: Left | undefined;
  #rounds: FinishedRound[] = [];
  #stoppedAt = 0;
  #lost = false;
  /** The operator knows of the lost link, and of how to go on without the destination's process. */
  #patient = false;
  #advised = false;
  readonly #wayBack: WayBack;
  /** The destination's pager has said that it has every page. */
  #allRead = false;
  #destinationKnows = Promise.resolve();

  /**
   * Of a migration that begins, or of one that a process which died has `left`: that only goOn() continues. Throws
   * UsageError when the guest's RAM was made for another pager than was asked for.
   */
  constructor(options: SourceOptions, left?: Left) {
    const { pager, bandwidthBytesPerSecond, prefetchConnections } = options.migrate;
    this.#pager = sourcePager(pager, options.machine, { bandwidthBytesPerSecond, prefetchConnections });
    this.#machine = options.machine;
    this.#ticket = options.ticket;
    this.#options = options.migrate;
    this.#onEvent = options.onEvent;
    this.#keep = options.keep;
    this.mode = options.migrate.mode;
    const { mode } = this;
    this.#account = new SourceAccount({ mode, tls: options.ticket.tls, machine: options.machine, pager: this.#pager });
    this.#wayBack = new WayBack(this.#pager, this.#account, (detail) => this.#note(detail, "warning"));
    this.#left = left;
    this.#heldFirst = options.machine.held ?? false;
    this.#pages = options.machine.ramBytes / options.machine.shape.page_bytes;
    this.#states = new StateMachine(SOURCE_TRANSITIONS, left ? "paused" : "setup", (state, detail) => {
      this.#onEvent({ type: "state", side: "source", state, detail });
    });
    if (!left) return;
    this.#session = left.session;
    this.#account.goOnFrom(left.figures);
    void this.#watchPages();
  }

  get machine(): Machine {
    return this.#machine;
  }

  get state(): SourceState {
    return this.#states.state;
  }

  /** The guest belongs to the destination, for good. */
  get committed(): boolean {
    return COMMITTED_SOURCE_STATES.includes(this.state);
  }

  /** The destination's process has ended with the guest. What is kept here is of no more use. */
  get lost(): boolean {
    return this.#lost;
  }

  /** Once run() has failed before the commit point: resolves when the destination does not wait for the guest any more. */
  get destinationKnows(): Promise<void> {
    return this.#destinationKnows;
  }

  get elapsedMs(): number {
    return this.#account.elapsedMs;
  }

  /** Of the guest, in words, for as long as the move is not committed. */
  get whereabouts(): string {
    return this.#stays ? "is at the source, stopped as it was" : "runs at the source";
  }

  /** The destination's counters as it last told them. */
  get stats(): WireStats {
    return this.#account.stats;
  }

  get round(): number {
    return this.#account.rounds;
  }

  /** Bytes that crossed for pages so far, as far as is known here. */
  get wireBytes(): number {
    return this.#account.wireBytes;
  }

  /** Pages that the destination does not have yet, as far as is known here. */
  get missingPages(): number {
    if (this.committed || this.#machine.own) return this.stats.missing_pages;
    return this.#account.missingPages;
  }

  /** Asks for an end before the commit point; `run()` rejects once the guest runs here. False: it is too late. */
  cancel(reason: MigrationError): boolean {
    if (this.committed) return false;
    this.#abort.abort(reason);
    this.#peer?.[Symbol.dispose]();
    return true;
  }

  /** Moves the guest. Throws HandshakeError, MigrationError; both say where the guest is. */
  async run(): Promise<Summary> {
    try {
      await this.#setup();
      if (this.#machine.own) {
        await this.#handOverByItself(this.#machine.own);
        await this.#orderRun();
      } else {
        if (this.mode !== "full") await this.#precopy();
        await this.#switch();
      }
    } catch (error) {
      if (!this.committed || error instanceof PeerNotRunError) throw await this.#rollBack(error);
      return await this.#unlessGivenBack(() => this.#comeBack(error));
    }
    return await this.#unlessGivenBack(() => this.#toTheEnd());
  }

  /** After run() has given up on a lost link, or its process has died: waits for the destination however long. Throws as run(). */
  async goOn(): Promise<Summary> {
    this.#patient = true;
    return await this.#unlessGivenBack(() => this.#comeBack(new Error("it has not come back yet")));
  }

  async #comeBack(lost: unknown): Promise<Summary> {
    await this.#pause(lost);
    return await this.#toTheEnd();
  }

  /** The one way back after `run` was said, see lib/wire/messages.ts. */
  async #unlessGivenBack(work: () => Promise<Summary>): Promise<Summary> {
    try {
      return await work();
    } catch (error) {
      throw error instanceof PeerNotRunError ? await this.#rollBack(error) : error;
    }
  }

  async #toTheEnd(): Promise<Summary> {
    const summary = await this.#serve();
    await this.#pager[Symbol.asyncDispose]();
    return summary;
  }

  // ---- before the commit point ----

  async #setup(): Promise<void> {
    const { tls, bandwidthBytesPerSecond, prefetch, prefetchConnections } = this.#options;
    checkTls(this.#ticket, tls);
    this.#onEvent(promiseOf(this.#options, this.#machine.ramBytes));
    // Before the ticket is used up: what cannot be had here is not for the destination to find out.
    await this.#machine.checkMovable?.();
    const can = await this.#preparePager();
    const { peer, session } = await openControl(this.#ticket);
    this.#session = session;
    this.#take(peer);
    await peer.send({
      type: "offer",
      mode: this.mode,
      pager: this.#pager.kind,
      transports: can.transports,
      ...(can.rdma ? { rdma: can.rdma } : { no_rdma: can.noRdma }),
      machine: this.#machine.shape,
      bandwidth_bytes_per_s: bandwidthBytesPerSecond,
      prefetch,
      prefetch_connections: prefetchConnections,
    });
    const { message: accepted } = await peer.expect("accepted", DEADLINE_MS.settle);
    if (!can.transports.includes(accepted.transport)) {
      throw new ProtocolError(`The destination settled on ${accepted.transport}, which was not offered`);
    }
    this.#account.settled = accepted;
    this.#note(`Pages move by ${accepted.why}`);
    if (this.#stays) this.#note("The guest is stopped, and stays so");
    void this.#watchPages();
    await this.#connectPager();
  }

  #preparePager(): Promise<TransportOffer> {
    const { transport, rdmaListen } = this.#options;
    return this.#pager.prepare({ transport, rdmaListen, towards: this.#ticket.host });
  }

  #connectPager(): Promise<void> {
    const { transport } = this.#account.settled;
    return this.#pager.connect({ transport, ticket: this.#ticket, session: this.#session });
  }

  async #precopy(): Promise<void> {
    const { mode, precopyTimeoutMs, switchThresholdMs, downtimeLimitMs } = this.#options;
    const limits = { limitMs: precopyTimeoutMs, thresholdMs: mode === "hybrid" ? switchThresholdMs : downtimeLimitMs };
    this.#states.to("precopy", `pulling pages for ${precopyTimeoutMs / 1000} s at most while the guest runs`);
    const startedAt = performance.now();
    // Tracking first: a page written during the scan is then in the set or in the log, or in both.
    this.#note(`Writes are tracked by ${await this.#pager.dirtyStart()}`);
    let dirty = new PageSet(this.#pages);
    this.#account.presentPages = await this.#pager.scanPresent(dirty);
    const endAt = startedAt + precopyTimeoutMs - Math.min(RESERVE_MAX_MS, precopyTimeoutMs * RESERVE_SHARE);
    for (;;) {
      const round = await this.#round(dirty, endAt - performance.now());
      dirty = new PageSet(this.#pages);
      const dirtied = await this.#pager.dirtyCollect(dirty);
      await this.#pager.checkReadable?.();
      this.#count({ ...round, dirtyPages: round.leftPages + dirtied });
      const elapsedMs = performance.now() - startedAt + (startedAt + precopyTimeoutMs - endAt);
      const verdict = decide(this.#rounds, elapsedMs, limits);
      if (verdict.next === "round") continue;
      this.#note(`Pre-copy ends after ${this.#rounds.length} rounds: ${verdict.detail}`);
      break;
    }
    // What is left out here is sent by no later set, unless the guest writes it again before the stop.
    applySkipDirty(dirty);
    // Stale pages are dropped while the guest still runs, so that the downtime pays only for the very last ones.
    await this.#refreshRegions();
    await this.#sendSet({ type: "discard" }, dirty.encode());
    await this.#connected.expect("discarded", DEADLINE_MS.answer);
    this.#account.precopyMs = performance.now() - startedAt;
  }

  #count(round: FinishedRound): void {
    this.#rounds.push(round);
    this.#account.rounds = this.#rounds.length;
  }

  async #round(set: PageSet, deadlineMs: number) {
    const startedAt = performance.now();
    const before = this.#account.told;
    const round = this.#rounds.length + 1;
    await this.#refreshRegions();
    const limitMs = Math.max(0, Math.round(deadlineMs));
    await this.#sendSet({ type: "round", round, deadline_ms: limitMs }, set.encode());
    const message = await this.#roundDone(limitMs + DEADLINE_MS.answer);
    if (message.round !== round) {
      throw new ProtocolError(`The destination ends round ${message.round} in round ${round}`);
    }
    this.#account.told = message.stats;
    return {
      pulledPages: pulledPages(message.stats) - pulledPages(before),
      durationMs: performance.now() - startedAt,
      leftPages: message.left_pages,
    };
  }

  /** Hears of the round's progress meanwhile. */
  async #roundDone(timeoutMs: number): Promise<MessageOf<"round_done">> {
    const { message } = await this.#connected.expect("round_done", timeoutMs, (other) => {
      if (other.type === "progress") this.#account.told = other.stats;
      return other.type === "progress";
    });
    return message;
  }

  /** From the stop of the guest to its first step at the destination. */
  async #switch(): Promise<void> {
    const last = new PageSet(this.#pages);
    // With the guest running this costs nothing; stopped it would be downtime.
    if (this.mode === "full") await this.#pager.scanPresent(last);
    await this.#refreshRegions();
    await this.#machine.prepareSave();
    this.#abort.signal.throwIfAborted();
    this.#stoppedAt = performance.now();
    await this.#machine.stop(DEADLINE_MS.stop);
    this.#states.to("stopped", "the guest is stopped here");
    const readable = this.#pager.checkReadable?.();
    // Awaited below, unless something else fails before.
    readable?.catch(() => {});
    if (this.mode === "full") this.#account.presentPages = await this.#pager.scanPresent(last);
    else await this.#pager.dirtyCollect(last);
    applySkipDirty(last);
    await this.#handOver(await this.#stopAndCopy(last));
    await readable;
    this.#abort.signal.throwIfAborted();
    this.#machine.giveAway();
    // Not before: whoever takes over says `run`, when nobody may let the guest run on here any more.
    await this.#leave();
    this.#abort.signal.throwIfAborted();
    await this.#orderRun();
  }

  /** QEMU has the pages too, for another process to serve. What a kernel offers, or reads, does without one. */
  async #leave(): Promise<void> {
    const { settled, figures } = this.#account;
    if (!this.#outlived || this.#pager.kind !== "user" || settled.pager !== "user") return;
    const { bandwidthBytesPerSecond, prefetchConnections } = this.#options;
    const [ticket, session, mode, stopped] = [this.#ticket, this.#session, this.mode, this.#stays];
    await this.#keep({ ticket, session, mode, stopped, bandwidthBytesPerSecond, prefetchConnections, figures });
  }

  async #orderRun(): Promise<void> {
    if (!this.committed) this.#states.to("serving", "the guest belongs to the destination");
    const saidAt = performance.now();
    await this.#sayRun(this.#connected);
    this.#account.startMs = performance.now() - saidAt;
  }

  async #sayRun(peer: Peer): Promise<void> {
    await peer.send({ type: "run", ...this.#stays ? { stopped: true } : {} });
    await peer.expect("running", DEADLINE_MS.answer);
  }

  #handOverByItself(own: OwnMigration): Promise<void> {
    return handOverByItself(own, {
      mode: this.mode,
      options: this.#options,
      machine: this.#machine,
      states: this.#states,
      account: this.#account,
      signal: this.#abort.signal,
      note: (detail) => this.#note(detail),
      peer: this.#connected,
      sendNothing: (message) => this.#sendSet(message, new PageSet(this.#pages).encode()),
      roundDone: () => this.#roundDone(DEADLINE_MS.answer),
    });
  }

  /** Pre-copy mode moves the last dirty pages with the guest stopped; the other modes leave them to post-copy. */
  async #stopAndCopy(last: PageSet): Promise<PageSet> {
    if (this.mode !== "precopy") return last;
    const round = await this.#round(last, LAST_ROUND_MS);
    this.#count({ ...round, dirtyPages: 0 });
    return new PageSet(this.#pages);
  }

  async #handOver(missing: PageSet): Promise<void> {
    this.#states.to("handover", "CPU state and page sets go over");
    await this.#refreshRegions();
    const told = this.#sendSet({ type: "handover" }, missing.encode());
    // Looked at below.
    told.catch(() => {});
    // The destination loads what has come while the rest is saved.
    for await (const { bytes, more } of this.#machine.save()) {
      await this.#connected.send({ type: "state", more }, bytes);
    }
    await told;
    const { message } = await this.#connected.expect("loaded", DEADLINE_MS.handover);
    this.#account.handoverMs = performance.now() - this.#stoppedAt;
    this.#account.loaded(message.missing_pages);
  }

  /** What has become present since the destination was last told of it can be read from here on. */
  async #refreshRegions(): Promise<void> {
    this.#unsentRegions = await this.#pager.regions() ?? this.#unsentRegions;
  }

  /** Sends `message` with the regions that are not told yet and then `set` behind it. */
  async #sendSet(message: WithSet, set: Uint8Array<ArrayBuffer>): Promise<void> {
    const regions = this.#unsentRegions;
    this.#unsentRegions = NOTHING;
    await this.#connected.send({ ...message, regions_bytes: regions.length }, joined([regions, set]));
  }

  /** Everything back as it was; the guest runs here. Returns the error to throw. */
  async #rollBack(error: unknown): Promise<GygesError> {
    const phase = this.state;
    // First of all: telling a destination that is gone may take seconds, and it cannot run the guest without our run.
    const stuck = await this.#runAgain();
    for (const undo of [() => this.#pager.dirtyStop(), () => this.#machine.undoSave()]) {
      await undo().catch((failure) => this.#note(`Cleaning up did not go well: ${messageOf(failure)}`));
    }
    await this.#peer?.send({ type: "failed", message: "the source gave up" }).catch(() => {});
    this.#peer?.[Symbol.dispose]();
    // A cancel closed the connection, a time-out too: a destination that is loaded would wait for us to come back.
    if (phase === "handover") this.#destinationKnows = tellGivenUp(this.#ticket, this.#session);
    await this.#pager[Symbol.asyncDispose]();
    const cause = this.#abort.signal.aborted ? this.#abort.signal.reason : error;
    if (stuck !== null) {
      this.#states.to("failed", "the guest is here, and stands still");
      return cannotBeContinued(messageOf(cause), messageOf(stuck), phase, cause);
    }
    this.#states.to("failed", this.#stays ? "the guest is here, stopped as it was" : "the guest runs here");
    if (cause instanceof HandshakeError || cause instanceof MigrationError || cause instanceof PreflightError) {
      return cause;
    }
    return failedBeforeCommit(messageOf(cause), this.whereabouts, phase, cause);
  }

  /** What keeps the guest from running here; null: it runs, if it is to. */
  async #runAgain(): Promise<unknown> {
    if (this.#machine.running || this.#stays) return null;
    try {
      await this.#machine.run();
      return null;
    } catch (error) {
      return error ?? new Error("it does not say why");
    }
  }

  // ---- after it ----

  async #serve(): Promise<Summary> {
    for (;;) {
      try {
        return await this.#finish(await this.#untilComplete());
      } catch (error) {
        if (this.#lost) throw error;
        await this.#pause(error);
        if (this.state === "paused") return this.#finishUntold();
      }
    }
  }

  /** Serves pages until the destination has them all. Throws when the link is lost. */
  async #untilComplete(): Promise<MessageOf<"complete">> {
    for (;;) {
      const { message } = await this.#connected.receive(DEADLINE_MS.silence);
      if (message.type === "complete") return message;
      if (message.type === "progress") {
        this.#account.told = message.stats;
        this.#wayBack.taken();
      }
      if (message.type === "failed") throw this.#loss(message.message);
    }
  }

  /**
   * A page connection that fails takes the control connection with it: there is one way to give up or to recover, for
   * all. One watcher for the source's whole life: two would take each other's events.
   */
  async #watchPages(): Promise<void> {
    while (!this.#pager.gone) {
      const events = await this.#pager.wait(1_000);
      this.#allRead ||= events?.complete ?? false;
      if (events?.linkLost || events?.failed) this.#peer?.[Symbol.dispose]();
    }
  }

  async #finish(complete: MessageOf<"complete">): Promise<Summary> {
    const summary = this.#account.summary(complete);
    // The destination has everything whether or not it hears this.
    await this.#connected.send({ type: "finished", summary }).catch(() => {});
    this.#states.to("completed", "the destination has every page");
    this.#peer?.[Symbol.dispose]();
    return summary;
  }

  /** Nobody is left at the destination who would say more than that every page is there. */
  #finishUntold(): Summary {
    this.#note(
      "The destination's kernel has every page, and its gyges is gone: faults are counted as it last told them",
    );
    const summary = this.#account.summaryUntold();
    this.#states.to("completed", "the destination has every page");
    return summary;
  }

  /**
   * The link is lost: tries to come back until the deadline, then leaves it to the operator. Resolves in state "paused"
   * if the destination needs nothing any more.
   */
  async #pause(error: unknown): Promise<void> {
    this.#peer?.[Symbol.dispose]();
    if (this.state !== "paused") this.#states.to("paused", `the link to the destination is lost: ${messageOf(error)}`);
    const deadline = this.#patient ? Infinity : performance.now() + DEADLINE_MS.reconnect;
    const gone = new GoneWatch();
    let last = error;
    while (performance.now() < deadline) {
      if (this.#allRead) return;
      try {
        await this.#reconnect();
        this.#states.to("serving", "the link is back");
        return;
      } catch (retryError) {
        if (this.#lost || retryError instanceof PeerNotRunError) throw retryError;
        last = retryError;
        if (gone.saw(retryError) && this.#account.incomplete) this.#missed(retryError);
        await pause(DEADLINE_MS.retry);
      }
    }
    throw linkLost(messageOf(last), this.#outlived ? this.#howToAttach : null, last);
  }

  async #reconnect(): Promise<void> {
    await this.#pager.dropLink();
    const way = await this.#wayBack.next(() => this.#preparePager());
    const { peer, state } = await openControl(this.#ticket, { session: this.#session, ...way });
    this.#wayBack.tried(way);
    this.#take(peer);
    if (state === "failed") throw this.#loss("The guest is lost: its QEMU has ended, says the destination");
    // First, as a QEMU that lets its guest run may touch a page that is missing.
    if (state !== "completed") await this.#connectPager();
    // The destination's word decides: it has not heard our run, so the guest has not run there.
    if (state === "loading") await this.#sayRun(peer);
  }

  /** Nobody listens any more where the destination did: its process has ended. */
  #missed(cause: unknown): void {
    if (!this.#outlived) throw this.#loss(nobodyListens(this.#ticket), cause);
    if (!this.#advised) this.#note(this.#howToAttach, "warning");
    this.#advised = true;
  }

  /** A QEMU lives on without the process that receives its guest, and another can go on with that. */
  get #outlived(): boolean {
    return this.#machine.shape.kind === "qemu";
  }

  get #howToAttach(): string {
    return howToAttach(this.#ticket, this.#account.settled.pager);
  }

  #loss(words: string, cause?: unknown): MigrationError {
    this.#lost = true;
    return lossAtSource(words, cause);
  }

  // ---- small things ----

  /** Who has stopped the guest does not want it to run, neither there nor here. One that moves by itself stops by itself. */
  get #stays(): boolean {
    if (this.#left) return this.#left.stopped;
    return this.#machine.own ? this.#heldFirst : this.#machine.held ?? false;
  }

  #take(peer: Peer): void {
    this.#peer = peer;
    // A cancel that came while the connection was being made has not seen this peer.
    if (this.#abort.signal.aborted && !this.committed) peer[Symbol.dispose]();
  }

  get #connected(): Peer {
    if (!this.#peer) throw new Error("There is no control connection yet");
    return this.#peer;
  }

  #note(detail: string, level: "info" | "warning" = "info"): void {
    this.#onEvent({ type: "note", level, detail });
  }
}

function messageOf(error: unknown): string {
  if (error instanceof NativeError && error.code === "ECONNREFUSED") return `${error.message}: is the destination up?`;
  return error instanceof Error ? error.message : String(error);
}
