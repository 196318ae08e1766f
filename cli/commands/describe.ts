/** `gyges describe`: a QEMU's machine, and whether and how its guest can move. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { command, option } from "@optique/core/primitives";
import { string } from "@optique/core/valueparser";
import { EXIT } from "../../lib/errors.ts";
import type { QemuDescription } from "../../lib/qemu/describe.ts";
import { formatBytes } from "../../lib/units.ts";
import type { Action } from "../action.ts";
import { prose } from "../prose.ts";
import { labelled } from "../render.ts";
import { jsonOption, valuesFooter } from "../values.ts";

const options = object({
  qmp: option("--qmp", string({ metavar: "SOCKET" }), { description: prose`Monitor socket of the QEMU.` }),
  json: jsonOption,
});

function text(machine: QemuDescription): string {
  const { pid, status, qemu_version, machine_type, vcpus, ram_bytes, regions, disks, pager, pager_reason, blockers } =
    machine;
  const rows: [string, string][] = [
    ["guest", `${status}, ${vcpus} vCPU, ${formatBytes(ram_bytes)}`],
    ["QEMU", `${qemu_version}, process ${pid}, ${machine_type}`],
    ...regions.map(({ id, bytes, shared, file }): [string, string] => [
      "RAM",
      `${id}: ${formatBytes(bytes)}, ${shared ? file ?? "shared" : "private to QEMU"}`,
    ]),
    ...disks.map(({ device, file, format, read_only }): [string, string] => [
      "disk",
      `${device}: ${file}, ${format}${read_only ? ", read only" : ""}: the destination must have the same file`,
    ]),
    ["pager", pager_reason === null ? pager : `${pager}, QEMU's own post-copy: ${pager_reason}`],
    ...blockers.map((blocker): [string, string] => ["IN THE WAY", blocker]),
  ];
  return [labelled(rows), "", blockers.length === 0 ? "This guest can move." : "This guest cannot move."].join("\n");
}

export const describe = command(
  "describe",
  map(options, ({ qmp, json }): Action => ({
    output: { json },
    async run({ output }) {
      const { describeQemu } = await import("../../lib/qemu_api.ts");
      const machine = await describeQemu(qmp);
      output.answer([{ type: "machine", ...machine }], () => text(machine));
      return machine.blockers.length === 0 ? EXIT.completed : EXIT.hostUnable;
    },
  })),
  {
    brief: prose`Show a QEMU's machine, and whether and how its guest can move.`,
    description:
      prose`Asks a running QEMU by its monitor and changes nothing. Exits with 0 if its guest can move, with 3
      if something is in the way.`,
    footer: valuesFooter(),
  },
);
