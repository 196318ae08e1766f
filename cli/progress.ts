/** How far a migration is: one line that is redrawn on a terminal, plain lines elsewhere. */
import type { Sample } from "../lib/events.ts";
import { formatCount, formatNs, formatRate } from "../lib/units.ts";
import type { Terminal } from "./terminal.ts";

/** Off a terminal, lines come no closer than this. */
const PLAIN_INTERVAL_MS = 1_000;
const LEAST_BAR = 10;
const MOST_BAR = 40;

/** States in which the guest runs, or ran, at the destination: only then is it known which pages are missing there. */
const AFTER_SWITCH: readonly Sample["state"][] = ["serving", "running", "paused", "completed"];

/** 0 to 1: how much of the memory is at the destination; null while that cannot be told. */
function share(sample: Sample): number | null {
  if (!AFTER_SWITCH.includes(sample.state) || sample.total_pages === 0) return null;
  return sample.state === "completed" ? 1 : Math.min(1, sample.present_pages / sample.total_pages);
}

function head(sample: Sample): string {
  const round = sample.state === "precopy" && sample.precopy_round > 0 ? ` round ${sample.precopy_round}` : "";
  return `${sample.name}: ${sample.state}${round}`;
}

/** The part that is never left out. */
function start(sample: Sample): string {
  const fraction = share(sample);
  return fraction === null || sample.side === "idle" ? head(sample) : `${head(sample)}  ${Math.floor(fraction * 100)}%`;
}

/** What is worth telling about an idle guest, most important first. */
function idleParts(sample: Sample): string[] {
  const guest = sample.guest;
  if (!guest) return [];
  const state = guest.running ? "guest runs" : "guest stopped";
  // A guest that keeps no account of itself.
  if (guest.verified_pages === null) return [state];
  const health = guest.corrupt === 0 ? "memory good" : `${formatCount(guest.corrupt)} PAGES CORRUPT`;
  return [
    state,
    health,
    `${formatCount(guest.verified_pages)} pages verified`,
    `largest stall ${formatNs(guest.largest_stall_ns)}`,
  ];
}

function movingParts(sample: Sample): string[] {
  const parts = [formatRate(sample.wire_bytes_per_second)];
  if (share(sample) === null) return [...parts, `${formatCount(sample.pulled_pages)} pages pulled`];
  if (sample.eta_ns !== null) parts.push(`ETA ${formatNs(sample.eta_ns)}`);
  parts.push(`${formatCount(sample.missing_pages)} missing`);
  if (sample.demand_faults > 0) {
    const { p50, p99 } = sample.fault_latency_ns;
    parts.push(`${formatCount(sample.demand_faults)} faults`, `p50 ${formatNs(p50)} p99 ${formatNs(p99)}`);
  }
  return parts;
}

/** The whole of `sample` on one line of any length. */
export function plainLine(sample: Sample): string {
  if (sample.side === "idle") return [head(sample), ...idleParts(sample)].join("  ");
  return [start(sample), ...movingParts(sample)].join("  ");
}

function bar(fraction: number, width: number): string {
  const filled = Math.round(fraction * (width - 2));
  return `[${"#".repeat(filled)}${".".repeat(width - 2 - filled)}]`;
}

/** As much of `sample` as fits into `columns`, less one so that no terminal wraps; a bar takes what room is left. */
export function fittedLine(sample: Sample, columns: number): string {
  const room = Math.max(1, columns - 1);
  const idle = sample.side === "idle";
  const fraction = idle ? null : share(sample);
  const beginning = start(sample);
  let end = "";
  for (const part of idle ? idleParts(sample) : movingParts(sample)) {
    if (beginning.length + end.length + part.length + 2 > room) break;
    end += `  ${part}`;
  }
  const left = room - beginning.length - end.length - 2;
  const drawn = fraction !== null && left >= LEAST_BAR ? `  ${bar(fraction, Math.min(left, MOST_BAR))}` : "";
  return `${beginning}${drawn}${end}`.slice(0, room);
}

/** Shows samples on a terminal's stderr, or as lines on `plain`. */
export class Progress {
  readonly #terminal: Terminal;
  readonly #plain: (line: string) => void;
  #drawn = false;
  #lastPlainMs = -Infinity;
  #lastState = "";

  constructor(terminal: Terminal, plain: (line: string) => void) {
    this.#terminal = terminal;
    this.#plain = plain;
  }

  show(sample: Sample): void {
    const columns = this.#terminal.columns();
    if (columns === null) return this.#showPlain(sample);
    this.#terminal.err(`\r\x1b[K${fittedLine(sample, columns)}`);
    this.#drawn = true;
  }

  /** Takes the line off the terminal, so that other text can be written. */
  clear(): void {
    if (this.#drawn) this.#terminal.err("\r\x1b[K");
    this.#drawn = false;
  }

  #showPlain(sample: Sample): void {
    const now = performance.now();
    if (now - this.#lastPlainMs < PLAIN_INTERVAL_MS && sample.state === this.#lastState) return;
    this.#lastPlainMs = now;
    this.#lastState = sample.state;
    this.#plain(plainLine(sample));
  }
}
