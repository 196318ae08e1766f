/**
 * The process that holds a guest here: the one that started it, or the one that received it. It answers the control
 * socket, makes the source's side of a migration, and ends when its guest is stopped or has moved away.
 */
import * as v from "valibot";
import { PAGE_BYTES } from "../../ffi/ram.ts";
import { toErrorEvent } from "../control/error_event.ts";
import type { Handler, HandlerContext, Handlers } from "../control/server.ts";
import { EXIT, type ExitCode, type GuestLocation, GygesError, MigrationError, UsageError } from "../errors.ts";
import type { GuestEvent, GuestReport, GygesEvent, RamCheck, Sample, Summary } from "../events.ts";
import type { Machine } from "../machine/machine.ts";
import type { DestinationMigration } from "../migration/destination.ts";
import type { Left } from "../migration/loaded.ts";
import { SourceMigration } from "../migration/source.ts";
import { NO_LATENCY } from "../migration/stats.ts";
import { pause } from "../migration/timing.ts";
import { MIGRATE_DEFAULTS, type MigrateOptions } from "../options.ts";
import { parseTicket, type Ticket } from "../wire/ticket.ts";
import { Sampler, type Snapshot } from "./sampler.ts";

const STOP_MS = 2_000;
/** A source that is away may have to be told for longer: then whoever asks must ask again. */
const ARRIVE_MS = 5_000;
const SAMPLE_MS = 200;
const MIN_SAMPLE_MS = 20;

const IN_DOUBT = "The guest is loaded here and the source may just be saying that it is to run, so this goes on. " +
  "Kill this process only if the guest is seen running at the source";

const migrateSchema = v.object({
  ticket: v.string(),
  mode: v.picklist(["hybrid", "full", "precopy"]),
  precopyTimeoutMs: v.pipe(v.number(), v.minValue(0)),
  switchThresholdMs: v.pipe(v.number(), v.minValue(0)),
  bandwidthBytesPerSecond: v.pipe(v.number(), v.minValue(0)),
  downtimeLimitMs: v.pipe(v.number(), v.minValue(0)),
  prefetchConnections: v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(16)),
  prefetch: v.boolean(),
  tls: v.boolean(),
  pager: v.picklist(["auto", "user", "kernel", "native"]),
  transport: v.picklist(["auto", "tcp", "rdma"]),
  rdmaListen: v.nullable(v.object({
    host: v.string(),
    port: v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(65535)),
  })),
});
const monitorSchema = v.object({ interval_ms: v.pipe(v.number(), v.minValue(MIN_SAMPLE_MS)) });
const statusSchema = v.object({ verify: v.boolean() });

/** Where a source keeps what another process needs to go on serving its pages. */
export interface Keeper {
  keep: (left: Left) => Promise<void>;
  /** Nobody needs to any more. */
  forget: () => void;
}

export class Resident {
  readonly #name: string;
  readonly #onEvent: (event: GygesEvent) => void;
  readonly #keeper: Keeper;
  readonly #ended = Promise.withResolvers<ExitCode>();
  #machine: Machine | null = null;
  #source: SourceMigration | null = null;
  #destination: DestinationMigration | null = null;
  #cancelWaiting: ((error: GygesError) => void) | null = null;
  #over = false;
  /** It ends because it was asked to, not by itself. */
  #stopping = false;
  /** The guest's memory may go at any time: nobody may ask for it any more. */
  #gone = false;
  #turn: Promise<unknown> = Promise.resolve();
  #destinationKnows = Promise.resolve();

  constructor(name: string, onEvent: (event: GygesEvent) => void, keeper: Keeper) {
    this.#name = name;
    this.#onEvent = onEvent;
    this.#keeper = keeper;
  }

  /** What the process exits with, once nothing keeps it. */
  get ended(): Promise<ExitCode> {
    return this.#ended.promise;
  }

  /** Resolves when no destination is in doubt any more whose move has failed. What it is to hear only this process can say. */
  get destinationKnows(): Promise<void> {
    return this.#destinationKnows;
  }

  /** The guest is this process's from now on. */
  hold(machine: Machine): void {
    this.#machine = machine;
    this.#destination = null;
    void this.#watchGuest(machine);
  }

  /** A migration to here is awaited or under way; `cancelWaiting` ends it while nobody has connected. */
  receiveBy(destination: DestinationMigration, cancelWaiting: (error: GygesError) => void): void {
    this.#destination = destination;
    this.#cancelWaiting = cancelWaiting;
  }

