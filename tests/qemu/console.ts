/** What a guest says on its console, over all the files that its serial port has written to on its way between hosts. */
import assert from "node:assert/strict";
import { troubleIn } from "../lab/kernel_log.ts";

export interface Heartbeat {
  /** From 1, without a hole. */
  n: number;
  /** By the guest's clock, which stands still while it is stopped. */
  guestMs: number;
  /** By ours, when the line was seen: within some milliseconds of when it was written. */
  seenMs: number;
  /** How often every page has been checked. */
  passes: number;
  /** Pages checked and rewritten. */
  verified: number;
  corrupt: number;
  /** Requests to the disk that were made, and that went wrong. */
  disk: number;
  diskBad: number;
  /** Pings that were answered, that were not, and that were answered wrongly. */
  net: number;
  netLost: number;
  netBad: number;
  /** How often memory was taken, checked and given back. */
  visits: number;
}

const POLL_MS = 2;
const PATIENCE_MS = 60_000;
const MEMORY = / (\d+) (\d+) passes=(\d+) verified=(\d+) corrupt=(\d+)/;
/** Of those that it has. */
const DEVICES = /(?: blk=(\d+) blkbad=(\d+))?(?: net=(\d+) netlost=(\d+) netbad=(\d+))?(?: visits=(\d+))?/;
const BEAT = new RegExp(`^(HB|END)${MEMORY.source}${DEVICES.source}$`);

interface LogFile {
  path: string;
  /** Bytes that are read. */
  read: number;
}

export class GuestConsole implements Disposable {
  readonly beats: Heartbeat[] = [];
  /** The guest's lines about damage, as they are. */
  readonly corruptions: string[] = [];
  /** It has checked all, for the last time, and powers off. */
  ended = false;
  /** It is past its boot: pages are stamped, work begins. */
  started = false;
  readonly #files: LogFile[] = [];
  readonly #other: string[] = [];
  readonly #timer: ReturnType<typeof setInterval>;
  #rest = "";
  #current: LogFile;

  /** Follows the serial log at `path`, which need not be there yet. */
  constructor(path: string) {
    this.#current = this.#file(path);
    this.#timer = setInterval(() => this.poll(), POLL_MS);
  }

  get last(): Heartbeat | undefined {
    return this.beats.at(-1);
  }

  /**
   * The guest writes to `path` from now on. To be called when it does not run: what it still writes to the file before
   * is said by failIfCorrupt(). A line that the move has cut is put together again. To go back is a move too.
   */
  moveTo(path: string): void {
    this.poll();
    this.#current = this.#file(path);
  }

