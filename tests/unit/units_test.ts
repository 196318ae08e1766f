import assert from "node:assert/strict";
import { UsageError } from "../../lib/errors.ts";
import {
  formatBytes,
  formatCount,
  formatNs,
  formatRate,
  formatSize,
  parseDuration,
  parseRate,
  parseSize,
} from "../../lib/units.ts";

function refuses(parse: (text: string) => number, texts: readonly string[]): void {
  for (const text of texts) {
    const namesTheText = (error: unknown) => error instanceof UsageError && error.message.includes(`"${text}"`);
    assert.throws(() => parse(text), namesTheText, `"${text}" was not refused by name`);
  }
}

Deno.test("parseSize() reads every suffix as a power of 1024", () => {
  const sizes: [string, number][] = [
    ["0", 0],
    ["4096", 4096],
    ["4096B", 4096],
    ["64K", 65536],
    ["64k", 65536],
    ["512MiB", 512 * 2 ** 20],
    ["512mib", 512 * 2 ** 20],
    ["4G", 4 * 2 ** 30],
    ["1.5GiB", 1.5 * 2 ** 30],
    ["2T", 2 * 2 ** 40],
  ];
  for (const [text, bytes] of sizes) assert.equal(parseSize(text), bytes, text);
});

Deno.test("parseSize() refuses what is no size, naming the text", () => {
  refuses(parseSize, ["", "G", "-1G", "1 G", "1GG", "1Gi", "0.3", "1e3", "512MB", "9999999T", "NaN", "0x10"]);
  assert.throws(() => parseSize("512MB"), /write 512M or 512MiB/);
});

Deno.test("parseRate() tells bits from bytes and 1000s from 1024s", () => {
  const rates: [string, number][] = [
    ["1Gbit", 125_000_000],
    ["1gbit/s", 125_000_000],
    ["1Gbitps", 125_000_000],
    ["10Mbit", 1_250_000],
    ["100MiB/s", 100 * 2 ** 20],
    ["125MB", 125_000_000],
    ["125MB/s", 125_000_000],
    ["8bit", 1],
    ["1500B/s", 1500],
    ["2.5Gbit", 312_500_000],
    ["1Gibit", 2 ** 27],
    ["unlimited", 0],
  ];
  for (const [text, rate] of rates) assert.equal(parseRate(text), rate, text);
});

Deno.test("parseRate() refuses what is no rate, naming the text", () => {
  refuses(parseRate, ["", "1G", "125", "0", "0Gbit", "7bit", "1iB", "fast", "-1Gbit", "1Gbit/h"]);
});

Deno.test("parseDuration() answers milliseconds", () => {
  const durations: [string, number][] = [
    ["250ms", 250],
    ["10s", 10_000],
    ["1.5s", 1_500],
    ["2m", 120_000],
    ["1h", 3_600_000],
    ["500us", 0.5],
    ["0s", 0],
  ];
  for (const [text, ms] of durations) assert.equal(parseDuration(text), ms, text);
  refuses(parseDuration, ["", "10", "10 s", "s", "-1s", "1d", "10S", "1m30s"]);
});

Deno.test("formatNs() keeps three figures and the right unit", () => {
  const texts: [number, string][] = [
    [0, "0 ns"],
    [850, "850 ns"],
    [3_200_000, "3.2 ms"],
    [999_999, "1 ms"],
    [12_345_678, "12.3 ms"],
    [1_500_000_000, "1.5 s"],
    [125e9, "2m 05s"],
    [3_900e9, "1h 05m"],
  ];
  for (const [ns, text] of texts) assert.equal(formatNs(ns), text);
});

Deno.test("formatBytes(), formatRate() and formatCount() read well", () => {
  assert.equal(formatBytes(0), "0 B");
  assert.equal(formatBytes(512 * 2 ** 20), "512 MiB");
  assert.equal(formatBytes(2 ** 20 - 1), "1 MiB");
  assert.equal(formatBytes(1.5 * 2 ** 30), "1.5 GiB");
  assert.equal(formatRate(125_000_000), "125 MB/s");
  assert.equal(formatCount(1_234_567), "1,234,567");
  assert.equal(formatCount(999), "999");
});

Deno.test("formatSize() is read back by parseSize()", () => {
  for (const bytes of [0, 1, 4096, 65537, 512 * 2 ** 20, 3 * 2 ** 30, 2 ** 40, 1536 * 2 ** 20]) {
    assert.equal(parseSize(formatSize(bytes)), bytes, formatSize(bytes));
  }
  assert.equal(formatSize(512 * 2 ** 20), "512MiB");
});
