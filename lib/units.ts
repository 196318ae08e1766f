/** Sizes, rates and durations: text that people type to numbers, and numbers to text that people read. */
import { UsageError } from "./errors.ts";

export const SIZE_FORMS = "a whole number with K, M, G or T (or KiB, MiB, GiB, TiB), all powers of 1024, as in 512MiB";
export const RATE_FORMS =
  "bits (Mbit, Gbit) or bytes (MB, MiB) a second, as in 1Gbit or 100MiB/s; bit and B count in thousands, iB in 1024s";
export const DURATION_FORMS = "a number with ms, s, m or h, as in 250ms or 10s";

const BINARY_POWERS = ["", "k", "m", "g", "t"] as const;
const SIZE = /^(\d+(?:\.\d+)?)(?:([kmgt])(?:ib)?|b)?$/i;
const DECIMAL_SIZE = /^\d+(?:\.\d+)?[kmgt]b$/i;
const RATE = /^(\d+(?:\.\d+)?)([kmgt]?)(i?)(bit|b)(?:\/s|ps)?$/i;
const DURATION = /^(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)$/;
const DURATION_NS = { ns: 1, us: 1e3, ms: 1e6, s: 1e9, m: 60e9, h: 3600e9 } as const;

/** Power of the prefix letter: 0 for none, 1 for k, ... 4 for t. */
function prefixPower(letter: string | undefined): number {
  return BINARY_POWERS.findIndex((power) => power === (letter ?? "").toLowerCase());
}

/** Bytes of `text`, such as "512MiB" or "4G". Throws UsageError for anything else, and for a fraction of a byte. */
export function parseSize(text: string): number {
  if (DECIMAL_SIZE.test(text)) {
    const binary = text.slice(0, -1);
    throw new UsageError(`Cannot read size "${text}" as it may mean 1000s or 1024s: write ${binary} or ${binary}iB`);
  }
  const match = SIZE.exec(text);
  const bytes = match ? Number(match[1]) * 1024 ** prefixPower(match[2]) : NaN;
  if (!Number.isSafeInteger(bytes)) throw new UsageError(`Cannot read size "${text}": expected ${SIZE_FORMS}`);
  return bytes;
}

/** Bytes per second of `text`, such as "1Gbit" or "100MiB/s"; 0 for "unlimited". Throws UsageError. */
export function parseRate(text: string): number {
  if (text === "unlimited") return 0;
  const match = RATE.exec(text);
  if (!match) throw new UsageError(`Cannot read rate "${text}": expected ${RATE_FORMS}`);
  const [, digits, prefix, binary, unit] = match;
  if (binary && !prefix) throw new UsageError(`Cannot read rate "${text}": expected ${RATE_FORMS}`);
  const scale = (binary ? 1024 : 1000) ** prefixPower(prefix);
  const bytesPerSecond = Math.floor((Number(digits) * scale) / (unit?.toLowerCase() === "bit" ? 8 : 1));
  if (bytesPerSecond < 1) throw new UsageError(`Cannot use rate "${text}" as it is less than a byte a second`);
  return bytesPerSecond;
}

/** Milliseconds of `text`, such as "10s" or "250ms". Throws UsageError. */
export function parseDuration(text: string): number {
  const match = DURATION.exec(text);
  const unit = match?.[2] as keyof typeof DURATION_NS | undefined;
  if (!match || !unit) throw new UsageError(`Cannot read duration "${text}": expected ${DURATION_FORMS}`);
  return (Number(match[1]) * DURATION_NS[unit]) / 1e6;
}

/** Three significant digits at most, no trailing zeros: 3.2, 12.5, 118. */
function shortNumber(value: number): string {
  if (value >= 100) return String(Math.round(value));
  return String(Number(value.toPrecision(3)));
}

function scaled(value: number, base: number, units: readonly string[]): string {
  let step = 0;
  let rest = value;
  // Compared after rounding, so that 1023.99 KiB reads 1 MiB and never 1024 KiB.
  while (step < units.length - 1 && Math.round(rest) >= base) {
    rest /= base;
    step += 1;
  }
  return `${shortNumber(rest)} ${units[step] ?? ""}`;
}

/** 3_200_000 is "3.2 ms"; from two minutes on "2m 05s"; what nobody knows is "-". */
export function formatNs(ns: number | null): string {
  if (ns === null) return "-";
  if (ns < 120e9) return scaled(ns, 1000, ["ns", "us", "ms", "s"]);
  const seconds = Math.round(ns / 1e9);
  const minutes = Math.floor(seconds / 60);
  const pad = (value: number) => String(value).padStart(2, "0");
  if (minutes < 60) return `${minutes}m ${pad(seconds % 60)}s`;
  return `${Math.floor(minutes / 60)}h ${pad(minutes % 60)}m`;
}

/** 536_870_912 is "512 MiB". */
export function formatBytes(bytes: number): string {
  return scaled(bytes, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
}

/** The shortest text that `parseSize` reads back as `bytes`. */
export function formatSize(bytes: number): string {
  const units = ["", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  let rest = bytes;
  while (step < units.length - 1 && rest > 0 && rest % 1024 === 0) {
    rest /= 1024;
    step += 1;
  }
  return `${rest}${units[step] ?? ""}`;
}

/** 125_000_000 is "125 MB/s". */
export function formatRate(bytesPerSecond: number): string {
  return `${scaled(bytesPerSecond, 1000, ["B", "kB", "MB", "GB", "TB"])}/s`;
}

/** 1234567 is "1,234,567"; what nobody knows is "-". */
export function formatCount(count: number | null): string {
  if (count === null) return "-";
  return String(count).replace(/\B(?=(\d{3})+$)/g, ",");
}
