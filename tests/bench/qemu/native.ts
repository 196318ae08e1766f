/** QEMU's own post-copy from one QEMU to another, by their monitors. */
import { join } from "node:path";
import * as v from "valibot";
import { pause, QemuProcess } from "../../qemu/qemu_process.ts";
import { quantile } from "../table.ts";
import { faultLatenciesUs, traceArguments } from "./fault_trace.ts";
import { type Load, type Outcome, Stage } from "./stage.ts";

export interface NativeOptions {
  /** A loopback TCP connection makes QEMU wait for delayed acknowledgements under a limit, a unix socket does not. */
  link: "tcp" | "unix";
  /** Pages that are waited for overtake the others, on a connection of their own. */
  preempt: boolean;
  /** Milliseconds of pre-copy before it; 0: none. */
  precopyMs: number;
}

/** QEMU takes 0 for no limit after the switch alone. */
const NO_LIMIT = 64 * 1024 ** 3;
const migrationSchema = v.object({
  ram: v.optional(v.object({ transferred: v.number() })),
  "postcopy-blocktime": v.optional(v.number()),
});

export async function moveNatively(load: Load, { link, preempt, precopyMs }: NativeOptions): Promise<Outcome> {
  await using stage = await Stage.open(load, { shared: false });
  const trace = join(stage.folder, "trace");
  const args = [...stage.destinationArguments, "-incoming", "defer", ...traceArguments(trace)];
  await using destination = await QemuProcess.start(stage.binary, args, stage.folder, "destination");
  const { qmp: there } = destination;
  const { qmp: here } = stage.source;
  const names = ["events", "postcopy-ram", "postcopy-blocktime", ...(preempt ? ["postcopy-preempt"] : [])];
  const capabilities = names.map((capability) => ({ capability, state: true }));
  for (const qmp of [here, there]) await qmp.call("migrate-set-capabilities", { capabilities });
  await here.call("migrate-set-parameters", {
    "max-bandwidth": load.bandwidth ?? NO_LIMIT,
    "max-postcopy-bandwidth": load.bandwidth ?? 0,
  });
  const uri = link === "tcp" ? "tcp:127.0.0.1:0" : `unix:${join(stage.folder, "link")}`;
  await there.call("migrate-incoming", { uri });
  const events = await stage.watch();
  await here.call("migrate", { uri: link === "tcp" ? await addressOf(destination) : uri });
  const setup = await stage.sourceEvents.wait("MIGRATION setup");
  if (precopyMs > 0) await pause(precopyMs);
  await here.call("migrate-start-postcopy");
  const completed = await stage.sourceEvents.wait("MIGRATION completed");
  await events.wait("MIGRATION completed");
  const noticed = await stage.noticed();
  const sent = await here.ask(migrationSchema, "query-migrate");
  const received = await there.ask(migrationSchema, "query-migrate");
  const latencies = faultLatenciesUs(trace);
  return {
    ...noticed,
    totalMs: completed.atMs - setup.atMs,
    faults: latencies.length,
    faultP50Us: quantile(latencies, 0.5),
    faultP99Us: quantile(latencies, 0.99),
    blocktimeMs: received["postcopy-blocktime"] ?? NaN,
    bytes: sent.ram?.transferred ?? NaN,
  };
}

const listeningSchema = v.object({ "socket-address": v.array(v.object({ host: v.string(), port: v.string() })) });

/** The URI of the port that the destination was given. */
async function addressOf({ qmp }: QemuProcess): Promise<string> {
  const { "socket-address": [address] } = await qmp.ask(listeningSchema, "query-migrate");
  if (!address) throw new Error("The destination listens nowhere");
  return `tcp:${address.host}:${address.port}`;
}
