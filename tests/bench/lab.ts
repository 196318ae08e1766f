/**
 * The three ways in which a page can come, in two emulated hosts of one lab: the user pager over TCP (TLS) and over RDMA,
 * and the kernel pager; beside them READs with no guest. All is emulation, the network included: only the ratios say
 * something, and of one run.
 */
import { median, ms, printTable, ratio } from "./table.ts";
import type { Summary } from "../../lib/events.ts";
import { Lab, type LabHost } from "../lab/lab.ts";
import { account, endGuest, move, prepareAt, startGuest } from "../lab/moves.ts";
import { arm, type Figures, join, proveComplete, STAMP } from "../lab/ram.ts";

interface Way {
  name: string;
  pager: "user" | "kernel";
  transport: "tcp" | "rdma";
}

const WAYS: readonly Way[] = [
  { name: "user, TCP with TLS", pager: "user", transport: "tcp" },
  { name: "user, RDMA", pager: "user", transport: "rdma" },
  { name: "kernel, RDMA", pager: "kernel", transport: "rdma" },
];
/** Cells of a row that only the last way has. */
const KERNEL_ONLY = WAYS.slice(1).map(() => "");
const KERNEL = "6.12";
/** Every page by a fault of its own, which takes long; and as fast as it goes, where setting up must not be most of it. */
const RAM = { off: "32M", on: "128M" } as const;
/** Pages that are READ with no guest: one after the other, and as many at once as prefetch has. */
const LATENCY_PAGES = 2048;
const BULK_PAGES = 8192;

/** A move, and what its destination's host did from its commit point until all memory was there. */
interface Run {
  summary: Summary;
  pullNs: number;
  switches: number;
  busyNs: number;
}

/** What the kernel does where there is no guest. */
interface Raw {
  /** READs by prefetch of one page, one after the other, with nobody waiting for them: posted to completed. */
  p50: number;
  p99: number;
  /** Demand faults of a process that touches one page after the other. */
  touchP50: number;
  /** Time that a page takes where as many READs, of as many pages, are under way as prefetch has unless told. */
  pageNs: number;
}

/** What a host has done since boot. */
async function work(host: LabHost): Promise<Pick<Run, "switches" | "busyNs">> {
  const text = await host.ask("cat /proc/stat; sed 's/^/uptime /' /proc/uptime");
  const [, , , , idle = NaN] = /^cpu\s.*$/m.exec(text)?.[0].split(/\s+/).map(Number) ?? [];
  const uptime = Number(/^uptime (\S+)/m.exec(text)?.[1]);
  return { switches: Number(/^ctxt (\d+)$/m.exec(text)?.[1]), busyNs: uptime * 1e9 - idle * 1e7 };
}

/** One full move of a guest that touches all of its pages, with prefetch or without. */
async function moved(lab: Lab, { name, pager, transport }: Way, prefetch: keyof typeof RAM): Promise<Run> {
  const [one, two] = [lab.host(1), lab.host(2)];
  const args = prefetch === "on" ? [] : ["--no-prefetch"];
  const [guest, there] = await Promise.all([
    startGuest(one, ["--pager", pager, "--irqchip", "--ram", RAM[prefetch]]),
    prepareAt(two, "there", ["--pager", pager]),
  ]);
  const migrate = move(one, guest, there, ["--mode", "full", "--transport", transport, ...args]);
  await there.process.reached("running");
  const start = performance.now();
  const before = await work(two);
  await there.process.reached("completed");
  const pullNs = (performance.now() - start) * 1e6;
  const after = await work(two);
  const summary = await account([name, ...args].join(" "), guest, there, migrate);
  await endGuest(there);
  return { summary, pullNs, switches: after.switches - before.switches, busyNs: after.busyNs - before.busyNs };
}

/** What a file of `pages` tells once it is whole, and the time from RUN until then; `look` may be an order to touch it. */
async function pulled(
  lab: Lab,
  pages: number,
  prefetch: string,
  look = "state",
): Promise<{ told: Figures; ns: number }> {
  const { source, destination } = await join(lab, { pages });
  await destination.do(`prefetch ${prefetch}`);
  await arm(destination, "all");
  const start = performance.now();
  await destination.do("run");
  await destination.do(look);
  const told = await proveComplete(destination, pages);
  const ns = (performance.now() - start) * 1e6;
  await source.remove();
  await destination.remove();
  return { told, ns };
}

async function withoutGuest(lab: Lab): Promise<Raw> {
  const { told: { read_p50: p50 = NaN, read_p99: p99 = NaN } } = await pulled(lab, LATENCY_PAGES, "on 1 1 0");
  const touched = await pulled(lab, LATENCY_PAGES, "off 0 0 0", `check all ${STAMP}`);
  const { fault_p50: touchP50 = NaN } = touched.told;
  const pageNs = (await pulled(lab, BULK_PAGES, "on 0 0 0")).ns / BULK_PAGES;
  console.log(
    `lab: no guest: READs p50 ${ms(p50)}, p99 ${ms(p99)}; faults p50 ${ms(touchP50)}; ` +
      `in bulk ${ms(pageNs)} a page (emulated)`,
  );
  return { p50, p99, touchP50, pageNs };
}

