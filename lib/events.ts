/**
 * The JSON objects that Gyges prints with `--json` and sends over the control socket: one per line, told apart by
 * `type`. Names are an API; `tests/unit/schema_test.ts` holds them against `lib/monitor/summary.ts`.
 */
import type { GuestLocation } from "./errors.ts";
import type { Mode } from "./options.ts";

export type SourceState =
  | "setup"
  | "precopy"
  | "stopped"
  | "handover"
  | "serving"
  | "completed"
  | "failed"
  | "paused";

export type DestinationState =
  | "listening"
  | "preparing"
  | "precopy"
  | "loading"
  | "running"
  | "completed"
  | "failed"
  | "paused";

export interface LatencyNs {
  n: number;
  p50: number;
  p90: number;
  p99: number;
  p999: number;
  max: number;
}

/** The guest's own account of itself; null where only the guest can tell, as under QEMU. */
export interface GuestReport {
  location: GuestLocation;
  running: boolean;
  vcpus: number;
  ram_bytes: number;
  /** Times the guest went over its working set. */
  passes: number | null;
  /** Page touches, each of which verified the page first. */
  verified_pages: number | null;
  written_pages: number | null;
  /** Pages found wrong; anything but 0 is a lost or stale page. */
  corrupt: number | null;
  /** Page index of the first wrong page, null while there is none. */
  first_corrupt_page: number | null;
  /** Largest gap between two touches of one vCPU since the guest started. */
  largest_stall_ns: number | null;
  /** Steps back of the guest's clock; anything but 0 is an error. */
  clock_backsteps: number | null;
}

/** Page touches that the guest has made by its own account: it lives while they grow. */
export function touchesOf(guest: Pick<GuestReport, "verified_pages">): number {
  return guest.verified_pages ?? 0;
}

export interface Summary {
  type: "summary";
  mode: Mode;
  pager: "user" | "kernel" | "native";
  transport: "tcp" | "tls" | "rdma";
  ram_bytes: number;
  page_bytes: number;
  total_ns: number;
  downtime_ns: number;
  precopy_ns: number;
  precopy_rounds: number;
  precopy_pages: number;
  postcopy_pages: number;
  demand_faults: number;
  /** null: QEMU moved its guest by itself and does not tell. */
  prefetched_pages: number | null;
  zero_pages: number;
  /** null: QEMU does not tell. */
  duplicate_pages: number | null;
  wire_bytes: number;
  blocktime_ns: number;
  /** `n` is 0 where QEMU moved its guest by itself. */
  fault_latency_ns: LatencyNs;
  guest: {
    location: GuestLocation;
    corrupt: number | null;
    verified_pages: number | null;
    largest_stall_ns: number | null;
  };
}

/** What a process is doing now; the sample of `gyges monitor`. */
export interface Sample {
  type: "sample";
  name: string;
  /** "idle": the guest runs and no migration is under way. */
  side: "idle" | "source" | "destination";
  state: "idle" | SourceState | DestinationState;
  mode: Mode | null;
  /** Nanoseconds since the migration began at this side. */
  elapsed_ns: number;
  total_pages: number;
  present_pages: number;
  missing_pages: number;
  precopy_round: number;
  pulled_pages: number;
  wire_bytes: number;
  /** Over the last interval. */
  wire_bytes_per_second: number;
  demand_faults: number;
  fault_latency_ns: LatencyNs;
  /** null when it cannot be told. */
  eta_ns: number | null;
  guest: GuestReport | null;
}

export interface TicketEvent {
  type: "ticket";
  ticket: string;
}

export interface StateEvent {
  type: "state";
  side: "source" | "destination";
  state: SourceState | DestinationState;
  /** What happened, for people. */
  detail: string;
}

/** The bound on total time that `migrate` promises before it starts. */
export interface PromiseEvent {
  type: "promise";
  /** null where no bound exists. */
  total_ns_at_most: number | null;
  detail: string;
}

export interface NoteEvent {
  type: "note";
  level: "info" | "warning";
  detail: string;
}

export interface ErrorEvent {
  type: "error";
  code: number;
  name: string;
  message: string;
  guest_location: GuestLocation;
  check?: string;
  remedy?: string;
  field?: string;
  ours?: string;
  theirs?: string;
}

export interface GuestEvent {
  type: "guest";
  name: string;
  guest: GuestReport;
  /** Result of the host's own pass over all of the stopped guest's RAM, when one was made. */
  ram_check?: RamCheck;
}

/** Outcome of checking every page of a stopped guest from the host. */
export interface RamCheck {
  pages: number;
  filled_pages: number;
  zero_pages: number;
  bad_pages: number;
  first_bad_page: number | null;
}

export type GygesEvent =
  | TicketEvent
  | StateEvent
  | PromiseEvent
  | NoteEvent
  | Sample
  | Summary
  | GuestEvent
  | ErrorEvent;
