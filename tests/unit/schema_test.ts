/**
 * The JSON objects are an API: docs/*.schema.json are what others may rely on, and must say what the program checks.
 * After a change that is meant: GYGES_UPDATE_SCHEMA=1 ./build.sh deno test -A tests/unit/schema_test.ts
 */
import assert from "node:assert/strict";
import { toJsonSchema } from "@valibot/to-json-schema";
import { eventSchema, parseEvent, summarySchema } from "../../lib/monitor/summary.ts";
import type { Sample, Summary } from "../../lib/events.ts";

const LATENCY = { n: 3, p50: 5_600, p90: 7_000, p99: 110_000, p999: 120_000, max: 121_001 };

const SUMMARY: Summary = {
  type: "summary",
  mode: "hybrid",
  pager: "user",
  transport: "tls",
  ram_bytes: 2 ** 28,
  page_bytes: 4096,
  total_ns: 3e9,
  downtime_ns: 4_000_000,
  precopy_ns: 1e9,
  precopy_rounds: 3,
  precopy_pages: 60_000,
  postcopy_pages: 5_536,
  demand_faults: 3,
  prefetched_pages: 5_533,
  zero_pages: 12,
  duplicate_pages: 0,
  wire_bytes: 270_000_000,
  blocktime_ns: 300_000,
  fault_latency_ns: LATENCY,
  guest: { location: "destination", corrupt: 0, verified_pages: 1_000_000, largest_stall_ns: 5_000_000 },
};

const SAMPLE: Sample = {
  type: "sample",
  name: "vm1",
  side: "idle",
  state: "idle",
  mode: null,
  elapsed_ns: 0,
  total_pages: 65_536,
  present_pages: 65_536,
  missing_pages: 0,
  precopy_round: 0,
  pulled_pages: 0,
  wire_bytes: 0,
  wire_bytes_per_second: 0.5,
  demand_faults: 0,
  fault_latency_ns: LATENCY,
  eta_ns: null,
  guest: null,
};

const DOCUMENTED = [
  { file: "summary.schema.json", title: "Gyges summary", schema: toJsonSchema(summarySchema) },
  { file: "events.schema.json", title: "Gyges event", schema: toJsonSchema(eventSchema) },
];

for (const { file, title, schema } of DOCUMENTED) {
  Deno.test(`docs/${file} says what the program checks`, () => {
    const path = new URL(`../../docs/${file}`, import.meta.url);
    const { $schema, ...rest } = schema;
    const text = `${JSON.stringify({ $schema, title, ...rest }, null, 2)}\n`;
    if (Deno.env.get("GYGES_UPDATE_SCHEMA")) Deno.writeTextFileSync(path, text);
    assert.deepEqual(JSON.parse(Deno.readTextFileSync(path)), JSON.parse(text));
  });
}

Deno.test("a summary has exactly the keys that were promised", () => {
  const promised =
    "type mode pager transport ram_bytes page_bytes total_ns downtime_ns precopy_ns precopy_rounds precopy_pages " +
    "postcopy_pages demand_faults prefetched_pages zero_pages duplicate_pages wire_bytes blocktime_ns fault_latency_ns guest";
  assert.deepEqual(Object.keys(summarySchema.entries), promised.split(" "));
  assert.deepEqual(Object.keys(summarySchema.entries.fault_latency_ns.entries), [
    "n",
    "p50",
    "p90",
    "p99",
    "p999",
    "max",
  ]);
  const guest = ["location", "corrupt", "verified_pages", "largest_stall_ns"];
  assert.deepEqual(Object.keys(summarySchema.entries.guest.entries), guest);
});

Deno.test("parseEvent() gives back what fits, whatever its type", () => {
  for (const event of [SUMMARY, SAMPLE, { type: "ticket", ticket: "gyges://h:1/vm1#k" }]) {
    assert.deepEqual(parseEvent(structuredClone(event)), event);
  }
});

Deno.test("parseEvent() refuses a missing key, a wrong type and a negative count", () => {
  const { downtime_ns: _, ...missing } = SUMMARY;
  const wrong: unknown[] = [
    missing,
    { ...SUMMARY, demand_faults: -1 },
    { ...SUMMARY, wire_bytes: 1.5 },
    { ...SUMMARY, total_ns: "3s" },
    { ...SUMMARY, mode: "quick" },
    { ...SUMMARY, guest: { ...SUMMARY.guest, location: "elsewhere" } },
    { type: "unheard-of" },
    null,
  ];
  for (const value of wrong) assert.throws(() => parseEvent(value), { name: "ValiError" });
});
