/** Schemas of the JSON objects of lib/events.ts: what arrives from another process is checked against them. */
import * as v from "valibot";
import type {
  ErrorEvent,
  GuestEvent,
  GuestReport,
  GygesEvent,
  LatencyNs,
  NoteEvent,
  PromiseEvent,
  RamCheck,
  Sample,
  StateEvent,
  Summary,
  TicketEvent,
} from "../events.ts";

/** Pages, bytes, faults. */
const count = v.pipe(v.number(), v.integer(), v.minValue(0));
/** Times and rates need not be whole. */
const amount = v.pipe(v.number(), v.minValue(0));

const mode = v.picklist(["hybrid", "full", "precopy"]);
const location = v.picklist(["here", "source", "destination", "destination-incomplete", "lost", "none", "unknown"]);
const sourceStates = ["setup", "precopy", "stopped", "handover", "serving", "completed", "failed", "paused"] as const;
export const destinationStates = [
  "listening",
  "preparing",
  "precopy",
  "loading",
  "running",
  "completed",
  "failed",
  "paused",
] as const;

export const latencySchema = v.object({
  n: count,
  p50: amount,
  p90: amount,
  p99: amount,
  p999: amount,
  max: amount,
});

export const guestReportSchema = v.object({
  location,
  running: v.boolean(),
  vcpus: count,
  ram_bytes: count,
  passes: v.nullable(count),
  verified_pages: v.nullable(count),
  written_pages: v.nullable(count),
  corrupt: v.nullable(count),
  first_corrupt_page: v.nullable(count),
  largest_stall_ns: v.nullable(amount),
  clock_backsteps: v.nullable(count),
});

const DOWNTIME = "From the order to stop the guest at the source until it ran at the destination: the time until the " +
  "source heard that it was loaded, by the source's clock, and from then until it ran, by the destination's. Longer " +
  "than the truth by one message's way at most; a link that is lost once the guest runs does not count";

export const summarySchema = v.object({
  type: v.literal("summary"),
  mode,
  pager: v.picklist(["user", "kernel", "native"]),
  transport: v.picklist(["tcp", "tls", "rdma"]),
  ram_bytes: count,
  page_bytes: count,
  total_ns: amount,
  downtime_ns: v.pipe(amount, v.description(DOWNTIME)),
  precopy_ns: amount,
  precopy_rounds: count,
  precopy_pages: count,
  postcopy_pages: count,
  demand_faults: count,
  prefetched_pages: v.nullable(count),
  zero_pages: count,
  duplicate_pages: v.nullable(count),
  wire_bytes: count,
  blocktime_ns: amount,
  fault_latency_ns: latencySchema,
  guest: v.object({
    location,
    corrupt: v.nullable(count),
    verified_pages: v.nullable(count),
    largest_stall_ns: v.nullable(amount),
  }),
});

export const sampleSchema = v.object({
  type: v.literal("sample"),
  name: v.string(),
  side: v.picklist(["idle", "source", "destination"]),
  state: v.picklist(["idle", ...sourceStates, ...destinationStates]),
  mode: v.nullable(mode),
  elapsed_ns: amount,
  total_pages: count,
  present_pages: count,
  missing_pages: count,
  precopy_round: count,
  pulled_pages: count,
  wire_bytes: count,
  wire_bytes_per_second: amount,
  demand_faults: count,
  fault_latency_ns: latencySchema,
  eta_ns: v.nullable(amount),
  guest: v.nullable(guestReportSchema),
});

export const ticketSchema = v.object({ type: v.literal("ticket"), ticket: v.string() });

export const stateSchema = v.object({
  type: v.literal("state"),
  side: v.picklist(["source", "destination"]),
  state: v.picklist([...sourceStates, ...destinationStates]),
  detail: v.string(),
});

export const promiseSchema = v.object({
  type: v.literal("promise"),
  total_ns_at_most: v.nullable(amount),
  detail: v.string(),
});

export const noteSchema = v.object({
  type: v.literal("note"),
  level: v.picklist(["info", "warning"]),
  detail: v.string(),
});

export const errorSchema = v.object({
  type: v.literal("error"),
  code: count,
  name: v.string(),
  message: v.string(),
  guest_location: location,
  check: v.exactOptional(v.string()),
  remedy: v.exactOptional(v.string()),
  field: v.exactOptional(v.string()),
  ours: v.exactOptional(v.string()),
  theirs: v.exactOptional(v.string()),
});

export const ramCheckSchema = v.object({
  pages: count,
  filled_pages: count,
  zero_pages: count,
  bad_pages: count,
  first_bad_page: v.nullable(count),
});

export const guestSchema = v.object({
  type: v.literal("guest"),
  name: v.string(),
  guest: guestReportSchema,
  ram_check: v.exactOptional(ramCheckSchema),
});

/** Any object that Gyges prints or sends. */
export const eventSchema = v.variant("type", [
  ticketSchema,
  stateSchema,
  promiseSchema,
  noteSchema,
  sampleSchema,
  summarySchema,
  guestSchema,
  errorSchema,
]);

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends (<T>() => T extends B ? 1 : 2) ? true : false;
type Out<S extends v.GenericSchema> = v.InferOutput<S>;

/** Fails to compile when a schema and its type in lib/events.ts part ways; the key names the culprit. */
const AGREED: {
  latency: Same<Out<typeof latencySchema>, LatencyNs>;
  guestReport: Same<Out<typeof guestReportSchema>, GuestReport>;
  summary: Same<Out<typeof summarySchema>, Summary>;
  sample: Same<Out<typeof sampleSchema>, Sample>;
  ticket: Same<Out<typeof ticketSchema>, TicketEvent>;
  state: Same<Out<typeof stateSchema>, StateEvent>;
  promise: Same<Out<typeof promiseSchema>, PromiseEvent>;
  note: Same<Out<typeof noteSchema>, NoteEvent>;
  error: Same<Out<typeof errorSchema>, ErrorEvent>;
  ramCheck: Same<Out<typeof ramCheckSchema>, RamCheck>;
  guest: Same<Out<typeof guestSchema>, GuestEvent>;
} = {
  latency: true,
  guestReport: true,
  summary: true,
  sample: true,
  ticket: true,
  state: true,
  promise: true,
  note: true,
  error: true,
  ramCheck: true,
  guest: true,
};
void AGREED;

/** `value` as one of our events. Throws ValiError naming the key that does not fit. */
export function parseEvent(value: unknown): GygesEvent {
  return v.parse(eventSchema, value);
}