  /** Reads what is new. */
  poll(): void {
    const seenMs = performance.now();
    const lines = (this.#rest + readFrom(this.#current)).split(/\r?\n/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#take(line, seenMs);
  }

  untilStarted(timeoutMs = PATIENCE_MS): Promise<void> {
    return this.#until("it has started", () => this.started, timeoutMs);
  }

  /** Waits for `n` heartbeats more. */
  untilBeats(n: number, timeoutMs = PATIENCE_MS): Promise<void> {
    const enough = this.beats.length + n;
    return this.#until(`${n} heartbeats more`, () => this.beats.length >= enough, timeoutMs);
  }

  /** Waits until every page that is in memory now has been checked. */
  untilAllChecked(timeoutMs = PATIENCE_MS): Promise<void> {
    // The pass under way has begun before.
    const enough = (this.last?.passes ?? 0) + 2;
    return this.#until("all pages are checked", () => (this.last?.passes ?? 0) >= enough, timeoutMs);
  }

  /** Waits for a heartbeat that `fits`; in words: `what`. */
  untilBeat(what: string, fits: (beat: Heartbeat) => boolean, timeoutMs = PATIENCE_MS): Promise<void> {
    return this.#until(what, () => this.last !== undefined && fits(this.last), timeoutMs);
  }

  untilCorrupt(timeoutMs = PATIENCE_MS): Promise<void> {
    return this.#until("damage is found", () => this.corruptions.length > 0, timeoutMs);
  }

  /** Waits until it has checked all for the last time. */
  untilEnded(timeoutMs = PATIENCE_MS): Promise<void> {
    return this.#until("it ends", () => this.ended, timeoutMs);
  }

  /** Longest time between heartbeats by the guest's own clock: without the time for which it was stopped. */
  get largestGapMs(): number {
    return largestStep(this.beats.map(({ guestMs }) => guestMs));
  }

  /** Longest time between heartbeats by our clock. */
  get largestSeenGapMs(): number {
    return largestStep(this.beats.map(({ seenMs }) => seenMs));
  }

  /** Throws if memory, disk or network were damaged, a heartbeat is missing, the kernel complained or a left host wrote on. */
  failIfCorrupt(): void {
    this.poll();
    assert.deepEqual(this.corruptions, [], "the guest found damage");
    const { corrupt, diskBad, netBad } = this.last ?? {};
    assert.deepEqual([corrupt, diskBad, netBad], [0, 0, 0], "the guest counted damage");
    assert.deepEqual(troubleIn(this.#other.join("\n")), [], "the guest's kernel complained");
    this.beats.forEach(({ n }, index) => assert.equal(n, index + 1, `heartbeat ${index + 1} is missing`));
    for (const file of this.#files) {
      if (file !== this.#current) assert.equal(readFrom(file), "", `the guest ran on where it had left: ${file.path}`);
    }
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }

  #file(path: string): LogFile {
    const known = this.#files.find((file) => file.path === path);
    if (known) return known;
    const file = { path, read: 0 };
    this.#files.push(file);
    return file;
  }

  #take(line: string, seenMs: number): void {
    const match = BEAT.exec(line);
    if (match) {
      const [n = 0, guestMs = 0, passes = 0, verified = 0, corrupt = 0, ...devices] = match.slice(2)
        .map((text) => Number(text ?? 0));
      const [disk = 0, diskBad = 0, net = 0, netLost = 0, netBad = 0, visits = 0] = devices;
      if (match[1] === "END") this.ended = true;
      this.beats.push({ n, guestMs, seenMs, passes, verified, corrupt, disk, diskBad, net, netLost, netBad, visits });
    } else if (/^CORRUPT /.test(line)) this.corruptions.push(line);
    else if (/^START /.test(line)) this.started = true;
    else if (line !== "") this.#other.push(line);
  }

  async #until(what: string, holds: () => boolean, timeoutMs: number): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    for (this.poll(); !holds(); this.poll()) {
      if (this.#other.some((line) => line.startsWith("FAILED"))) throw new Error(`The guest: ${this.#words()}`);
      if (performance.now() > deadline) {
        throw new Error(`Not within ${timeoutMs / 1000} s: ${what}. The guest: ${this.#words()}`);
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  #words(): string {
    const lines = [...this.#other.slice(-10), ...this.corruptions.slice(0, 5), this.#rest];
    return `${JSON.stringify(this.last)}\n${lines.join("\n")}`;
  }
}

/** What `file` has beyond what was read of it. */
function readFrom(file: LogFile): string {
  let opened: Deno.FsFile;
  try {
    opened = Deno.openSync(file.path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return "";
    throw error;
  }
  using log = opened;
  const { size } = log.statSync();
  const bytes = new Uint8Array(Math.max(0, size - file.read));
  log.seekSync(file.read, Deno.SeekMode.Start);
  const n = bytes.length > 0 ? log.readSync(bytes) ?? 0 : 0;
  file.read += n;
  // The guest says ASCII, so no character is cut.
  return new TextDecoder().decode(bytes.subarray(0, n));
}

function largestStep(times: readonly number[]): number {
  return times.reduce((largest, time, index) => Math.max(largest, time - (times[index - 1] ?? time)), 0);
}
