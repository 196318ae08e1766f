/** Whole migrations of the built file: downtime by RAM size, total time, start-up times. */
import type { Summary } from "../../lib/events.ts";
import { Host } from "../helpers/host.ts";
import { move, prepare, startGuest, stopGuest } from "../helpers/pair.ts";
import { median, ms, printTable, quantile, ratio } from "./table.ts";

async function moves(n: number, ram: string, args: readonly string[], vm: readonly string[] = []): Promise<Summary[]> {
  const summaries: Summary[] = [];
  for (let i = 0; i < n; i++) {
    await using host = await Host.open();
    const guest = await startGuest(host, "src", ["--ram", ram, ...vm]);
    const destination = await prepare(host, "dst");
    const { summary } = await move(host, guest, destination, args);
    const { ram_check: check } = await stopGuest(host, destination);
    if (check?.bad_pages !== 0) throw new Error(`The guest's memory is damaged: ${check?.bad_pages} pages`);
    summaries.push(summary);
  }
  return summaries;
}

/** Downtime as the source saw it, which is the longer view. */
export async function benchDowntime(sizes: readonly string[], n: number): Promise<void> {
  const rows = [["RAM", "n", "p50", "max", "ratio", "largest stall p50"]];
  let smallest = 0;
  for (const ram of sizes) {
    const summaries = await moves(n, ram, ["--mode", "full"], ["--working-set", "64M"]);
    const downtimes = summaries.map((summary) => summary.downtime_ns);
    const stalls = summaries.map((summary) => summary.guest.largest_stall_ns ?? NaN);
    smallest ||= median(downtimes);
    rows.push([
      ram,
      `${n}`,
      ms(median(downtimes)),
      ms(quantile(downtimes, 1)),
      ratio(median(downtimes), smallest),
      ms(median(stalls)),
    ]);
  }
  printTable("Downtime of a full move, 64 MiB working set", rows);
}

/** Time of a full move without a limit. */
export async function benchTotal(ram: string, n: number): Promise<void> {
  const rows = [["guest", "n", "total p50", "MB/s", "fault p50", "fault p99"]];
  for (const [name, vm] of [["at rest", ["--rate", "1000"]], ["writing as fast as it can", []]] as const) {
    const summaries = await moves(n, ram, ["--mode", "full"], vm);
    const rates = summaries.map((summary) => summary.wire_bytes / 1e6 / (summary.total_ns / 1e9));
    rows.push([
      name,
      `${n}`,
      ms(median(summaries.map((summary) => summary.total_ns))),
      median(rates).toFixed(0),
      ms(median(summaries.map((summary) => summary.fault_latency_ns.p50))),
      ms(median(summaries.map((summary) => summary.fault_latency_ns.p99))),
    ]);
  }
  printTable(`A full move of ${ram} over loopback TLS, no limit`, rows);
}