/** All runs of a bench: `on` with prefetch at full rate, `off` without, by the order of WAYS. */
interface Runs {
  raw: Raw[];
  off: Run[][];
  on: Run[][];
}

async function runAll(lab: Lab, n: number): Promise<Runs> {
  const runs: Runs = { raw: [], off: WAYS.map(() => []), on: WAYS.map(() => []) };
  for (let i = 0; i < n; i++) {
    runs.raw.push(await withoutGuest(lab));
    for (const [index, way] of WAYS.entries()) {
      runs.off[index]?.push(await moved(lab, way, "off"));
      runs.on[index]?.push(await moved(lab, way, "on"));
    }
  }
  return runs;
}

/** Medians over all runs, a column for each way. */
function tableOf({ raw, off, on }: Runs): string[][] {
  const over = (all: readonly Run[][], of: (run: Run) => number) => all.map((some) => median(some.map(of)));
  const rawOver = (of: (raw: Raw) => number) => median(raw.map(of));
  const ratios = (values: readonly number[], baseline: (index: number) => number) =>
    values.map((value, index) => ratio(value, baseline(index)));
  const perFault = (of: (run: Run) => number) => over(off, (run) => of(run) / run.summary.demand_faults);
  const latency = (quantile: "p50" | "p99") => ({ summary }: Run) => summary.fault_latency_ns[quantile];
  const total = ({ summary }: Run) => summary.total_ns;
  const [p50, p99, p99WithPrefetch] = [over(off, latency("p50")), over(off, latency("p99")), over(on, latency("p99"))];
  const [rawP50, touchP50] = [rawOver((one) => one.p50), rawOver((one) => one.touchP50)];
  const userRdma = p50[WAYS.findIndex(({ pager, transport }) => pager === "user" && transport === "rdma")] ?? NaN;
  const pull = over(on, ({ pullNs }) => pullNs);
  const rawTotal = over(on, ({ summary }) => summary.postcopy_pages * rawOver((one) => one.pageNs));
  return [
    ["", "READs, no guest", ...WAYS.map(({ name }) => name), "goal of the kernel pager"],
    ["fault p50, no prefetch", ms(rawP50), ...p50.map(ms), ""],
    ["  to a READ of a page", "", ...ratios(p50, () => rawP50), "1.3x"],
    ["  to the user pager over RDMA", "", ...ratios(p50, () => userRdma), "0.5x"],
    ["fault p50 of a process, no guest", "", ...KERNEL_ONLY, ms(touchP50), ""],
    ["  to a READ of a page", "", ...KERNEL_ONLY, ratio(touchP50, rawP50), ""],
    ["fault p99, no prefetch", ms(rawOver((one) => one.p99)), ...p99.map(ms), ""],
    ["fault p99, prefetch at full rate", "", ...p99WithPrefetch.map(ms), ""],
    ["  to that without prefetch", "", ...ratios(p99WithPrefetch, (index) => p99[index] ?? NaN), "2x"],
    ["total time, prefetch at full rate", ms(median(rawTotal)), ...over(on, total).map(ms), ""],
    ["  to READs of the same pages", "", ...ratios(over(on, total), (index) => rawTotal[index] ?? NaN), "1.25x"],
    ["from its first step to its last page", "", ...pull.map(ms), ""],
    [
      "  to READs of the same pages",
      "",
      ...ratios(pull, (index) => rawTotal[index] ?? NaN),
      "",
    ],
    ["downtime, prefetch at full rate", "", ...over(on, ({ summary }) => summary.downtime_ns).map(ms), ""],
    ["demand faults, no prefetch", "", ...over(off, ({ summary }) => summary.demand_faults).map(String), ""],
    ["context switches a fault", "", ...perFault(({ switches }) => switches).map((value) => value.toFixed(1)), ""],
    ["CPU time a fault", "", ...perFault(({ busyNs }) => busyNs).map(ms), ""],
  ];
}

/** Switches and CPU time are of the destination's whole host, its guest included. */
export async function benchLab(n: number): Promise<void> {
  await using lab = await Lab.boot({ kernel: KERNEL, rdma: true, gyges: true });
  const rows = tableOf(await runAll(lab, n));
  const moves = `Full moves of ${RAM.off} without prefetch and of ${RAM.on} with it`;
  printTable(`${moves}, between emulated hosts with soft-RoCE, ${KERNEL}, medians of ${n} runs`, rows);
}
