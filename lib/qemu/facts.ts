/** What a running QEMU says of its machine. */
import * as v from "valibot";
import type { QmpClient } from "./qmp.ts";

const statusSchema = v.object({ status: v.string(), running: v.boolean() });
const cpusSchema = v.array(v.object({ "cpu-index": v.number() }));

export interface MachineFacts extends v.InferOutput<typeof statusSchema> {
  vcpus: number;
  /** As QEMU resolves it: "pc-i440fx-7.2". */
  machineType: string;
}

export function statusOf(qmp: QmpClient): Promise<v.InferOutput<typeof statusSchema>> {
  return qmp.ask(statusSchema, "query-status");
}

export async function machineFacts(qmp: QmpClient): Promise<MachineFacts> {
  const cpus = await qmp.ask(cpusSchema, "query-cpus-fast");
  const type = await qmp.ask(v.string(), "qom-get", { path: "/machine", property: "type" });
  return { ...await statusOf(qmp), vcpus: cpus.length, machineType: type.replace(/-machine$/, "") };
}
