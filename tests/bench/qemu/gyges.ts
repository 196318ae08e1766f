/** The same move by Gyges, from a QEMU that nobody of it holds to one that `gyges prepare` starts. */
import { join } from "node:path";
import { builtFiles } from "../../helpers/binary.ts";
import { GygesProcess, type StartOptions } from "../../helpers/gyges_process.ts";
import { type Load, type Outcome, Stage } from "./stage.ts";

export interface GygesOptions {
  mode: "full" | "hybrid";
  /** Of pre-copy, in hybrid. */
  precopyMs: number;
  tls: "on" | "off";
}

const MOVE_MS = 60_000;

export async function moveByGyges(load: Load, { mode, precopyMs, tls }: GygesOptions): Promise<Outcome> {
  await using stage = await Stage.open(load, { shared: true });
  const [built] = builtFiles();
  if (!built) throw new Error("There is no dist/gyges: run ./build.sh build");
  const env = { GYGES_RUNTIME_DIR: join(stage.folder, "run") };
  await Deno.mkdir(env.GYGES_RUNTIME_DIR, { mode: 0o700 });
  const pidFile = join(stage.folder, "destination.pid");
  // QEMU outlives the gyges that has started it.
  await using _qemu = { [Symbol.asyncDispose]: () => endOf(pidFile) };
  const start = (args: readonly string[], options: StartOptions = { env }) =>
    GygesProcess.spawn(built.path, args, options);
  const qemu = [stage.binary.program, ...stage.binary.args, ...stage.destinationArguments, "-pidfile", pidFile];
  await using prepare = start(["prepare", "bench", "--tls", tls, "--", ...qemu]);
  const { ticket } = await prepare.waitFor("ticket");
  await stage.watch();
  const how = ["--mode", mode, ...(mode === "hybrid" ? ["--precopy-timeout", `${precopyMs}ms`] : []), "--tls", tls];
  const limit = load.bandwidth === null ? [] : ["--bandwidth", `${load.bandwidth / 1024 ** 2}MiB/s`];
  await using migrate = start(["migrate", ticket, "--qmp", stage.sourceMonitor, ...how, ...limit]);
  const { events } = await migrate.endedWith(0, MOVE_MS);
  const noticed = await stage.noticed();
  const summary = events.find((event) => event.type === "summary");
  if (!summary) throw new Error("gyges migrate printed no summary");
  return {
    ...noticed,
    totalMs: summary.total_ns / 1e6,
    faults: summary.demand_faults,
    faultP50Us: summary.fault_latency_ns.p50 / 1e3,
    faultP99Us: summary.fault_latency_ns.p99 / 1e3,
    blocktimeMs: summary.blocktime_ns / 1e6,
    bytes: summary.wire_bytes,
  };
}

/** Kills the process that `pidFile` names, and waits until it is gone. */
async function endOf(pidFile: string): Promise<void> {
  let pid: number;
  try {
    pid = Number(await Deno.readTextFile(pidFile));
    Deno.kill(pid, "SIGKILL");
  } catch (error) {
    // It did not start, or has ended.
    if (
      error instanceof Deno.errors.NotFound || (error instanceof Error && "code" in error && error.code === "ESRCH")
    ) {
      return;
    }
    throw error;
  }
  while (await Deno.stat(`/proc/${pid}`).then(() => true, () => false)) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
