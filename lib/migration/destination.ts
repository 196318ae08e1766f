/**
 * The destination's side of one migration: from the first message to the last page.
 *
 * Until `run` arrives every failure ends with this side forgetting what it has; the guest runs at the source. From
 * then on the guest is here, and this side keeps it whatever happens to the link.
 */
import type { Channel } from "../../ffi/channel.ts";
import { PageSet } from "../../ffi/page_set.ts";
import type { PageRole } from "../../ffi/page_source.ts";
import { PAGE_BYTES } from "../../ffi/ram.ts";
import { GygesError, HandshakeError, MigrationError } from "../errors.ts";
import type { DestinationState, GygesEvent, Summary } from "../events.ts";
import { type Machine, NotRunError, type StatePiece } from "../machine/machine.ts";
import { reportOfRun } from "../machine/report.ts";
import type { PagerChoice, Transport } from "../options.ts";
import type { DestinationPager, Pager } from "../pager/pager.ts";
import type { MessageOf, WireMachine, WireStats } from "../wire/messages.ts";
import { type Peer, PeerFailedError, ProtocolError } from "../wire/peer.ts";
import { Absence, wordsOf } from "./absence.ts";
import { type ControlLink, listen } from "./control_link.ts";
import { Goodbye } from "./goodbye.ts";
import type { Loaded, TakenOver } from "./loaded.ts";
import { failedBeforeCommit, lossError, lossWords } from "./loss.ts";
import { checkOffer, payloadBound, settle } from "./settle.ts";
import { SinkWatch } from "./sink_watch.ts";
import { statePieces } from "./state_pieces.ts";
import { DESTINATION_TRANSITIONS, StateMachine } from "./states.ts";
import { makeSummary, NO_STATS, toNs, toWireStats } from "./stats.ts";
import { DEADLINE_MS, delay, pause, PROGRESS_MS } from "./timing.ts";

export interface DestinationOptions {
  tls: boolean;
  pager: PagerChoice;
  /** Builds the waiting machine that the source described, on RAM of `pager`. */
  build: (shape: WireMachine, pager: Pager) => Promise<Machine>;
  onEvent: (event: GygesEvent) => void;
  /**
   * Keeps what another process needs should this one die, where the guest would outlive it: before the guest is loaded,
   * and again when more is known. Where it throws before the commit point the migration fails.
   */
  keep?: (loaded: Loaded) => Promise<void>;
}

/** Of a machine that cannot run; all within the time that a source waits for an answer. */
const RUN_TRIES = 3;
/** What a message takes of free words. */
const MAX_WORDS = 4096;

export class DestinationMigration {
  readonly #options: DestinationOptions;
  readonly #states: StateMachine<DestinationState>;
  /** Whoever waits for a source that is away. */
  readonly absence: Absence;
  #machine: Machine | null = null;
  #pager: DestinationPager | null = null;
  #watch: SinkWatch | null = null;
  #offer: MessageOf<"offer"> | null = null;
  #mode: MessageOf<"offer">["mode"] | null = null;
  #peer: Peer | null = null;
  #startedAt = 0;
  #stoppedAt = 0;
  #downtimeMs = 0;
  #loadedAt = 0;
  #startMs = 0;
  #precopyMs = 0;
  #rounds = 0;
  /** Pages missing when the pager was armed; null before. */
  #missingAtStart: number | null = null;
  #loaded = false;
  #prefetches = false;
  #last: WireStats = NO_STATS;
  /** What a process that died before this one took over had its pages by. */
  #transportBefore: Transport = "tcp";
  #regions: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  /** Counted by a process that died before this one took over. */
  #before: Pick<WireStats, "precopy_pages" | "wire_bytes"> = { precopy_pages: 0, wire_bytes: 0 };
  #cancelled: GygesError | null = null;
  /** Why the guest has not run here, and will not. */
  #notRun: string | null = null;
  #sourceKnows = Promise.resolve();

