import assert from "node:assert/strict";
import { blockChart, labelledChart, timeAxis } from "../../cli/demo/chart.ts";
import { comparisonObject, comparisonTable, FIGURES, picture, proofText } from "../../cli/demo/comparison.ts";
import { reportFor } from "../../cli/demo/report.ts";
import { isProved, type ScenarioResult } from "../../lib/demo/runner.ts";
import { demoGuest, demoScenarios, SCENARIOS } from "../../lib/demo/scenarios.ts";
import { lostWork, ratesOf, Recorder, type Series } from "../../lib/demo/series.ts";
import type { Sample } from "../../lib/events.ts";
import { parseArguments } from "../../cli/grammar.ts";

const DEFAULTS = { ramBytes: 256 * 2 ** 20, bandwidthBytesPerSecond: 125_000_000 };

/** 1000 touches a second before 0 and after 1 s, none between; 1 MB/s on the wire from 0 to 1 s. */
function stalledRun(): Series {
  const series: Series = { work: [], wire: [] };
  for (let ms = -500; ms <= 2000; ms += 50) {
    const worked = ms <= 0 ? ms + 500 : 500 + Math.max(0, ms - 1000);
    series.work.push({ ms, count: worked });
    series.wire.push({ ms, count: Math.min(1e6, Math.max(0, ms * 1000)) });
  }
  return series;
}

function resultOf(series: Series): ScenarioResult {
  const [scenario] = demoScenarios(DEFAULTS);
  assert.ok(scenario);
  const latency = { n: 10, p50: 5_600, p90: 9_000, p99: 110_000, p999: 110_000, max: 111_000 };
  const guest = { location: "destination" as const, corrupt: 0, verified_pages: 1500, largest_stall_ns: 1e9 };
  return {
    scenario,
    beganMs: 0,
    lost: lostWork({ ms: -500, touches: 0 }, { ms: 0, touches: 500 }, { ms: 1000, touches: 500 }, 1000),
    series,
    summary: {
      type: "summary",
      mode: "full",
      pager: "user",
      transport: "tls",
      ram_bytes: DEFAULTS.ramBytes,
      page_bytes: 4096,
      total_ns: 1e9,
      downtime_ns: 3e6,
      precopy_ns: 0,
      precopy_rounds: 0,
      precopy_pages: 0,
      postcopy_pages: 244,
      demand_faults: 10,
      prefetched_pages: 234,
      zero_pages: 65_292,
      duplicate_pages: 0,
      wire_bytes: 1e6,
      blocktime_ns: 1e8,
      fault_latency_ns: latency,
      guest,
    },
    proof: {
      type: "guest",
      name: "demo",
      guest: {
        ...guest,
        running: false,
        vcpus: 1,
        ram_bytes: DEFAULTS.ramBytes,
        passes: 1,
        written_pages: 1000,
        first_corrupt_page: null,
        clock_backsteps: 0,
      },
      ram_check: { pages: 65_536, filled_pages: 244, zero_pages: 65_292, bad_pages: 0, first_bad_page: null },
    },
  };
}

Deno.test("lostWork() is what the undisturbed rate would have made less what was made", () => {
  const before = { ms: 0, touches: 0 };
  const start = { ms: 1000, touches: 1000 };
  assert.deepEqual(lostWork(before, start, { ms: 3000, touches: 3000 }, 2000), {
    undisturbedPerSecond: 1000,
    seconds: 0,
    percent: 0,
  });
  const halved = lostWork(before, start, { ms: 3000, touches: 2000 }, 2000);
  assert.deepEqual([halved.seconds, halved.percent], [1, 50]);
  // The watcher's span may be longer than the migration: the loss is the same, its share is of the migration.
  const longer = lostWork(before, start, { ms: 4000, touches: 3000 }, 2000);
  assert.deepEqual([longer.seconds, longer.percent], [1, 50]);
  assert.equal(lostWork(before, { ms: 1000, touches: 0 }, { ms: 2000, touches: 5 }, 1000).percent, 0);
});

Deno.test("ratesOf() gives back the rates that the points were made with", () => {
  const span = { fromMs: -500, toMs: 2000 };
  const { work, wire } = stalledRun();
  assert.deepEqual(ratesOf(work, span, 10).map(Math.round), [1000, 1000, 0, 0, 0, 0, 1000, 1000, 1000, 1000]);
  assert.deepEqual(ratesOf(wire, span, 10).map((rate) => Math.round(rate / 1e4)), [
    0,
    0,
    100,
    100,
    100,
    100,
    0,
    0,
    0,
    0,
  ]);
  assert.deepEqual(ratesOf([], { fromMs: 0, toMs: 1 }, 1), [0]);
});

