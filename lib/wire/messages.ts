/**
 * What source and destination say to each other, one JSON text a frame, some with bytes behind it.
 *
 *   source                                   destination
 *      hello {role, session?}           ->            first on every connection
 *                                       <-   welcome {session, state} | refused
 *      offer {mode, machine, pager}     ->            control connection only from here
 *                                       <-   accepted | refused
 *      ... page connections are opened, each with its hello ...
 *      round {deadline} + page set      ->            pre-copy, any number of times
 *                                       <-   round_done {left}
 *      discard + page set               ->            last dirty pages while the guest still runs
 *                                       <-   discarded {wanted}
 *      (the guest is stopped)
 *      handover + machine state, set    ->
 *                                       <-   loaded {missing}
 *      run                              ->            the commit point; sent once
 *                                       <-   running
 *                                       <-   progress, four times a second
 *                                       <-   complete {stats}
 *      finished {summary}               ->
 *
 * Before `loaded` either side may say `failed`, and the guest runs on at the source. Between `loaded` and `run` only
 * the source may: it alone knows whether it has sent `run`. A link lost there leaves the destination in doubt; the
 * source comes back, reads in `welcome` whether its `run` was heard, and says it again if it was not.
 */
import * as v from "valibot";
import { destinationStates, summarySchema } from "../monitor/summary.ts";

export const PROTOCOL_VERSION = 1;
/** A JSON text longer than this is refused. */
export const MAX_TEXT_BYTES = 1 << 16;

// Safe: a number that was rounded on its way says nothing.
const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
/** Crosses into C as a u32. */
const milliseconds = v.pipe(count, v.maxValue(0xffff_ffff));
const name = v.pipe(v.string(), v.maxLength(256));
const words = v.pipe(v.string(), v.maxLength(4096));

export const statsSchema = v.object({
  present_pages: count,
  missing_pages: count,
  precopy_pages: count,
  postcopy_pages: count,
  demand_faults: count,
  prefetched_pages: count,
  zero_pages: count,
  duplicate_pages: count,
  wire_bytes: count,
  blocktime_ns: count,
  fault_latency_ns: v.object({ n: count, p50: count, p90: count, p99: count, p999: count, max: count }),
});
/** The destination's counters, as they cross the wire. */
export type WireStats = v.InferOutput<typeof statsSchema>;

export const machineSchema = v.object({
  kind: v.literal("micro"),
  ram_bytes: count,
  page_bytes: count,
  vcpus: v.pipe(count, v.minValue(1), v.maxValue(8)),
  irqchip: v.boolean(),
  workload: v.picklist(["uniform", "sequential", "zipf"]),
  write_per_1024: v.pipe(count, v.maxValue(1024)),
  working_set_bytes: count,
  rate_pages_per_s: count,
  seed: v.pipe(v.string(), v.regex(/^\d{1,20}$/)),
});
export type WireMachine = v.InferOutput<typeof machineSchema>;

export const messageSchema = v.variant("type", [
  v.object({
    type: v.literal("hello"),
    protocol: count,
    role: v.picklist(["control", "demand", "prefetch"]),
    session: v.exactOptional(name),
  }),
  v.object({ type: v.literal("welcome"), session: name, name, state: v.picklist(destinationStates) }),
  v.object({ type: v.literal("refused"), field: name, ours: words, theirs: words, message: words }),
  v.object({
    type: v.literal("offer"),
    mode: v.picklist(["hybrid", "full", "precopy"]),
    pager: v.literal("user"),
    machine: machineSchema,
    bandwidth_bytes_per_s: count,
    prefetch: v.boolean(),
    prefetch_connections: v.pipe(count, v.minValue(1), v.maxValue(16)),
  }),
  v.object({ type: v.literal("accepted") }),
  v.object({ type: v.literal("round"), round: count, deadline_ms: milliseconds }),
  v.object({ type: v.literal("end_round") }),
  v.object({ type: v.literal("round_done"), round: count, left_pages: count, stats: statsSchema }),
  v.object({ type: v.literal("discard") }),
  v.object({ type: v.literal("discarded"), wanted_pages: count }),
  v.object({ type: v.literal("handover"), state_bytes: count }),
  v.object({ type: v.literal("loaded"), missing_pages: count }),
  v.object({ type: v.literal("run") }),
  v.object({ type: v.literal("running") }),
  v.object({ type: v.literal("progress"), stats: statsSchema }),
  v.object({
    type: v.literal("complete"),
    stats: statsSchema,
    guest: v.object({ corrupt: count, verified_pages: count, largest_stall_ns: count }),
  }),
  v.object({ type: v.literal("finished"), summary: summarySchema }),
  v.object({ type: v.literal("failed"), message: words }),
]);

export type Message = v.InferOutput<typeof messageSchema>;
export type MessageType = Message["type"];
export type MessageOf<T extends MessageType> = Extract<Message, { type: T }>;
