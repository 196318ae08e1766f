/** How far a migration is: one line that is redrawn on a terminal, plain lines elsewhere. */
import type { Sample } from "../lib/events.ts";
import { formatCount, formatNs, formatRate } from "../lib/units.ts";
import type { Terminal } from "./terminal.ts";

/** Off a terminal, lines come no closer than this. */
const PLAIN_INTERVAL_MS = 1_000;
const LEAST_BAR = 10;
const MOST_BAR = 40;

/** 0 to 1: how much of the memory is at the destination. */
function share(sample: Sample): number {
  if (sample.state === "completed") return 1;
  return sample.total_pages === 0 ? 0 : Math.min(1, sample.present_pages / sample.total_pages);
}

function head(sample: Sample): string {
  const round = sample.state === "precopy" && sample.precopy_round > 0 ? ` round ${sample.precopy_round}` : "";
  return `${sample.name}: ${sample.state}${round}`;
}

/** What is worth telling about an idle guest, most important first. */
function idleParts(sample: Sample): string[] {
  const guest = sample.guest;
  if (!guest) return [];
  const health = guest.corrupt === 0 ? "memory good" : `${formatCount(guest.corrupt)} PAGES CORRUPT`;
  return [
    guest.running ? "guest runs" : "guest stopped",
    health,
    `${formatCount(guest.verified_pages)} pages verified`,
    `largest stall ${formatNs(guest.largest_stall_ns)}`,
  ];
}

function movingParts(sample: Sample): string[] {
  const parts = [formatRate(sample.wire_bytes_per_second)];
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
  return [head(sample), `${Math.floor(share(sample) * 100)}%`, ...movingParts(sample)].join("  ");
}

function bar(fraction: number, width: number): string {
  const filled = Math.round(fraction * (width - 2));
  return `[${"#".repeat(filled)}${".".repeat(width - 2 - filled)}]`;
}

/** As much of `sample` as fits into `columns`, less one so that no terminal wraps; a bar takes what room is left. */
export function fittedLine(sample: Sample, columns: number): string {
  const room = Math.max(1, columns - 1);
  const idle = sample.side === "idle";
  const fraction = share(sample);
  let start = head(sample);
  if (!idle) start += `  ${Math.floor(fraction * 100)}%`;
  let end = "";
  for (const part of idle ? idleParts(sample) : movingParts(sample)) {
    if (start.length + end.length + part.length + 2 > room) break;
    end += `  ${part}`;
  }
  const left = room - start.length - end.length - 2;
  const drawn = !idle && left >= LEAST_BAR ? `  ${bar(fraction, Math.min(left, MOST_BAR))}` : "";
  return `${start}${drawn}${end}`.slice(0, room);
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
