/** Events as text for people. */
import type { GuestEvent, GuestReport, RamCheck, Sample, StateEvent, Summary } from "../lib/events.ts";
import { formatBytes, formatCount, formatNs, formatRate } from "../lib/units.ts";

/** Rows of label and value, the values in one column. */
export function labelled(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([label]) => label.length));
  return rows.map(([label, value]) => `${label.padEnd(width)}  ${value}`).join("\n");
}

/** Rows under their headings; columns are as wide as they must be, and numbers stand to the right. */
export function table(headings: readonly string[], rows: readonly (readonly string[])[]): string {
  const lines = [headings, ...rows];
  const widths = headings.map((_, i) => Math.max(...lines.map((line) => (line[i] ?? "").length)));
  const numeric = headings.map((_, i) => rows.length > 0 && rows.every((row) => /^[\d-]/.test(row[i] ?? "")));
  const cell = (text: string, i: number) => numeric[i] ? text.padStart(widths[i] ?? 0) : text.padEnd(widths[i] ?? 0);
  return lines.map((line) => line.map(cell).join("  ").trimEnd()).join("\n");
}

export function stateText({ side, state, detail }: StateEvent): string {
  return detail ? `${side}: ${state}: ${detail}` : `${side}: ${state}`;
}

function memoryText(corrupt: number | null, firstCorruptPage: number | null): string {
  if (corrupt === null) return "not known to Gyges: only the guest can tell";
  if (corrupt === 0) return "good: no page was lost or stale";
  const where = firstCorruptPage === null ? "" : `, the first is page ${formatCount(firstCorruptPage)}`;
  return `CORRUPT: ${formatCount(corrupt)} wrong pages${where}`;
}

export function summaryText(summary: Summary): string {
  const { fault_latency_ns: latency, guest } = summary;
  const rows: [string, string][] = [
    ["mode", `${summary.mode}, ${summary.pager} pager over ${summary.transport}`],
    ["total time", formatNs(summary.total_ns)],
    ["downtime", formatNs(summary.downtime_ns)],
    ["RAM", `${formatBytes(summary.ram_bytes)}, of it ${formatCount(summary.zero_pages)} zero pages not sent`],
    ["on the wire", formatBytes(summary.wire_bytes)],
  ];
  if (guest.largest_stall_ns !== null) {
    rows.splice(3, 0, ["largest stall", `${formatNs(guest.largest_stall_ns)} as the guest saw it`]);
  }
  if (summary.precopy_rounds > 0) {
    const rounds = `${summary.precopy_rounds} rounds, ${formatCount(summary.precopy_pages)} pages`;
    rows.push(["pre-copy", `${formatNs(summary.precopy_ns)}, ${rounds}`]);
  }
  const { postcopy_pages, prefetched_pages, demand_faults, duplicate_pages } = summary;
  const counts = [`${formatCount(postcopy_pages)} pages`];
  if (prefetched_pages !== null) counts.push(`${formatCount(prefetched_pages)} prefetched`);
  counts.push(`${formatCount(demand_faults)} demand faults`);
  if (duplicate_pages !== null) counts.push(`${formatCount(duplicate_pages)} pulled twice`);
  rows.push(["post-copy", counts.join(", ")]);
  if (latency.n > 0) {
    const [p50, p99, max] = [latency.p50, latency.p99, latency.max].map(formatNs);
    rows.push(["fault latency", `p50 ${p50}, p99 ${p99}, max ${max}`]);
  }
  if (summary.blocktime_ns > 0) rows.push(["blocktime", formatNs(summary.blocktime_ns)]);
  rows.push(["memory", memoryText(guest.corrupt, null)], ["guest", placeText(guest.location)]);
  return labelled(rows);
}

function placeText(location: GuestReport["location"]): string {
  switch (location) {
    case "here":
      return "here";
    case "source":
      return "at the source";
    case "destination":
      return "at the destination";
    case "destination-incomplete":
      return "at the destination, part of its memory still at the source";
    case "lost":
      return "lost";
    case "none":
      return "none";
    case "unknown":
      return "unknown";
    default:
      return location satisfies never;
  }
}

function ramCheckText(check: RamCheck): string {
  if (check.bad_pages === 0) return `all ${formatCount(check.pages)} pages checked, 0 bad`;
  const where = check.first_bad_page === null ? "" : `, the first is page ${formatCount(check.first_bad_page)}`;
  return `CORRUPT: ${formatCount(check.bad_pages)} bad pages of ${formatCount(check.pages)}${where}`;
}

export function guestText({ name, guest, ram_check: check }: GuestEvent): string {
  const rows: [string, string][] = [
    ["name", name],
    ["guest", `${guest.running ? "runs" : "stopped"}, ${placeText(guest.location)}`],
    ["size", `${guest.vcpus} vCPU, ${formatBytes(guest.ram_bytes)}`],
  ];
  if (guest.verified_pages !== null) {
    rows.push(
      ["work", `${formatCount(guest.passes)} passes, ${formatCount(guest.written_pages)} pages written`],
      ["verified", `${formatCount(guest.verified_pages)} pages by the guest`],
      ["memory", memoryText(guest.corrupt, guest.first_corrupt_page)],
      ["largest stall", formatNs(guest.largest_stall_ns)],
    );
  }
  if ((guest.clock_backsteps ?? 0) > 0) rows.push(["clock", `WENT BACK ${formatCount(guest.clock_backsteps)} times`]);
  if (check) rows.push(["RAM check", ramCheckText(check)]);
  return labelled(rows);
}

/** The processes of this host, one a row. */
export function listText(samples: readonly Sample[]): string {
  if (samples.length === 0) return "No guest is held here; start one with: gyges vm start NAME --ram SIZE";
  const rows = samples.map((sample) => [
    sample.name,
    sample.side,
    sample.state,
    sample.guest ? formatBytes(sample.guest.ram_bytes) : "-",
    sample.side === "idle" ? "-" : `${formatCount(sample.missing_pages)}`,
    sample.side === "idle" ? "-" : formatRate(sample.wire_bytes_per_second),
    sample.guest ? formatCount(sample.guest.corrupt) : "-",
  ]);
  return table(["NAME", "SIDE", "STATE", "RAM", "MISSING", "RATE", "CORRUPT"], rows);
}