Deno.test("Recorder follows the guest from one side to the other and keeps no old count", () => {
  const recorder = new Recorder();
  const { guest } = resultOf(stalledRun()).proof;
  const sample = (side: Sample["side"], touches: number | null, wireBytes = 0): Sample => ({
    type: "sample",
    name: "demo",
    side,
    state: side === "idle" ? "idle" : "precopy",
    mode: null,
    elapsed_ns: 40e6,
    total_pages: 1,
    present_pages: 1,
    missing_pages: 0,
    precopy_round: 0,
    pulled_pages: 0,
    wire_bytes: wireBytes,
    wire_bytes_per_second: 0,
    demand_faults: 0,
    fault_latency_ns: { n: 0, p50: 0, p90: 0, p99: 0, p999: 0, max: 0 },
    eta_ns: null,
    guest: touches === null ? null : { ...guest, verified_pages: touches },
  });
  recorder.add(sample("idle", 10), "source", 1000);
  recorder.start(1010);
  recorder.add(sample("source", 20), "source", 1050);
  recorder.add(sample("destination", null, 500), "destination", 1060);
  recorder.add(sample("destination", 30, 900), "destination", 1070);
  recorder.add(sample("source", 20), "source", 1080);
  recorder.add(sample("idle", 40), "destination", 1090);
  assert.deepEqual(recorder.series.work.map(({ ms, count }) => [ms, count]), [[-10, 10], [40, 20], [60, 30], [80, 40]]);
  assert.deepEqual(recorder.series.wire.map(({ ms, count }) => [ms, count]), [[50, 500], [60, 900], [80, 900]]);
  assert.equal(recorder.beganMs, 0);
});

Deno.test("blockChart() draws nothing as blank and the least as something", () => {
  assert.deepEqual(blockChart([0, 0.001, 0.5, 1, 2, -1], 1), [" ▁▄██ "]);
  assert.deepEqual(blockChart([0.25, 0.5, 0.75, 1], 2), ["  ▄█", "▄███"]);
});

Deno.test("charts keep their columns", () => {
  const chart = labelledChart({ label: "link", values: [0, 1], height: 3, full: "1 MB/s" });
  assert.deepEqual(chart.split("\n").map((row) => row.indexOf("|")), [12, 12, 12]);
  const axis = timeAxis(-500, 2000, 60);
  assert.deepEqual([axis.indexOf(" 0 ") + 1, axis.indexOf("1 s")], [13 + 12, 13 + 36]);
});

Deno.test("the comparison has a figure for every scenario, and the proof", () => {
  const result = resultOf(stalledRun());
  const lines = comparisonTable([result, result]).split("\n");
  assert.equal(lines.length, FIGURES.length + 1);
  for (const line of lines) assert.doesNotMatch(line, /NaN|undefined/);
  assert.match(picture(result, { fromMs: -500, toMs: 2000 }, 1e6), /full: .*\nguest work {2}\|/);
  assert.ok(isProved(result.proof));
  assert.match(proofText(result), /^full: memory proved: the host checked 65,536 pages, 0 bad; .* 0 corrupt$/);
  assert.doesNotThrow(() => JSON.stringify(comparisonObject(result)));
});

Deno.test("isProved() needs the host's check as well as the guest's word", () => {
  const { proof } = resultOf(stalledRun());
  const { ram_check: check, ...unchecked } = proof;
  assert.ok(check);
  assert.equal(isProved(unchecked), false);
  assert.equal(isProved({ ...proof, ram_check: { ...check, bad_pages: 1 } }), false);
  assert.equal(isProved({ ...proof, guest: { ...proof.guest, corrupt: 1 } }), false);
  assert.match(proofText({ ...resultOf(stalledRun()), proof: unchecked }), /NOT PROVED/);
});

Deno.test("reportFor() writes well-formed SVG and HTML, and knows no other ending", () => {
  const result = resultOf(stalledRun());
  const options = { results: [result, result], bandwidthBytesPerSecond: 1e6, about: "a < b & c" };
  const svg = reportFor("x.svg", options) ?? "";
  assert.match(svg, /^<svg [\s\S]*<\/svg>\n$/);
  assert.equal(svg.match(/<polyline/g)?.length, 4);
  assert.ok(svg.includes("a &lt; b &amp; c"));
  assert.doesNotMatch(svg, /NaN|undefined|Infinity/);
  for (const tag of ["g", "text", "style"]) {
    assert.equal(
      svg.match(new RegExp(`<${tag}[ >]`, "g"))?.length,
      svg.match(new RegExp(`</${tag}>`, "g"))?.length,
      tag,
    );
  }
  assert.match(reportFor("x.html", options) ?? "", /^<!doctype html>[\s\S]*<svg /);
  assert.equal(reportFor("x.pdf", options), null);
});

Deno.test("the scenarios are command lines that the parser takes", () => {
  const scenarios = demoScenarios(DEFAULTS);
  assert.deepEqual(scenarios.map((scenario) => scenario.name), [...SCENARIOS]);
  const [, short, long] = scenarios;
  const firstRoundMs = (DEFAULTS.ramBytes / DEFAULTS.bandwidthBytesPerSecond) * 1000;
  assert.ok(
    short && long && short.migrate.precopyTimeoutMs < firstRoundMs && long.migrate.precopyTimeoutMs > 4 * firstRoundMs,
  );
  const guest = demoGuest(DEFAULTS);
  // Rewrites must stay below what the link carries, or pre-copy never gains on them.
  assert.ok(guest.ratePagesPerSecond * guest.writeRatio * 4096 < DEFAULTS.bandwidthBytesPerSecond * 0.6);
  assert.equal(guest.workingSetBytes % 4096, 0);
  assert.ok("run" in parseArguments(["demo", "--scenario", "all"], null));
});
