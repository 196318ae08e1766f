/** The scenarios side by side: as a table, as pictures, as objects. */
import { isProved, type ScenarioResult } from "../../lib/demo/runner.ts";
import { type Point, ratesOf, type Span, spanOf } from "../../lib/demo/series.ts";
import { formatBytes, formatCount, formatNs, formatRate } from "../../lib/units.ts";
import type { CliObject } from "../output.ts";
import { table } from "../render.ts";
import { labelledChart, timeAxis } from "./chart.ts";

const CHART_COLUMNS = 60;
const CHART_HEIGHT = 3;

type Figure = readonly [label: string, of: (result: ScenarioResult) => string];

function latency(result: ScenarioResult, key: "p50" | "p99"): string {
  const { n, [key]: value } = result.summary.fault_latency_ns;
  return n === 0 ? "-" : formatNs(value);
}

/** The figures of the comparison, in order. */
export const FIGURES: readonly Figure[] = [
  ["total time", ({ summary }) => formatNs(summary.total_ns)],
  ["downtime", ({ summary }) => formatNs(summary.downtime_ns)],
  ["largest stall the guest saw", ({ summary }) => formatNs(summary.guest.largest_stall_ns)],
  ["guest work lost", ({ lost }) => formatNs(Math.max(0, lost.seconds) * 1e9)],
  ["  of what it would have done", ({ lost }) => `${Math.max(0, lost.percent).toFixed(1)}%`],
  ["pre-copy rounds", ({ summary }) => formatCount(summary.precopy_rounds)],
  ["pages moved in pre-copy", ({ summary }) => formatCount(summary.precopy_pages)],
  ["pages moved in post-copy", ({ summary }) => formatCount(summary.postcopy_pages)],
  ["zero pages, not moved", ({ summary }) => formatCount(summary.zero_pages)],
  ["bytes on the wire", ({ summary }) => formatBytes(summary.wire_bytes)],
  ["demand faults", ({ summary }) => formatCount(summary.demand_faults)],
  ["fault latency p50", (result) => latency(result, "p50")],
  ["fault latency p99", (result) => latency(result, "p99")],
  ["bad pages, by the host", ({ proof }) => formatCount(proof.ram_check?.bad_pages ?? NaN)],
  ["corrupt pages, by the guest", ({ proof }) => formatCount(proof.guest.corrupt)],
];

export function comparisonTable(results: readonly ScenarioResult[]): string {
  const rows = FIGURES.map(([label, of]) => [label, ...results.map(of)]);
  return table(["", ...results.map((result) => result.scenario.name)], rows);
}

/** The proof that a scenario ends with, in words. */
export function proofText({ scenario, proof }: ScenarioResult): string {
  const check = proof.ram_check;
  const host = check
    ? `the host checked ${formatCount(check.pages)} pages, ${formatCount(check.bad_pages)} bad`
    : "no RAM check";
  const guest = `the guest verified ${formatCount(proof.guest.verified_pages)}, ${
    formatCount(proof.guest.corrupt)
  } corrupt`;
  return `${scenario.name}: memory ${isProved(proof) ? "proved" : "NOT PROVED"}: ${host}; ${guest}`;
}

/** One span for all pictures, so that they can be compared. */
export function commonSpan(results: readonly ScenarioResult[]): Span {
  const spans = results.map((result) => spanOf(result.series));
  return { fromMs: Math.min(...spans.map((s) => s.fromMs)), toMs: Math.max(...spans.map((s) => s.toMs)) };
}

/** The largest rate on the wire in any of the pictures: their common scale where the link has no limit. */
export function linkScale(results: readonly ScenarioResult[], bandwidthBytesPerSecond: number): number {
  if (bandwidthBytesPerSecond > 0) return bandwidthBytesPerSecond;
  const span = commonSpan(results);
  return Math.max(1, ...results.flatMap(({ series }) => ratesOf(series.wire, span, CHART_COLUMNS)));
}

/** The guest's work and the link's over time. */
export function picture(result: ScenarioResult, span: Span, linkBytesPerSecond: number): string {
  const { scenario, series, lost } = result;
  const last = spanOf(series).toMs;
  // Beyond its own end a run has no figures: blank, not nothing.
  const columns = Math.max(1, Math.round((CHART_COLUMNS * (last - span.fromMs)) / (span.toMs - span.fromMs)));
  const own = { fromMs: span.fromMs, toMs: last };
  const shares = (points: readonly Point[], full: number) => [
    ...ratesOf(points, own, columns).map((rate) => rate / full),
    ...Array.from({ length: CHART_COLUMNS - columns }, () => 0),
  ];
  const work = shares(series.work, Math.max(1, lost.undisturbedPerSecond));
  const link = shares(series.wire, linkBytesPerSecond);
  return [
    `${scenario.name}: ${scenario.about}`,
    labelledChart({ label: "guest work", values: work, height: CHART_HEIGHT, full: "as undisturbed" }),
    labelledChart({ label: "link", values: link, height: CHART_HEIGHT, full: formatRate(linkBytesPerSecond) }),
    timeAxis(span.fromMs, span.toMs, CHART_COLUMNS),
  ].join("\n");
}

/** What `--json` prints of one scenario. */
export function comparisonObject({ scenario, summary, lost, proof }: ScenarioResult): CliObject {
  return {
    type: "comparison",
    scenario: scenario.name,
    proved: isProved(proof),
    work_lost_ns: Math.round(lost.seconds * 1e9),
    work_lost_percent: lost.percent,
    undisturbed_pages_per_second: lost.undisturbedPerSecond,
    summary,
    guest: proof.guest,
    ram_check: proof.ram_check ?? null,
  };
}