  constructor(options: DestinationOptions, state: DestinationState = "listening") {
    this.#options = options;
    this.#states = new StateMachine(DESTINATION_TRANSITIONS, state, (state, detail) => this.#say(state, detail));
    const now = {
      pages: () => this.#pages,
      events: () => this.#events,
      inDoubt: () => this.inDoubt,
      missingPages: () => this.stats.missing_pages,
      sourceIsReplaceable: () =>
        this.#machine?.shape.kind === "qemu" && this.#pager?.kind === "user" && this.#offer?.pager !== "kernel",
    };
    this.absence = new Absence(this.#states, now, options.onEvent);
  }

  #say(state: DestinationState, detail: string): void {
    this.#options.onEvent({ type: "state", side: "destination", state, detail });
  }

  get state(): DestinationState {
    return this.#states.state;
  }

  get mode(): MessageOf<"offer">["mode"] | null {
    return this.#mode;
  }

  get round(): number {
    return this.#rounds;
  }

  get elapsedMs(): number {
    return this.#startedAt === 0 ? 0 : performance.now() - this.#startedAt;
  }

  get stats(): WireStats {
    if (this.#pager && !this.#pager.gone) {
      const stats = toWireStats(this.#pager.stats());
      const { precopy_pages, wire_bytes } = this.#before;
      this.#last = {
        ...stats,
        precopy_pages: stats.precopy_pages + precopy_pages,
        wire_bytes: stats.wire_bytes + wire_bytes,
      };
    }
    return this.#last;
  }

  get machine(): Machine | null {
    return this.#machine;
  }

  /** The guest is here, whole or not. */
  get committed(): boolean {
    return ["running", "paused", "completed"].includes(this.state);
  }

  /** Once receive() has resolved: resolves when its source has heard that every page is here. */
  get sourceKnows(): Promise<void> {
    return this.#sourceKnows;
  }

  /** The machine is loaded and the source may have said `run`: only the source can say what becomes of the guest. */
  get inDoubt(): boolean {
    return this.#loaded && !this.committed;
  }

  /** Ends a migration that is not yet committed; `receive()` rejects with `reason`. False: it is too late. */
  cancel(reason: GygesError): boolean {
    if (this.committed || this.inDoubt) return false;
    this.#cancelled = reason;
    this.#peer?.[Symbol.dispose]();
    return true;
  }

  /** A page connection whose hello named this session. Takes the channel over. */
  addPages(channel: Channel, role: PageRole): void {
    if (!this.#pager || this.#pager.gone) {
      channel[Symbol.dispose]();
      return;
    }
    this.#pager.addPages(channel, role);
  }

  /** Takes in the guest that `peer` brings; resolves once every page is here and it is ordinary memory. */
  async receive(peer: Peer): Promise<Summary> {
    this.#peer = peer;
    this.#startedAt = performance.now();
    try {
      this.#states.to("preparing", "a source has connected");
      await this.#prepare(peer);
      await this.#untilCommitted(peer);
    } catch (error) {
      throw await this.#giveUp(error);
    }
    return await this.#unlessLost(this.#postCopy(this.#peer ?? peer));
  }

  /**
   * Goes on with a guest whose process died; a migration that was made in state "loading", in doubt, or "paused".
   * Resolves as receive().
   */
  async attach({ loaded, machine, pager }: TakenOver): Promise<Summary> {
    this.#machine = machine;
    this.#mode = loaded.mode;
    this.#transportBefore = loaded.transport;
    this.#startedAt = performance.now();
    this.#loadedAt = this.#startedAt - (Date.now() - loaded.loadedAt);
    this.#stoppedAt = this.#loadedAt;
    this.#startMs = loaded.startMs ?? 0;
    this.#downtimeMs = this.#startMs;
    this.#precopyMs = loaded.precopyMs;
    this.#rounds = loaded.rounds;
    this.#before = loaded.stats;
    this.#loaded = true;
    this.#say(this.state, "this process goes on with a guest whose process has died");
    if (!pager) {
      // Every page was here when the process died that received them; perhaps its source does not know.
      this.#states.to("completed", "every page is here");
      return await this.#sayGoodbye(null);
    }
    this.#pager = pager;
    this.#watch = new SinkWatch(pager);
    if (loaded.regions.length > 0) await pager.setRegions(loaded.regions);
    const missing = await pager.arm();
    const found = machine.own
      ? "Which pages are here is QEMU's to know"
      : `${missing} pages are not here, some of which are zero. Figures of what was pulled begin anew`;
    this.#note("info", found);
    return await this.#unlessLost(this.#goOn());
  }

