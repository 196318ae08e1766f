/** The pictures of all runs as one SVG, and as an HTML page with the table. Pure text; nothing is fetched to show it. */
import type { ScenarioResult } from "../../lib/demo/runner.ts";
import { type Point, ratesOf, type Span, spanOf } from "../../lib/demo/series.ts";
import { formatNs, formatRate } from "../../lib/units.ts";
import { commonSpan, FIGURES, linkScale, proofText } from "./comparison.ts";

const WIDTH = 860;
const PANEL_HEIGHT = 190;
const PLOT = { left: 60, right: 20, top: 46, height: 110 };
const PLOT_WIDTH = WIDTH - PLOT.left - PLOT.right;
/** One bin for each this many milliseconds. */
const BIN_MS = 50;

export interface ReportOptions {
  results: readonly ScenarioResult[];
  bandwidthBytesPerSecond: number;
  /** What was run, on what, in a sentence or two. */
  about: string;
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

function text(x: number, y: number, words: string, attributes = ""): string {
  return `<text x="${x}" y="${y}" ${attributes}>${escaped(words)}</text>`;
}

/** Characters that fit the width, by what sans-serif takes at most; SVG does not break lines by itself. */
const LINE_CHARS = 120;
const LINE_HEIGHT = 16;

function linesOf(words: string): string[] {
  return words.match(new RegExp(`.{1,${LINE_CHARS}}(?:\\s|$)`, "g")) ?? [words];
}

/** Maps times and shares of full height to the plot. */
function scales(span: Span) {
  const x = (ms: number) => PLOT.left + (PLOT_WIDTH * (ms - span.fromMs)) / (span.toMs - span.fromMs);
  const y = (share: number) => PLOT.top + PLOT.height * (1 - Math.min(1.1, Math.max(0, share)));
  return { x, y };
}

/** Pre-copy, downtime and post-copy as shaded spans. */
function phases({ summary, beganMs }: ScenarioResult, span: Span): string[] {
  const { x } = scales(span);
  const stopMs = beganMs + (summary.precopy_rounds > 0 ? summary.precopy_ns / 1e6 : 0);
  const runMs = stopMs + summary.downtime_ns / 1e6;
  const endMs = beganMs + summary.total_ns / 1e6;
  const shade = (from: number, to: number, fill: string) => {
    const width = Math.max(1, x(to) - x(from));
    return `<rect x="${x(from).toFixed(1)}" y="${PLOT.top}" width="${
      width.toFixed(1)
    }" height="${PLOT.height}" fill="${fill}"/>`;
  };
  const shades = [shade(runMs, endMs, "#eef3fb"), shade(stopMs, runMs, "#f3b0a8")];
  return stopMs > beganMs ? [shade(beganMs, stopMs, "#f4f1e4"), ...shades] : shades;
}

function line(points: readonly (readonly [number, number])[], colour: string): string {
  const path = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
  return `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="1.5"/>`;
}

function axis(span: Span): string[] {
  const { x } = scales(span);
  const step = [100, 200, 500, 1000, 2000, 5000, 10_000, 30_000].find((ms) => (span.toMs - span.fromMs) / ms <= 12) ??
    60_000;
  const marks: string[] = [];
  for (let ms = Math.ceil(span.fromMs / step) * step; ms <= span.toMs; ms += step) {
    marks.push(text(x(ms), PLOT.top + PLOT.height + 14, `${ms / 1000} s`, 'class="mark"'));
  }
  return marks;
}

function panel(result: ScenarioResult, span: Span, linkBytesPerSecond: number): string {
  const { scenario, summary, lost, series } = result;
  const { x, y } = scales(span);
  const own = { fromMs: span.fromMs, toMs: spanOf(series).toMs };
  const bins = Math.max(1, Math.round((own.toMs - own.fromMs) / BIN_MS));
  const width = (own.toMs - own.fromMs) / bins;
  const curve = (points: readonly Point[], full: number) =>
    ratesOf(points, own, bins).map((rate, i) => [x(own.fromMs + (i + 0.5) * width), y(rate / full)] as const);
  const figures = `total ${formatNs(summary.total_ns)}, downtime ${formatNs(summary.downtime_ns)}, ` +
    `largest stall ${formatNs(summary.guest.largest_stall_ns)}, work lost ${formatNs(Math.max(0, lost.seconds) * 1e9)}`;
  return [
    text(PLOT.left, 18, `${scenario.name}: ${scenario.about}`, 'class="title"'),
    text(PLOT.left, 36, figures),
    ...phases(result, span),
    `<rect x="${PLOT.left}" y="${PLOT.top}" width="${PLOT_WIDTH}" height="${PLOT.height}" fill="none" stroke="#999"/>`,
    text(PLOT.left - 6, PLOT.top + 8, "100%", 'text-anchor="end"'),
    text(PLOT.left - 6, PLOT.top + PLOT.height, "0", 'text-anchor="end"'),
    line(curve(series.wire, linkBytesPerSecond), "#2f6fb7"),
    line(curve(series.work, Math.max(1, lost.undisturbedPerSecond)), "#1e8a4c"),
    ...axis(span),
  ].join("\n");
}

export function svgReport({ results, bandwidthBytesPerSecond, about }: ReportOptions): string {
  const span = commonSpan(results);
  const link = linkScale(results, bandwidthBytesPerSecond);
  const legend = linesOf(
    `green: the guest's work, 100% is undisturbed; blue: the link, 100% is ${formatRate(link)}; ` +
      "yellow: pre-copy; red: downtime; pale blue: post-copy",
  );
  const footer = linesOf(about);
  const top = 24 + legend.length * LINE_HEIGHT;
  const bottom = top + PANEL_HEIGHT * results.length + 10;
  const height = bottom + footer.length * LINE_HEIGHT + 10;
  const panels = results.map((result, i) =>
    `<g transform="translate(0 ${top + i * PANEL_HEIGHT})">\n${panel(result, span, link)}\n</g>`
  );
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="sans-serif" font-size="12">`,
    "<style>.title { font-weight: bold } .mark { text-anchor: middle; fill: #555 }</style>",
    `<rect width="${WIDTH}" height="${height}" fill="#fff"/>`,
    ...legend.map((line, i) => text(PLOT.left, 20 + i * LINE_HEIGHT, line)),
    ...panels,
    ...footer.map((line, i) => text(PLOT.left, bottom + i * LINE_HEIGHT, line, 'fill="#555"')),
    "</svg>",
  ].join("\n");
}

export function htmlReport(options: ReportOptions): string {
  const { results, about } = options;
  const cells = (tag: string, words: readonly string[]) =>
    words.map((word) => `<${tag}>${escaped(word)}</${tag}>`).join("");
  const rows = FIGURES.map(([label, of]) => `<tr>${cells("th", [label.trim()])}${cells("td", results.map(of))}</tr>`);
  return [
    "<!doctype html>",
    '<html lang="en"><meta charset="utf-8"><title>Gyges demo</title>',
    "<style>body { font: 14px sans-serif; max-width: 900px; margin: 2em auto } th { text-align: left; font-weight: normal }",
    "td { text-align: right; padding-left: 2em } thead th { font-weight: bold; text-align: right }</style>",
    "<h1>Gyges demo</h1>",
    `<p>${escaped(about)}</p>`,
    `<table><thead><tr>${cells("th", ["", ...results.map((result) => result.scenario.name)])}</tr></thead>`,
    `<tbody>\n${rows.join("\n")}\n</tbody></table>`,
    `<ul>${results.map((result) => `<li>${escaped(proofText(result))}</li>`).join("")}</ul>`,
    svgReport(options),
    "</html>",
  ].join("\n");
}

/** The report in the format that `file` asks for by its ending; null for an ending that is neither. */
export function reportFor(file: string, options: ReportOptions): string | null {
  if (file.endsWith(".svg")) return `${svgReport(options)}\n`;
  if (file.endsWith(".html") || file.endsWith(".htm")) return `${htmlReport(options)}\n`;
  return null;
}
