/** A guest at work in a QEMU, the arguments of the QEMU that it goes to, and what it notices of the move. */
import { join } from "node:path";
import { type QemuBinary, qemuBinary } from "../../qemu/binaries.ts";
import { GuestConsole, type Heartbeat } from "../../qemu/console.ts";
import { consoleArguments, type Guest, linuxGuest, ramArguments } from "../../qemu/guest.ts";
import { pause, QemuProcess } from "../../qemu/qemu_process.ts";
import { EventLog } from "./event_log.ts";

export interface Load {
  /** Pages rewritten a second, 0: as many as the guest can. */
  rate: number;
  /** Bytes a second for the whole link, null: no limit. */
  bandwidth: number | null;
}

/** One move. */
export interface Outcome {
  totalMs: number;
  /** By the events of the two QEMUs. */
  stopToResumeMs: number;
  /** Largest gap between heartbeats, as seen from outside. */
  gapMs: number;
  /** As long as the guest would have needed for the work that it did not do. */
  lostMs: number;
  faults: number;
  faultP50Us: number;
  faultP99Us: number;
  blocktimeMs: number;
  bytes: number;
}

/** What is seen of the guest, whoever moves it. */
export type Noticed = Pick<Outcome, "stopToResumeMs" | "gapMs" | "lostMs">;

/** In a folder QEMU makes a file without a name. */
const SHARED_MEMORY = "/dev/shm";
const MEMORY = "512M";
const WORKING_SET = "256M";
/** Shorter than what a move does to a guest. */
const BEAT_MS = 10;
/** Undisturbed before the move, to know its pace; and after it, to be warm again. */
const BEFORE_BEATS = 1_500 / BEAT_MS;
const AFTER_MS = 1_000;

type Parts = Pick<Stage, "folder" | "binary" | "guest" | "console" | "source" | "sourceEvents">;

export class Stage implements AsyncDisposable {
  readonly folder: string;
  readonly binary: QemuBinary;
  readonly guest: Guest;
  readonly console: GuestConsole;
  readonly source: QemuProcess;
  readonly sourceEvents: EventLog;
  /** RAM in shared files, as Gyges needs it; QEMU's own post-copy works on memory of its own. */
  readonly #ram: boolean;
  #destinationEvents: EventLog | null = null;
  #since = 0;

  private constructor(parts: Parts, { shared }: { shared: boolean }) {
    this.folder = parts.folder;
    this.binary = parts.binary;
    this.guest = parts.guest;
    this.console = parts.console;
    this.source = parts.source;
    this.sourceEvents = parts.sourceEvents;
    this.#ram = shared;
  }

  /** Boots the guest and waits until it has been at work for a while. */
  static async open({ rate }: Load, { shared }: { shared: boolean }): Promise<Stage> {
    const folder = await Deno.makeTempDir({ prefix: "gyges-bench-" });
    const log = join(folder, "source.log");
    const console = new GuestConsole(log);
    let source: QemuProcess | null = null;
    try {
      const binary = await qemuBinary("10.0");
      const guest = await linuxGuest({ memory: MEMORY, workingSet: WORKING_SET, rate, beatMs: BEAT_MS });
      const ram = shared ? ramArguments(guest, SHARED_MEMORY) : [];
      const monitors = ["events", "gyges"].flatMap((name) => EventLog.arguments(join(folder, `source.${name}`)));
      const args = [...guest.args, ...ram, ...consoleArguments(log), ...monitors];
      source = await QemuProcess.start(binary, args, folder, "source");
      const sourceEvents = await EventLog.open(join(folder, "source.events"));
      await console.untilStarted();
      await console.untilBeats(BEFORE_BEATS);
      return new Stage({ folder, binary, guest, console, source, sourceEvents }, { shared });
    } catch (error) {
      await source?.[Symbol.asyncDispose]();
      console[Symbol.dispose]();
      await Deno.remove(folder, { recursive: true });
      throw error;
    }
  }

  /** A monitor of the source that nobody uses. */
  get sourceMonitor(): string {
    return join(this.folder, "source.gyges");
  }

  /** Arguments of a destination, without `-incoming`. */
  get destinationArguments(): string[] {
    const ram = this.#ram ? ramArguments(this.guest, SHARED_MEMORY) : [];
    const events = EventLog.arguments(join(this.folder, "destination.events"));
    return [...this.guest.args, ...ram, ...consoleArguments(this.#destinationLog), ...events];
  }

  get #sourceLog(): string {
    return join(this.folder, "source.log");
  }

  get #destinationLog(): string {
    return join(this.folder, "destination.log");
  }

  /** Begins to watch a move, to a destination that is up. */
  async watch(): Promise<EventLog> {
    const events = await EventLog.open(join(this.folder, "destination.events"));
    this.#destinationEvents = events;
    // It is stopped for a moment now and then to see what it has written, before it is stopped for good.
    this.sourceEvents.listen(({ name }) => {
      if (name === "STOP") this.console.moveTo(this.#destinationLog);
      if (name === "RESUME") this.console.moveTo(this.#sourceLog);
    });
    this.#since = performance.now();
    return events;
  }

  /** What the guest noticed of the move, which has just ended. Throws if its memory was damaged. */
  async noticed(): Promise<Noticed> {
    const end = performance.now();
    const resume = await this.#destinationEvents?.wait("RESUME");
    const stop = this.sourceEvents.last("STOP");
    await pause(AFTER_MS);
    this.console.poll();
    const before = this.console.beats.filter(({ seenMs }) => seenMs <= this.#since).slice(-BEFORE_BEATS);
    const during = this.console.beats.filter(({ seenMs }) => seenMs >= (before.at(-1)?.seenMs ?? 0));
    if ((during.at(-1)?.seenMs ?? 0) < end) throw new Error("The guest has not come to life at the destination");
    await this.console.untilAllChecked();
    this.console.failIfCorrupt();
    return {
      stopToResumeMs: (resume?.atMs ?? NaN) - (stop?.atMs ?? NaN),
      gapMs: largestGap(during),
      lostMs: lastingMs(during) - workOf(during) / (workOf(before) / lastingMs(before)),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#destinationEvents?.[Symbol.dispose]();
    this.sourceEvents[Symbol.dispose]();
    this.console[Symbol.dispose]();
    await this.source[Symbol.asyncDispose]();
    await Deno.remove(this.folder, { recursive: true });
  }
}

function lastingMs(beats: readonly Heartbeat[]): number {
  return (beats.at(-1)?.seenMs ?? NaN) - (beats[0]?.seenMs ?? NaN);
}

/** Pages rewritten. */
function workOf(beats: readonly Heartbeat[]): number {
  return (beats.at(-1)?.verified ?? NaN) - (beats[0]?.verified ?? NaN);
}

function largestGap(beats: readonly Heartbeat[]): number {
  return Math.max(...beats.slice(1).map(({ seenMs }, i) => seenMs - (beats[i]?.seenMs ?? NaN)));
}
