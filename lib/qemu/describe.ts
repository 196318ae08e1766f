/** What a running QEMU has, and whether and how its guest can move: looked up before anything is touched. */
import * as v from "valibot";
import type { PagerKind } from "../options.ts";
import { pagerOfFiles } from "../pager/kinds.ts";
import { machineFacts, unmovable } from "./facts.ts";
import { backendsOf, machineBytes, mapRam, whyNotShared } from "./guest_ram.ts";
import type { RunningQemu } from "./launch.ts";
import { type QmpClient, QmpCommandError, versionText } from "./qmp.ts";
import { whyOutOfReach } from "./own_migration.ts";
import { blockersOf } from "./state_stream.ts";

const blockSchema = v.array(v.object({
  device: v.string(),
  qdev: v.optional(v.string()),
  inserted: v.optional(v.object({ file: v.string(), drv: v.string(), ro: v.boolean() })),
}));

export interface QemuDescription {
  pid: number;
  /** As /proc has it. */
  command: string[];
  qemu_version: string;
  machine_type: string;
  /** QEMU's word: "running", "paused", ... */
  status: string;
  vcpus: number;
  ram_bytes: number;
  /** Memory backends; `file` is null where RAM is not all in shared files. */
  regions: { id: string; bytes: number; shared: boolean; file: string | null }[];
  disks: { device: string; file: string; format: string; read_only: boolean }[];
  /** What will move its RAM. */
  pager: PagerKind;
  /** Why that, where it is QEMU itself. */
  pager_reason: string | null;
  /** Why it cannot move; empty: it can. */
  blockers: string[];
}

/** Throws QmpLostError, PreflightError: /proc of the process may not be read. */
export async function describe({ process, qmp }: RunningQemu): Promise<QemuDescription> {
  const { status, vcpus, machineType } = await machineFacts(qmp);
  const ramBytes = await machineBytes(qmp);
  const backends = await backendsOf(qmp);
  const notShared = whyNotShared(backends, ramBytes);
  const files = notShared === null ? mapRam(backends, process).files : null;
  const outOfReach = files ? null : whyOutOfReach(process);
  const remedy = unmovable(status);
  const stuck = remedy === null ? null : `it is "${status}": ${remedy}`;
  return {
    pid: process.pid,
    command: process.read("cmdline").split("\0").filter((word) => word !== ""),
    qemu_version: versionText(qmp.version),
    machine_type: machineType,
    status,
    vcpus,
    ram_bytes: ramBytes,
    regions: backends.map(({ id, bytes, share }, i) => ({ id, bytes, shared: share, file: files?.[i] ?? null })),
    disks: await disksOf(qmp),
    pager: files ? pagerOfFiles(files) : "native",
    pager_reason: notShared,
    blockers: [...await blockersOf(qmp), outOfReach, stuck].filter((why) => why !== null),
  };
}

async function disksOf(qmp: QmpClient): Promise<QemuDescription["disks"]> {
  try {
    return (await qmp.ask(blockSchema, "query-block")).flatMap(({ device, qdev, inserted }) =>
      inserted
        ? [{ device: device || (qdev ?? ""), file: inserted.file, format: inserted.drv, read_only: inserted.ro }]
        : []
    );
  } catch (error) {
    // A QEMU without block devices at all has no such command.
    if (error instanceof QmpCommandError) return [];
    throw error;
  }
}
