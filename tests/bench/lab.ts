/**
 * The three ways in which a page can come, in two emulated hosts of one lab: the user pager over TCP (TLS) and over RDMA,
 * and the kernel pager. All is emulation, the network included: only the ratios say something, and of one run.
 */
import { median, ms, printTable, ratio } from "./table.ts";
import type { Summary } from "../../lib/events.ts";
import { stopGuest } from "../helpers/pair.ts";
import { GygesHost } from "../lab/gyges_host.ts";
import { Lab } from "../lab/lab.ts";
import { account, move, prepareAt, startGuest } from "../lab/moves.ts";

interface Way {
  name: string;
  pager: "user" | "kernel";
  transport: "tcp" | "rdma";
}

const WAYS: readonly Way[] = [
  { name: "user pager, TCP with TLS", pager: "user", transport: "tcp" },
  { name: "user pager, RDMA", pager: "user", transport: "rdma" },
  { name: "kernel pager, RDMA", pager: "kernel", transport: "rdma" },
];

/** One full move of a guest of 32 MiB that touches all of its pages; its summary. */
async function once(lab: Lab, way: Way, args: readonly string[]): Promise<Summary> {
  const [one, two] = [lab.host(1), lab.host(2)];
  const guest = await startGuest(one, ["--pager", way.pager, "--irqchip"]);
  const there = await prepareAt(two, "there", ["--pager", way.pager]);
  const migrate = move(one, guest, there, ["--mode", "full", "--transport", way.transport, ...args]);
  const summary = await account(way.name, guest, there, migrate);
  await stopGuest(new GygesHost(two), there);
  return summary;
}

/** Rows of medians over `n` runs, the ways in turn, each against the last way. */
async function compare(lab: Lab, n: number, args: readonly string[]): Promise<string[][]> {
  const runs = WAYS.map((): Summary[] => []);
  for (let i = 0; i < n; i++) {
    for (const [index, way] of WAYS.entries()) runs[index]?.push(await once(lab, way, args));
  }
  const figure = (index: number, of: (summary: Summary) => number) => median((runs[index] ?? []).map(of));
  const last = WAYS.length - 1;
  const cells = (index: number, of: (summary: Summary) => number) => {
    const value = figure(index, of);
    return [ms(value), ratio(value, figure(last, of))];
  };
  return [
    ["", "fault p50", "", "fault p99", "", "total", "", "faults"],
    ...WAYS.map(({ name }, index) => [
      name,
      ...cells(index, ({ fault_latency_ns }) => fault_latency_ns.p50),
      ...cells(index, ({ fault_latency_ns }) => fault_latency_ns.p99),
      ...cells(index, ({ total_ns }) => total_ns),
      `${figure(index, ({ demand_faults }) => demand_faults)}`,
    ]),
  ];
}

export async function benchLab(n: number): Promise<void> {
  await using lab = await Lab.boot({ kernel: "6.12", rdma: true, gyges: true });
  printTable(`emulated hosts, no prefetch, n = ${n}`, await compare(lab, n, ["--no-prefetch"]));
  printTable(`emulated hosts, prefetch at full rate, n = ${n}`, await compare(lab, n, []));
}
