/**
 * What source and destination say to each other, one JSON text a frame, some with bytes behind it.
 *
 *   source                                   destination
 *      hello {role, session?, rdma?,    ->            first on every connection
 *             pages?}
 *                                       <-   welcome {session, state} | refused
 *      offer {mode, machine, pager,     ->            control connection only from here
 *             transports, rdma?}
 *      ... RDMA: the destination connects to where the offer says ...
 *                                       <-   accepted {pager, transport, why} | refused
 *      ... TCP: page connections are opened, each with its hello ...
 *      round {deadline} + regions, set  ->            pre-copy, any number of times
 *                                       <-   progress, four times a second
 *                                       <-   round_done {left}
 *      discard + regions, set           ->            last dirty pages while the guest still runs
 *                                       <-   discarded {wanted}
 *      (the guest is stopped)
 *      handover + regions, set          ->            the destination arms while the source saves
 *      state {more} + bytes             ->            as the source saves it, in one or more
 *                                       <-   loaded {missing}
 *      run {stopped?}                   ->            the commit point; sent once
 *                                       <-   running | not_run
 *                                       <-   progress, four times a second
 *                                       <-   complete {stats, start}
 *      finished {summary}               ->
 *
 * Before `loaded` either side may say `failed`, and the guest runs on at the source. Between `loaded` and `run` only
 * the source may: it alone knows whether it has sent `run`. A link lost there leaves the destination in doubt; the
 * source comes back, reads in `welcome` whether its `run` was heard, and says it again if it was not.
 *
 * With the native pager the QEMUs move RAM and state by themselves, through connections of role "demand": a round lasts
 * for as long as they do so while the guest runs, all sets are empty, and the commit point is passed before `run` is sent.
 *
 * A guest that somebody has stopped at the source stays so: its `run` says `stopped`, and commits all the same.
 *
 * `not_run` takes the commit back: the guest has not run at the destination, and what could have run it has been ended
 * before this is said. Only then may a source that has said `run` run it again. It answers `failed`.
 *
 * The bytes of `state` are the machine's; all other payloads are page sets as ffi/page_set.ts encodes them. Over RDMA a
 * table of remote regions stands before a set: it replaces the table that was sent before it, and is empty where that one
 * still holds. Its bytes are an array of struct gyges_region of kernel/include/uapi/linux/gyges.h, by first page, without
 * overlap. A source that comes back says in its hello where the destination can connect by RDMA now, or, where RDMA did not
 * come back or the process that had offered it has died, that pages come over TCP from here on.
 */
import * as v from "valibot";
import { destinationStates, summarySchema } from "../monitor/summary.ts";

export const PROTOCOL_VERSION = 9;
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

const microSchema = v.object({
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
/** A micro-VM: all that is needed to build it. */
export type WireMicro = v.InferOutput<typeof microSchema>;

export const qemuSchema = v.object({
  kind: v.literal("qemu"),
  ram_bytes: count,
  page_bytes: count,
  vcpus: v.pipe(count, v.minValue(1), v.maxValue(4096)),
  version: v.object({ major: count, minor: count, micro: count }),
  /** As QEMU resolves it: "pc-i440fx-7.2". */
  machine_type: name,
  /** Memory backends, by id. */
  regions: v.pipe(v.array(v.object({ id: name, bytes: count })), v.minLength(1), v.maxLength(64)),
  state_bytes_at_most: v.pipe(count, v.maxValue(1 << 30)),
});
/** A guest of QEMU: what the destination's, which was started from the same arguments, must agree in. */
export type WireQemu = v.InferOutput<typeof qemuSchema>;

export const machineSchema = v.variant("kind", [microSchema, qemuSchema]);
export type WireMachine = v.InferOutput<typeof machineSchema>;

/** Where, and by what secret, a destination gets at the memory of a source by RDMA. */
export const rendezvousSchema = v.object({
  /** Numeric addresses of RDMA devices, best first. */
  addresses: v.pipe(
    v.array(v.object({
      host: v.pipe(v.string(), v.ip()),
      port: v.pipe(count, v.minValue(1), v.maxValue(65535)),
    })),
    v.minLength(1),
    v.maxLength(16),
  ),
  /** GYGES_TOKEN_BYTES, in hexadecimal digits. */
  token: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/)),
});
export type Rendezvous = v.InferOutput<typeof rendezvousSchema>;

const pager = v.picklist(["user", "kernel", "native"]);
const transport = v.picklist(["tcp", "rdma"]);

export const messageSchema = v.variant("type", [
  v.object({
    type: v.literal("hello"),
    protocol: count,
    role: v.picklist(["control", "demand", "prefetch"]),
    session: v.exactOptional(name),
    rdma: v.exactOptional(rendezvousSchema),
    pages: v.exactOptional(v.literal("tcp")),
  }),
  v.object({ type: v.literal("welcome"), session: name, name, state: v.picklist(destinationStates) }),
  v.object({ type: v.literal("refused"), field: name, ours: words, theirs: words, message: words }),
  v.object({
    type: v.literal("offer"),
    mode: v.picklist(["hybrid", "full", "precopy"]),
    pager,
    /** What the source can do; with "rdma" among them, `rdma` says where, without it `no_rdma` why not. */
    transports: v.pipe(v.array(transport), v.minLength(1), v.maxLength(2)),
    rdma: v.exactOptional(rendezvousSchema),
    no_rdma: v.exactOptional(words),
    machine: machineSchema,
    bandwidth_bytes_per_s: count,
    prefetch: v.boolean(),
    prefetch_connections: v.pipe(count, v.minValue(1), v.maxValue(16)),
  }),
  v.object({ type: v.literal("accepted"), pager, transport, why: words }),
  v.object({ type: v.literal("round"), round: count, deadline_ms: milliseconds, regions_bytes: count }),
  v.object({ type: v.literal("end_round") }),
  v.object({ type: v.literal("round_done"), round: count, left_pages: count, stats: statsSchema }),
  v.object({ type: v.literal("discard"), regions_bytes: count }),
  v.object({ type: v.literal("discarded"), wanted_pages: count }),
  v.object({ type: v.literal("handover"), regions_bytes: count }),
  v.object({ type: v.literal("state"), more: v.boolean() }),
  v.object({ type: v.literal("loaded"), missing_pages: count }),
  v.object({ type: v.literal("run"), stopped: v.optional(v.boolean()) }),
  v.object({ type: v.literal("running") }),
  v.object({ type: v.literal("not_run"), message: words }),
  v.object({ type: v.literal("progress"), stats: statsSchema }),
  v.object({
    type: v.literal("complete"),
    stats: statsSchema,
    /** From `loaded` to the guest's first step, by the destination's clock. */
    start_ns: count,
    guest: v.object({
      corrupt: v.nullable(count),
      verified_pages: v.nullable(count),
      largest_stall_ns: v.nullable(count),
    }),
  }),
  v.object({ type: v.literal("finished"), summary: summarySchema }),
  v.object({ type: v.literal("failed"), message: words }),
]);

export type Message = v.InferOutput<typeof messageSchema>;
export type MessageType = Message["type"];
export type MessageOf<T extends MessageType> = Extract<Message, { type: T }>;
/** One that a page set follows, and the regions that are not told yet before it. */
export type WithSet = DistributiveOmit<MessageOf<"round" | "discard" | "handover">, "regions_bytes">;
type DistributiveOmit<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;