  async #goOn(): Promise<Summary> {
    const why = new Error("it has not come back to this process yet");
    if (this.inDoubt) {
      try {
        await this.#untilCommitted(await this.#untilBack(why));
      } catch (error) {
        throw await this.#giveUp(error);
      }
      return await this.#postCopy(this.#linked);
    }
    await this.#pages.run();
    const peer = await this.#untilBack(why);
    this.#states.to("running", "the source is back");
    return await this.#postCopy(peer);
  }

  async #unlessLost(whole: Promise<Summary>): Promise<Summary> {
    const ended = this.#built.ended;
    return await (ended ? Promise.race([whole, ended.then((why) => this.#guestLost(why))]) : whole);
  }

  /**
   * Its memory still comes, and it is there no more. Its end may end the page connections too, which its source takes for
   * a lost link: whoever does not hear this is told when it comes back.
   */
  async #guestLost(why: string): Promise<never> {
    const loss = { guest: "The guest", why, pages: `${this.stats.missing_pages} pages`, ran: !this.inDoubt };
    // Its source may come back before it has read this.
    const told = this.absence.tellLost();
    await this.#peer?.send({ type: "failed", message: lossWords(loss) }).catch(() => {});
    await told;
    throw lossError(loss, this.state);
  }

  async #untilBack(error: unknown): Promise<Peer> {
    return this.#peer = await this.absence.untilBack(error);
  }

  // ---- before the commit point ----

  async #prepare(peer: Peer): Promise<void> {
    const { message: offer } = await peer.expect("offer", DEADLINE_MS.answer);
    let why: string;
    try {
      checkOffer(offer);
      const settled = await settle(offer, { choice: this.#options.pager, build: this.#options.build });
      this.#machine = settled.machine;
      this.#pager = settled.pager;
      this.#watch = new SinkWatch(settled.pager);
      why = settled.why;
    } catch (error) {
      const { field, ours, theirs } = error instanceof HandshakeError
        ? error
        : { field: "machine", ours: "cannot hold it", theirs: `${offer.machine.ram_bytes} bytes of RAM` };
      await peer.send({ type: "refused", field, ours, theirs, message: wordsOf(error) });
      throw error;
    }
    this.#offer = offer;
    this.#mode = offer.mode;
    const { kind, transport } = this.#pager;
    peer.maxPayloadBytes = payloadBound(this.#machine, transport);
    this.#note("info", `Pages move by ${why}`);
    await peer.send({ type: "accepted", pager: kind, transport, why: why.slice(0, MAX_WORDS) });
  }

  /** A link lost in doubt is waited for: giving up could lose a guest whose `run` is on its way. */
  async #untilCommitted(first: Peer): Promise<void> {
    let peer = first;
    for (;;) {
      try {
        return await this.#untilRun(peer);
      } catch (error) {
        if (!this.inDoubt || error instanceof PeerFailedError) throw error;
        await this.absence.letGo(peer);
        peer = await this.#untilBack(error);
      }
    }
  }

  /** Serves pre-copy and handover until the source says `run`. */
  async #untilRun(peer: Peer): Promise<void> {
    for (;;) {
      const { message, payload } = await peer.receive(this.#patienceMs());
      switch (message.type) {
        case "round":
          await this.#startRound(peer, message, await this.#takeRegions(message, payload));
          break;
        case "end_round":
          await this.#pages.endRound();
          break;
        case "discard": {
          const set = await this.#takeRegions(message, payload);
          await peer.send({ type: "discarded", wanted_pages: await this.#pages.discard(set) });
          break;
        }
        case "handover":
          await this.#arm(await this.#takeRegions(message, payload));
          break;
        case "state":
          await this.#load(peer, { bytes: payload, more: message.more });
          break;
        case "run":
          if (await this.#run(peer, message.stopped ?? false)) return;
          break;
        case "failed":
          throw new PeerFailedError(message.message);
        default:
          throw new ProtocolError(`Got "${message.type}" from the source in state "${this.state}"`);
      }
    }
  }

  /** Takes in the region table that stands before what a message is about; resolves with the rest. */
  async #takeRegions(
    { type, regions_bytes: bytes }: MessageOf<"round" | "discard" | "handover">,
    payload: Uint8Array<ArrayBuffer>,
  ): Promise<Uint8Array<ArrayBuffer>> {
    if (bytes > payload.length) {
      throw new ProtocolError(`The "${type}" says ${bytes} bytes of regions and has ${payload.length}`);
    }
    if (bytes > 0) {
      this.#regions = payload.slice(0, bytes);
      await this.#pages.setRegions(this.#regions);
    }
    return bytes > 0 ? payload.slice(bytes) : payload;
  }

  /** A source in pre-copy may be silent for as long as a round takes; keepalive finds it when it dies. */
  #patienceMs(): number {
    return this.state === "precopy" ? 3_600_000 : DEADLINE_MS.answer * 3;
  }

  async #startRound(peer: Peer, message: MessageOf<"round">, set: Uint8Array<ArrayBuffer>): Promise<void> {
    this.#states.to("precopy", `round ${message.round}`);
    this.#rounds = message.round;
    await this.#pages.round(set, message.deadline_ms);
    // Not awaited: `end_round` must be heard while the round goes on.
    void this.#endRound(peer, message.round);
  }

  async #endRound(peer: Peer, round: number): Promise<void> {
    try {
      if (!await this.#tellWhile(peer, this.#events.roundEnded())) throw new Error("a page connection was lost");
      const nothing = new PageSet(this.#built.ramBytes / PAGE_BYTES).encode();
      const left = await this.#pages.discard(nothing);
      await peer.send({ type: "round_done", round, left_pages: left, stats: this.stats });
    } catch (error) {
      // The main loop sees the closed connection and gives up with this as its reason.
      this.#cancelled ??= this.#failedBeforeCommit(error);
      peer[Symbol.dispose]();
    }
  }

  /** Reports progress until `done` resolves, and resolves with the same. */
  async #tellWhile(peer: Peer, done: Promise<boolean>): Promise<boolean> {
    for (;;) {
      using tick = delay(PROGRESS_MS);
      const result = await Promise.race([done, tick.promise]);
      if (result !== undefined) return result;
      await peer.send({ type: "progress", stats: this.stats });
    }
  }

  /** Armed before the state is loaded: loading may touch RAM. */
  async #arm(set: Uint8Array<ArrayBuffer>): Promise<void> {
    this.#stoppedAt = performance.now();
    this.#precopyMs = this.#rounds > 0 ? this.#stoppedAt - this.#startedAt : 0;
    this.#states.to("loading", "the page sets have come, and CPU state follows");
    await this.#pages.discard(set);
    this.#missingAtStart = await this.#pages.arm();
    // Here it takes no time: the source still saves.
    await this.#keep();
  }

  async #load(peer: Peer, first: StatePiece): Promise<void> {
    if (this.#missingAtStart === null || this.#loaded) throw new ProtocolError(`Got "state" in state "${this.state}"`);
    await this.#built.restore(statePieces(peer, first, this.#built.maxStateBytes));
    this.#loaded = true;
    this.#loadedAt = performance.now();
    await peer.send({ type: "loaded", missing_pages: this.#missingAtStart });
  }

  /** A kernel pager brings its pages without any process. */
  async #keep(startMs: number | null = null): Promise<void> {
    const { remains: machine } = this.#built;
    if (!machine || !this.#offer || this.#pages.kind === "kernel") return;
    const { mode, bandwidth_bytes_per_s, prefetch, prefetch_connections } = this.#offer;
    await this.#options.keep?.({
      machine,
      mode,
      transport: this.#pages.transport,
      bandwidthBytesPerSecond: bandwidth_bytes_per_s,
      prefetch,
      prefetchConnections: prefetch_connections,
      regions: this.#regions,
      precopyMs: this.#precopyMs,
      rounds: this.#rounds,
      loadedAt: Date.now() - (startMs ?? 0),
      startMs,
      stats: this.stats,
    });
  }

  /** The commit point: the guest is ours, whether or not the source hears that it runs. False: it cannot be run here. */
  async #run(peer: Peer, stopped: boolean): Promise<boolean> {
    if (!this.inDoubt) throw new ProtocolError(`Got "run" in state "${this.state}"`);
    if (this.#notRun !== null) return await this.#giveBack(peer, this.#notRun);
    // Such a machine is stopped at the source, and loads, just before this.
    if (this.#built.own) this.#loadedAt = performance.now();
    // Before the guest: from its first step on a kernel's pager brings every page, whatever becomes of this process.
    if (this.#pages.kind === "kernel") await this.#beginPrefetch();
    const why = stopped ? await this.#take(this.#built) : await this.#start(this.#built);
    if (why) {
      // What could run the guest here is ended before a word of it is said.
      await this.#built.abandon();
      this.#notRun = `The guest cannot run at the destination: ${why.message}`;
      return await this.#giveBack(peer, this.#notRun);
    }
    const now = performance.now();
    this.#startMs = now - this.#loadedAt;
    this.#downtimeMs = now - this.#stoppedAt;
    this.#states.to("running", stopped ? "the guest is here, stopped as it was" : "the guest runs here");
    // Any other after it: what brings pages and what starts the guest want the same CPUs.
    await this.#beginPrefetch();
    await peer.send({ type: "running" }).catch(() => {});
    await this.#keep(this.#startMs).catch((error) => {
      this.#note("warning", `The time that the guest took to start cannot be kept: ${wordsOf(error)}`);
    });
    return true;
  }

  /** Once; a machine that does not start may be told to again. */
  async #beginPrefetch(): Promise<void> {
    if (!this.#prefetches) await this.#pages.run();
    this.#prefetches = true;
  }

  /** Null: it runs. Else why it does not, and is sure not to have run: somebody has its disk, say. */
  async #start(machine: Machine): Promise<NotRunError | null> {
    for (let tries = 1;; tries++) {
      try {
        await machine.run();
        return null;
      } catch (error) {
        // One that moves by itself can run nowhere else any more.
        if (!(error instanceof NotRunError) || machine.own) throw error;
        if (tries === RUN_TRIES) return error;
      }
      await pause(DEADLINE_MS.runAgain);
    }
  }

  async #take(machine: Machine): Promise<null> {
    if (!machine.stayStopped) {
      throw new ProtocolError("The source says that nobody runs a guest which cannot be stopped");
    }
    await machine.stayStopped();
    return null;
  }

  /** The source's answer ends the migration. */
  async #giveBack(peer: Peer, why: string): Promise<false> {
    this.#cancelled = this.#failedBeforeCommit(new Error(why));
    await peer.send({ type: "not_run", message: why.slice(0, MAX_WORDS) });
    return false;
  }

  async #giveUp(error: unknown): Promise<GygesError> {
    const cause = this.#cancelled ?? error;
    const phase = this.state;
    await this.#peer?.send({ type: "failed", message: wordsOf(cause).slice(0, 4000) }).catch(() => {});
    this.#peer?.[Symbol.dispose]();
    this.#last = this.stats;
    await this.#pager?.[Symbol.asyncDispose]();
    await this.#machine?.[Symbol.asyncDispose]();
    this.#machine = null;
    this.#states.to("failed", "the guest runs at the source");
    return cause instanceof GygesError ? cause : this.#failedBeforeCommit(cause, phase);
  }

  #failedBeforeCommit(cause: unknown, phase: string = this.state): MigrationError {
    return failedBeforeCommit(wordsOf(cause), "runs at the source", phase, cause);
  }

  // ---- after it ----

  async #postCopy(first: Peer): Promise<Summary> {
    let link = listen(first);
    for (;;) {
      try {
        await this.#untilWhole(link);
        break;
      } catch (error) {
        const back = await this.absence.outlast(link.peer, error);
        // The goodbye waits for a source that is away.
        if (!back) break;
        this.#peer = back;
        link = listen(back);
      }
    }
    await this.#pages.disarm();
    this.#states.to("completed", "every page is here");
    const summary = await this.#sayGoodbye(link);
    this.#last = this.stats;
    // Last: to the source a page connection that closes is a lost link until it knows that all is done.
    await this.#pages[Symbol.asyncDispose]();
    return summary;
  }

  /** Reports progress until the last page is here. Throws when the link is lost. */
  async #untilWhole(link: ControlLink): Promise<void> {
    for (;;) {
      const { changed } = this.#events;
      const { complete, failed, linkLost } = this.#events.seen;
      if (complete) return;
      if (failed) throw new Error("a page connection broke the protocol, or guest memory cannot be had");
      if (linkLost) throw new Error("a page connection was lost");
      await link.peer.send({ type: "progress", stats: this.stats });
      using tick = delay(PROGRESS_MS);
      await Promise.race([changed, link.settled, tick.promise]);
      if (link.error) throw link.error;
      if (link.message) throw new ProtocolError(`Got "${link.message.type}" from the source in state "${this.state}"`);
    }
  }

  /** Tells the source that it may go, and waits for its account, not without end. The guest is whole and does not wait. */
  async #sayGoodbye(first: ControlLink | null): Promise<Summary> {
    const { corrupt, verified_pages, largest_stall_ns } = await reportOfRun(this.#built);
    const goodbye = new Goodbye(this.absence, {
      type: "complete",
      stats: this.stats,
      start_ns: toNs(this.#startMs),
      guest: { corrupt, verified_pages, largest_stall_ns },
    });
    const summary = await goodbye.say(first);
    if (summary) return summary;
    this.#note(
      "warning",
      "Every page is here, and the source has not said that it knows: it is told whenever it comes back",
    );
    this.#sourceKnows = goodbye.sayLater().then(() => this.#note("info", "The source is back, and knows"));
    return this.ownSummary();
  }

  /** This side's own account, for when the source's never came. */
  ownSummary(): Summary {
    const guest = this.#built.report();
    return makeSummary({
      mode: this.mode ?? "full",
      pager: this.#pager?.kind ?? "user",
      transport: this.#pager?.transport ?? this.#transportBefore,
      tls: this.#options.tls,
      ramBytes: this.#built.ramBytes,
      pageBytes: PAGE_BYTES,
      totalMs: this.elapsedMs,
      downtimeMs: this.#downtimeMs,
      precopyMs: this.#precopyMs,
      precopyRounds: this.#rounds,
      stats: this.stats,
      guest,
    });
  }

  #note(level: "info" | "warning", detail: string): void {
    this.#options.onEvent({ type: "note", level, detail });
  }

  get #linked(): Peer {
    if (!this.#peer) throw new Error("There is no control connection");
    return this.#peer;
  }

  get #pages(): DestinationPager {
    if (!this.#pager) throw new ProtocolError("The source speaks of pages before it has made an offer");
    return this.#pager;
  }

  get #events(): SinkWatch {
    if (!this.#watch) throw new ProtocolError("The source speaks of pages before it has made an offer");
    return this.#watch;
  }

  get #built(): Machine {
    if (!this.#machine) throw new ProtocolError("The source speaks of a machine before it has made an offer");
    return this.#machine;
  }
}
