/** Whole migrations of the built file: downtime by RAM size, total time, guest speed while writes are tracked. */
import { type Summary, touchesOf } from "../../lib/events.ts";
import { parseSize } from "../../lib/units.ts";
import { Host, pause } from "../helpers/host.ts";
import { move, prepare, startGuest, startMove, stopGuest } from "../helpers/pair.ts";
import { timeOfCopy } from "./pager.ts";
import { median, ms, printTable, quantile, ratio } from "./table.ts";

const SPAN_MS = 6000;

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

/** Time of a full move without a limit, against the same bytes copied over one connection of the same kind, in turns. */
export async function benchTotal(ram: string, n: number): Promise<void> {
  const rows = [["guest", "n", "total p50", "copy p50", "ratio p50", "MB/s", "fault p50", "fault p99"]];
  for (const [name, vm] of [["at rest", ["--rate", "1000"]], ["writing as fast as it can", []]] as const) {
    const summaries: Summary[] = [];
    const copies: number[] = [];
    for (let i = 0; i < n; i++) {
      copies.push(await timeOfCopy("tls", parseSize(ram) / 2 ** 20));
      summaries.push(...await moves(1, ram, ["--mode", "full"], vm));
    }
    const over = (pick: (summary: Summary, turn: number) => number) => median(summaries.map(pick));
    rows.push([
      name,
      `${n}`,
      ms(over((summary) => summary.total_ns)),
      ms(median(copies)),
      ratio(over((summary, turn) => summary.total_ns / (copies[turn] ?? NaN)), 1),
      over((summary) => summary.wire_bytes / 1e6 / (summary.total_ns / 1e9)).toFixed(0),
      ms(over((summary) => summary.fault_latency_ns.p50)),
      ms(over((summary) => summary.fault_latency_ns.p99)),
    ]);
  }
  printTable(`A full move of ${ram} over loopback TLS, no limit, against ${ram} copied over one such connection`, rows);
}

/** Guest speed while its writes are tracked, against the same guest before and after. */
export async function benchTracking(n: number): Promise<void> {
  const rows = [["guest", "n", "untracked", "pre-copy", "ratio p50", "least"]];
  for (const workload of ["uniform", "zipf", "sequential"]) {
    const [plain, tracked, ratios]: [number[], number[], number[]] = [[], [], []];
    for (let i = 0; i < n; i++) {
      await using host = await Host.open();
      const guest = await startGuest(host, "src", ["--ram", "64M", "--workload", workload]);
      const destination = await prepare(host, "dst");
      const before = await speedOf(host, SPAN_MS / 2);
      // A round takes some 4 s then, and every page of it is tracked anew.
      const limits = ["--precopy-timeout", "60s", "--bandwidth", "150Mbit"];
      const migrate = startMove(host, guest, destination.ticket, limits);
      await migrate.reached("precopy");
      const during = await speedOf(host, SPAN_MS);
      await host.start(["cancel", "src"]).endedWith(0);
      await migrate.endedWith(130);
      const after = await speedOf(host, SPAN_MS / 2);
      plain.push((before + after) / 2);
      tracked.push(during);
      ratios.push(2 * during / (before + after));
    }
    const rate = (speeds: readonly number[]) => `${(median(speeds) / 1e3).toFixed(0)}k pages/s`;
    rows.push([workload, `${n}`, rate(plain), rate(tracked), ratio(median(ratios), 1), ratio(Math.min(...ratios), 1)]);
  }
  printTable("Speed of a guest of 64 MiB that writes as fast as it can, while pre-copy at 150 Mbit/s goes on", rows);
}

/** Pages a second that the guest of "src" touches. */
async function speedOf(host: Host, ms: number): Promise<number> {
  const from = performance.now();
  const before = touchesOf(await host.guest("src"));
  await pause(ms);
  const after = touchesOf(await host.guest("src"));
  return (after - before) / (performance.now() - from) * 1e3;
}
