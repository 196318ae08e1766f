/** What a process of ours costs: the time until it is there, and its memory besides guest RAM. */
import * as v from "valibot";
import { ControlClient } from "../../lib/control/client.ts";
import { sampleSchema } from "../../lib/monitor/summary.ts";
import { builtFiles } from "../helpers/binary.ts";
import { Host, pause } from "../helpers/host.ts";
import { finished, prepare, startGuest, startMove } from "../helpers/pair.ts";
import { median, ms, printTable, quantile, ratio } from "./table.ts";

const PROGRAM_RUNS = 20;
const SAMPLE_EVERY_MS = 20;

/** From the start of a process until what it is asked for is there. */
export async function benchStart(n: number): Promise<void> {
  const [built] = builtFiles();
  if (!built) throw new Error("There is no dist/gyges: run ./build.sh build");
  const nothing = await timesOf("/bin/true", [], PROGRAM_RUNS);
  const version = await timesOf(built.path, ["--version"], PROGRAM_RUNS);
  const tickets: number[] = [];
  const firstPages: Record<"full" | "hybrid", number[]> = { full: [], hybrid: [] };
  const ordered: Record<"full" | "hybrid", number[]> = { full: [], hybrid: [] };
  for (let i = 0; i < n; i++) {
    for (const mode of ["full", "hybrid"] as const) {
      const { ticketMs, firstPageMs, sinceOrderMs } = await startOfMove(mode);
      tickets.push(ticketMs);
      firstPages[mode].push(firstPageMs);
      ordered[mode].push(sinceOrderMs);
    }
  }
  const row = (name: string, times: readonly number[]) => [
    name,
    `${times.length}`,
    ms(median(times) * 1e6),
    ms(quantile(times, 0.9) * 1e6),
    ratio(median(times), median(nothing)),
  ];
  printTable("From the start of a process", [
    ["until", "n", "p50", "p90", "to /bin/true"],
    row("/bin/true has ended", nothing),
    row("gyges --version has ended", version),
    row("gyges prepare has printed its ticket", tickets),
    row("gyges migrate has the first page over, full", firstPages.full),
    row("gyges migrate has the first page over, hybrid", firstPages.hybrid),
    row("the same from the holder's having the order, full", ordered.full),
    row("the same from the holder's having the order, hybrid", ordered.hybrid),
  ]);
}

async function timesOf(program: string, args: string[], n: number): Promise<number[]> {
  const times: number[] = [];
  // The first one warms what the others find warm.
  for (let i = 0; i <= n; i++) {
    const from = performance.now();
    const { code } = await new Deno.Command(program, { args, stdout: "null" }).output();
    if (code !== 0) throw new Error(`${program} ended with ${code}`);
    if (i > 0) times.push(performance.now() - from);
  }
  return times;
}

interface StartOfMove {
  /** From the start of prepare. */
  ticketMs: number;
  /** From the start of migrate. */
  firstPageMs: number;
  /** From when the process that holds the guest says what it promises, the first that it does. */
  sinceOrderMs: number;
}

async function startOfMove(mode: "full" | "hybrid"): Promise<StartOfMove> {
  await using host = await Host.open();
  const source = await startGuest(host, "src", ["--rate", "1000"]);
  const preparedAt = performance.now();
  const destination = await prepare(host, "dst");
  const ticketMs = performance.now() - preparedAt;
  using client = await ControlClient.connect("dst", { base: host.runtimeDir });
  const movedAt = performance.now();
  const migrate = startMove(host, source, destination.ticket, ["--mode", mode]);
  const orderedAt = source.process.waitFor("promise").then(() => performance.now());
  let firstPageMs = NaN;
  while (Number.isNaN(firstPageMs)) {
    const { pulled_pages } = v.parse(sampleSchema, await client.call("sample"));
    if (pulled_pages > 0) firstPageMs = performance.now() - movedAt;
    await pause(1);
  }
  await finished(source, destination, await migrate.endedWith(0));
  return { ticketMs, firstPageMs, sinceOrderMs: firstPageMs - (await orderedAt - movedAt) };
}

/** Memory of both ends besides guest RAM while a guest moves: the most that was seen. */
export async function benchMemory(sizes: readonly string[]): Promise<void> {
  const rows = [["RAM", "samples", "at rest", "source, most", "destination, most"]];
  for (const ram of sizes) {
    await using host = await Host.open();
    const source = await startGuest(host, "src", ["--ram", ram, "--working-set", "64M"]);
    const rest = ownMemory(source.process.pid);
    const destination = await prepare(host, "dst");
    const migrate = startMove(host, source, destination.ticket, ["--precopy-timeout", "1s"]);
    const seen = { source: [rest], destination: [ownMemory(destination.process.pid)] };
    let moving = true;
    const moved = migrate.endedWith(0).then((ended) => finished(source, destination, ended));
    const over = moved.finally(() => moving = false);
    // Awaited below.
    over.catch(() => {});
    while (moving) {
      if (source.process.running) seen.source.push(ownMemory(source.process.pid));
      seen.destination.push(ownMemory(destination.process.pid));
      await pause(SAMPLE_EVERY_MS);
    }
    await over;
    const most = (values: number[]) => mb(Math.max(...values));
    rows.push([ram, `${seen.destination.length}`, mb(rest), most(seen.source), most(seen.destination)]);
  }
  printTable("Memory of one gyges besides guest RAM (proportional set size), hybrid move", rows);
}

/** Bytes. 0: it has just ended. */
function ownMemory(pid: number): number {
  let kib = 0;
  let guestRam = false;
  for (const line of linesOf(`/proc/${pid}/smaps`)) {
    if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) guestRam = line.includes("/memfd:gyges-ram");
    if (!guestRam) kib += Number(/^Pss:\s+(\d+)/.exec(line)?.[1] ?? 0);
  }
  return kib * 1024;
}

function linesOf(path: string): string[] {
  try {
    return Deno.readTextFileSync(path).split("\n");
  } catch (error) {
    // A process that has just ended has no file, or one that cannot be read.
    if (error instanceof Deno.errors.NotFound || (error instanceof Error && /ESRCH/.test(error.message))) return [];
    throw error;
  }
}

function mb(bytes: number): string {
  return `${(bytes / 1e6).toFixed(0)} MB`;
}
