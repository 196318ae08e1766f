/** What a running QEMU says of its machine. */
import * as v from "valibot";
import type { QmpClient } from "./qmp.ts";

const statusSchema = v.object({ status: v.string(), running: v.boolean() });
const cpusSchema = v.array(v.object({ "cpu-index": v.number() }));

/** What there is to do about a guest that QEMU does not move, or would move as another than it is, by QEMU's word. */
const UNMOVABLE: Readonly<Record<string, string>> = {
  inmigrate: "it waits for a guest: end that move, or let it end",
  postmigrate:
    "its state was saved for a move. If it runs nowhere else say cont in its monitor, and stop where it is to " +
    "stand still: QEMU moves it again only then",
  shutdown: "it has powered off: say quit in its monitor",
  suspended: "say system_wakeup in its monitor",
};

/** Why a guest of `status` does not move, as what there is to do about it; null: it does. */
export function unmovable(status: string): string | null {
  return UNMOVABLE[status] ?? null;
}

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