  readonly handlers: Handlers = new Map<string, Handler>([
    ["status", (params: unknown) => this.#status(v.parse(statusSchema, params).verify)],
    ["stop", () => this.#stopGuest()],
    [
      "migrate",
      (params: unknown, context: HandlerContext) => {
        const { ticket, ...migrate } = v.parse(migrateSchema, params);
        return this.#migrateFor(parseTicket(ticket), migrate, context);
      },
    ],
    ["cancel", () => this.#cancel()],
    ["sample", () => Promise.resolve(new Sampler(this.#name).sample(this.#snapshot()))],
    [
      "monitor",
      (params: unknown, context: HandlerContext) => this.#monitor(v.parse(monitorSchema, params).interval_ms, context),
    ],
  ]);

  /** An operator's Ctrl-C on this process itself: an orderly end, where the guest does not depend on it. */
  async interrupt(): Promise<void> {
    const moving = this.#source ?? this.#destination ?? { state: "idle" };
    const error = cancelled(moving, "Interrupted before the commit point", EXIT.interrupted);
    if (this.#destination && !this.#destination.committed) {
      if (this.#destination.cancel(error)) this.#cancelWaiting?.(error);
      else this.#onEvent({ type: "note", level: "warning", detail: IN_DOUBT });
      return;
    }
    if (this.#source?.cancel(error)) {
      while (this.#source) await pause(20);
    }
    if (!this.#machine || (this.#source && !this.#source.lost)) return;
    try {
      await this.#stopGuest();
    } catch (error) {
      // It was stopped just before, or it does not stop; nobody waits for this to be told in another way.
      const detail = error instanceof Error ? error.message : String(error);
      if (!this.#over) this.#onEvent({ type: "note", level: "warning", detail });
    }
  }

  // ---- what the control socket may ask ----

  async #status(verify: boolean): Promise<GuestEvent> {
    if (!verify) return this.#guestEvent();
    return await this.#inTurn(() => this.#verify());
  }

  async #verify(): Promise<GuestEvent> {
    const machine = this.#held;
    if (this.#source) throw new UsageError(`Cannot verify "${this.#name}" while it moves: ask again when it has`);
    await machine.stop(STOP_MS);
    try {
      return this.#guestEvent(await machine.checkRam());
    } finally {
      await machine.run();
    }
  }

  #stopGuest(): Promise<GuestEvent> {
    return this.#inTurn(() => this.#stopNow());
  }

  async #stopNow(): Promise<GuestEvent> {
    if (!this.#machine && this.#destination) {
      const why = this.#leaving
        ? "its source has not heard yet that every page is here: try again in a minute"
        : `its guest is not whole here: use gyges cancel ${this.#name}`;
      throw new UsageError(`Cannot stop "${this.#name}" as ${why}`);
    }
    const machine = this.#held;
    if (this.#source && !this.#source.lost) {
      throw new UsageError(
        this.#source.committed
          ? `Cannot stop "${this.#name}" as its guest runs at the destination and needs pages from here`
          : `Cannot stop "${this.#name}" while it moves: use gyges cancel ${this.#name} first`,
      );
    }
    this.#stopping = true;
    try {
      await machine.shutDown();
    } finally {
      this.#stopping = false;
    }
    this.#over = true;
    const event = this.#guestEvent(await machine.checkRam());
    this.#onEvent(event);
    this.#end(EXIT.completed);
    return event;
  }

  /** Moves the guest; what happens is told to `context`, too, and its signal cancels while that can be. */
  async migrate(ticket: Ticket, migrate: MigrateOptions, context: HandlerContext): Promise<Summary> {
    const emit = (event: GygesEvent) => {
      this.#onEvent(event);
      context.emit(event);
    };
    const source = await this.#inTurn(() => Promise.resolve(this.#begin(ticket, migrate, emit)));
    const onGone = () => source.cancel(cancelled(source, "Interrupted", EXIT.interrupted));
    context.signal.addEventListener("abort", onGone, { once: true });
    // The caller may have gone while this waited for its turn.
    if (context.signal.aborted) onGone();
    const reporting = this.#report(source, context);
    try {
      const summary = await source.run();
      emit(summary);
      await this.#moved(source);
      return summary;
    } catch (error) {
      // Before the commit point it is the caller's affair; after it, this process has to tell its own operator too.
      if (source.committed) this.#onEvent(toErrorEvent(error));
      throw error;
    } finally {
      reporting.stop();
      context.signal.removeEventListener("abort", onGone);
      // A migration that failed after the commit point still holds the guest's pages.
      if (!source.committed) this.#source = null;
      const before = this.#destinationKnows;
      this.#destinationKnows = source.destinationKnows.then(() => before);
      if (!this.keepsPages) this.#keeper.forget();
    }
  }

  async #moved(source: SourceMigration): Promise<void> {
    this.#over = true;
    this.#keeper.forget();
    await source.machine.abandon();
    // The caller gets its answer before the process goes.
    setTimeout(() => this.#end(EXIT.completed), 50);
  }

  /** The source's side of a migration whose link was lost after the commit point: the guest waits for pages from here. */
  get keepsPages(): boolean {
    return this.#source !== null && this.#source.committed && !this.#source.lost;
  }

  /** After migrate() has given up on a lost link: resolves when the destination has come back and has every page. */
  async waitOn(): Promise<Summary> {
    const source = this.#source;
    if (!source) throw new Error("There is no migration");
    try {
      const summary = await source.goOn();
      await this.#moved(source);
      return summary;
    } finally {
      if (!this.keepsPages) this.#keeper.forget();
    }
  }

  /** Goes on serving the pages of a guest whose process died here, until the destination has them all. */
  async serve(left: Left, onEvent: (event: GygesEvent) => void): Promise<Summary> {
    const { ticket, mode, bandwidthBytesPerSecond, prefetchConnections, figures } = left;
    const { tls } = ticket;
    const transport = "tcp";
    const migrate = {
      ...MIGRATE_DEFAULTS,
      mode,
      bandwidthBytesPerSecond,
      prefetchConnections,
      tls,
      transport,
    } as const;
    this.#source = new SourceMigration(
      { machine: this.#held, ticket, migrate, onEvent, keep: this.#keeper.keep },
      { ...left, figures: { ...figures, settled: { ...figures.settled, transport } } },
    );
    return await this.waitOn();
  }

  /** The caller hears of a lost link; the pages are kept all the same, and the destination may come back. */
  async #migrateFor(ticket: Ticket, migrate: MigrateOptions, context: HandlerContext): Promise<Summary> {
    try {
      return await this.migrate(ticket, migrate, context);
    } catch (error) {
      if (this.keepsPages) this.waitOn().then(this.#onEvent, (later) => this.#onEvent(toErrorEvent(later)));
      throw error;
    }
  }

  #begin(ticket: Ticket, migrate: MigrateOptions, onEvent: (event: GygesEvent) => void): SourceMigration {
    const machine = this.#held;
    if (this.#source) throw new UsageError(`Cannot move "${this.#name}" as it is being moved already`);
    machine.resetStall();
    this.#source = new SourceMigration({ machine, ticket, migrate, onEvent, keep: this.#keeper.keep });
    return this.#source;
  }

  #cancel(): Promise<null> {
    const moving = this.#source ?? this.#destination;
    if (!moving) throw new UsageError(`Cannot cancel: "${this.#name}" is not being moved`);
    const error = cancelled(moving, "Cancelled by the operator", EXIT.interrupted);
    if (!moving.cancel(error)) {
      throw new MigrationError(
        `Cannot cancel the migration of "${this.#name}": it is past the commit point and the guest is at the ` +
          "destination. It completes by itself",
        { phase: moving.state, guestLocation: "destination", exitCode: EXIT.usage },
      );
    }
    if (this.#destination) this.#cancelWaiting?.(error);
    return this.#untilIdle();
  }

  async #untilIdle(): Promise<null> {
    while (this.#source) await pause(10);
    return null;
  }

  async #monitor(intervalMs: number, context: HandlerContext): Promise<null> {
    const sampler = new Sampler(this.#name);
    while (!context.signal.aborted && !this.#over) {
      context.emit(sampler.sample(this.#snapshot()));
      await pause(intervalMs, context.signal);
    }
    context.emit(sampler.sample(this.#snapshot()));
    return null;
  }

  // ---- its own ----

  /** The guest is whole here, and is held once its source has been told. */
  get #leaving(): boolean {
    return this.#destination?.state === "completed";
  }

  /** Whoever moved the guest may hear of its end a moment before it is held. */
  async #arrived(): Promise<void> {
    const deadline = performance.now() + ARRIVE_MS;
    while (this.#leaving && performance.now() < deadline) await pause(10);
  }

  /**
   * Whatever stops the guest, or takes it away, waits for the one before it: a check that lets the guest run on when
   * it is done must not do so when the guest runs elsewhere by then.
   */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(async () => {
      await this.#arrived();
      if (!this.#over) return work();
      throw new UsageError(`"${this.#name}" is ending: its guest was stopped or has moved away`);
    });
    this.#turn = result.catch(() => {});
    return result;
  }

  #report(source: SourceMigration, context: HandlerContext): { stop: () => void } {
    const sampler = new Sampler(this.#name);
    const timer = setInterval(() => {
      if (source === this.#source) context.emit(sampler.sample(this.#snapshot()));
    }, SAMPLE_MS);
    return { stop: () => clearInterval(timer) };
  }

  #guestEvent(check: RamCheck | null = null): GuestEvent {
    return { type: "guest", name: this.#name, guest: this.#guest(), ...(check ? { ram_check: check } : {}) };
  }

  #guest(): GuestReport {
    const arriving = this.#arriving();
    if (arriving) return arriving;
    const location: GuestLocation = !this.#source
      ? "here"
      : this.#source.lost
      ? "lost"
      : this.#source.state === "completed"
      ? "destination"
      : this.#source.committed
      ? "destination-incomplete"
      : "source";
    return { location, ...this.#held.report() };
  }

  #snapshot(): Snapshot {
    const guest = this.#machine && !this.#gone ? this.#guest() : null;
    const moving = this.#source ?? this.#destination;
    const totalPages = ((this.#machine ?? this.#destination?.machine)?.ramBytes ?? 0) / PAGE_BYTES;
    if (!moving) return { ...IDLE, total_pages: totalPages, present_pages: totalPages, guest };
    const { stats } = moving;
    const missing = this.#source ? this.#source.missingPages : stats.missing_pages;
    return {
      side: this.#source ? "source" : "destination",
      state: moving.state,
      mode: moving.mode,
      elapsedMs: moving.elapsedMs,
      total_pages: totalPages,
      present_pages: Math.max(0, totalPages - missing),
      missing_pages: missing,
      precopy_round: moving.round,
      pulled_pages: stats.precopy_pages + stats.postcopy_pages,
      wire_bytes: this.#source ? this.#source.wireBytes : stats.wire_bytes,
      demand_faults: stats.demand_faults,
      fault_latency_ns: stats.fault_latency_ns,
      guest: guest ?? this.#arriving(),
    };
  }

  /** The guest of a destination that is not whole yet, or is so and has not said goodbye to its source. */
  #arriving(): GuestReport | null {
    const machine = this.#destination?.committed ? this.#destination.machine : null;
    const location = this.#leaving ? "here" : "destination-incomplete";
    return machine && { location, ...machine.report() };
  }

  async #watchGuest(machine: Machine): Promise<void> {
    while (!this.#over) {
      const event = await machine.wait(500);
      if (this.#over) return;
      if (event?.type === "corrupt") {
        const page = machine.report().first_corrupt_page;
        this.#onEvent({ type: "note", level: "warning", detail: `The guest found page ${page} damaged` });
      }
      if (this.#stopping) continue;
      if (event?.type === "ended") return this.#guestEnded(event.text);
      // Its pages are served from files that this process has open too.
      if (event?.type !== "failed" || this.#source?.committed) continue;
      this.#over = true;
      this.#onEvent({
        type: "error",
        code: EXIT.guestLost,
        name: "GuestError",
        message: `The guest of "${this.#name}" is lost: ${event.text}`,
        guest_location: "lost",
      });
      this.#end(EXIT.guestLost);
    }
  }

  /** Where it moves just now, its own end is the end of the migration too. */
  #guestEnded(how: string): void {
    this.#over = true;
    this.#onEvent({ type: "note", level: "info", detail: `The guest of "${this.#name}" has ended by itself: ${how}` });
    this.#end(EXIT.completed);
  }

  #end(code: ExitCode): void {
    this.#gone = true;
    this.#ended.resolve(code);
  }

  get #held(): Machine {
    if (this.#gone) throw new UsageError(`"${this.#name}" is ending and holds no guest any more`);
    if (!this.#machine) {
      const what = this.#destination?.committed ? "part of its guest's memory only" : "no guest yet";
      throw new UsageError(`"${this.#name}" holds ${what}: gyges monitor ${this.#name} shows it`);
    }
    return this.#machine;
  }
}

const IDLE = {
  side: "idle",
  state: "idle",
  mode: null,
  elapsedMs: 0,
  missing_pages: 0,
  precopy_round: 0,
  pulled_pages: 0,
  wire_bytes: 0,
  demand_faults: 0,
  fault_latency_ns: NO_LATENCY,
} as const satisfies Partial<Snapshot>;

function cancelled(
  moving: { state: Sample["state"]; whereabouts?: string },
  what: string,
  exitCode: ExitCode,
): MigrationError {
  return new MigrationError(`${what}. The guest ${moving.whereabouts ?? "runs at the source"}`, {
    phase: moving.state,
    guestLocation: "source",
    exitCode,
  });
}
