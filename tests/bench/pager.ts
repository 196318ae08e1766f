/** The user pager against the bare link: tests/bench/pager_bench.c, run several times. */
import * as v from "valibot";
import { median, ms, printTable, ratio, us } from "./table.ts";

const RUNS = 5;
const MEGABYTES = 512;

const line = v.union([
  v.object({
    name: v.picklist(["ping_pong", "fault", "fault_spinning", "fault_with_prefetch"]),
    transport: v.picklist(["tcp", "tls"]),
    n: v.number(),
    p50_ns: v.number(),
    p99_ns: v.number(),
    max_ns: v.number(),
  }),
  v.object({
    name: v.picklist(["copy", "pull"]),
    transport: v.picklist(["tcp", "tls"]),
    bytes: v.number(),
    ns: v.number(),
  }),
]);
type Line = v.InferOutput<typeof line>;

/** @param only the one figure, of both transports @default all */
async function runOnce(megabytes: number, only?: Line["name"]): Promise<Line[]> {
  const path = new URL("../../c-shim/build/bench/pager_bench", import.meta.url).pathname;
  const args = [`${megabytes}`, ...only ? [only] : []];
  const { code, stdout } = await new Deno.Command(path, { args, stderr: "inherit" }).output();
  if (code !== 0) throw new Error(`pager_bench ended with ${code}`);
  return new TextDecoder().decode(stdout).trim().split("\n").map((text) => v.parse(line, JSON.parse(text)));
}

/** Nanoseconds that so much takes over one loopback connection. */
export async function timeOfCopy(transport: Line["transport"], megabytes: number): Promise<number> {
  const copied = (await runOnce(megabytes, "copy")).find((line) => line.transport === transport);
  if (!copied || !("ns" in copied)) throw new Error("pager_bench printed no copy");
  return copied.ns;
}

/** Medians over the runs; ratios are of figures of the same run. */
export async function benchPager(): Promise<void> {
  const runs: Line[][] = [];
  for (let run = 0; run < RUNS; run++) runs.push(await runOnce(MEGABYTES));
  const over = (pick: (line: Line) => number | null, name: string, transport: string) =>
    median(
      runs.flatMap((lines) =>
        lines.filter((l) => l.name === name && l.transport === transport).flatMap((l) => pick(l) ?? [])
      ),
    );
  const p50 = (l: Line) => "p50_ns" in l ? l.p50_ns : null;
  const p99 = (l: Line) => "p99_ns" in l ? l.p99_ns : null;
  const n = (l: Line) => "n" in l ? l.n : null;
  const latency = [["", "n", "p50", "ratio", "p99", "ratio"]];
  const bulk = [["", "MB/s", "time", "ratio"]];
  for (const transport of ["tcp", "tls"]) {
    for (const name of ["ping_pong", "fault", "fault_spinning", "fault_with_prefetch"]) {
      latency.push([
        `${name} ${transport}`,
        `${over(n, name, transport)}`,
        us(over(p50, name, transport)),
        ratio(over(p50, name, transport), over(p50, "ping_pong", transport)),
        us(over(p99, name, transport)),
        ratio(over(p99, name, transport), over(p99, "ping_pong", transport)),
      ]);
    }
    const time = (name: string) => over((l) => "ns" in l ? l.ns : null, name, transport);
    for (const name of ["copy", "pull"]) {
      const rate = MEGABYTES * 2 ** 20 / 1e6 / (time(name) / 1e9);
      bulk.push([`${name} ${transport}`, rate.toFixed(0), ms(time(name)), ratio(time(name), time("copy"))]);
    }
  }
  printTable(`Demand faults against a ping-pong of the same bytes (medians of ${RUNS} runs)`, latency);
  printTable(`${MEGABYTES} MiB as pages against the same bytes copied (medians of ${RUNS} runs)`, bulk);
}
