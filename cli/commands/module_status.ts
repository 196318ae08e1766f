/** `gyges module status`: the loaded kernel module beside the one that this program carries. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { command } from "@optique/core/primitives";
import { EXIT } from "../../lib/errors.ts";
import type { ModuleStatus } from "../../lib/host/module_status.ts";
import type { Action } from "../action.ts";
import { prose } from "../prose.ts";
import { labelled } from "../render.ts";
import { jsonOption, valuesFooter } from "../values.ts";

function sourceText({ source, carried, source_matches }: ModuleStatus): string {
  if (source_matches) return `${carried.source}, as this program carries`;
  return `${source ?? "unknown"}, and this program carries ${carried.source}`;
}

export function statusText(status: ModuleStatus): string {
  const { kernel, loaded, version, carried, mounts, references, abi, headers, rdma_devices: devices } = status;
  const rows: [string, string][] = [["kernel", `Linux ${kernel}`]];
  if (loaded) {
    const fits = status.abi_matches ? "" : `, and this program speaks ${carried.abi}`;
    rows.push(
      ["module", `gyges ${version ?? "of unknown version"}, loaded, ${references ?? "unknown"} references`],
      ["source", sourceText(status)],
      ["interface", `version ${abi ?? "unknown"}${fits}`],
    );
  } else {
    rows.push(["module", `not loaded; this program carries gyges ${carried.version}, source ${carried.source}`]);
    rows.push(["headers", headers ? "here, so it can be built" : "not here, so it cannot be built"]);
  }
  rows.push(
    ["gygesfs", mounts.length > 0 ? `mounted at ${mounts.join(", ")}` : "not mounted"],
    ["RDMA", devices.length > 0 ? devices.join(", ") : "no device"],
  );
  return labelled(rows);
}

export const moduleStatus = command(
  "status",
  map(object({ json: jsonOption }), ({ json }): Action => ({
    output: { json },
    async run({ output }) {
      const { moduleStatus } = await import("../../lib/host/module_status.ts");
      const status = moduleStatus();
      output.answer([{ type: "module", ...status }], () => statusText(status));
      return status.loaded ? EXIT.completed : EXIT.hostUnable;
    },
  })),
  {
    brief: prose`Show whether the kernel module is loaded, and which.`,
    description: prose`Shows whether the kernel module is loaded, whether it is the one that this program carries, where
      gygesfs is mounted, and which RDMA devices there are. Exits with 0 if the module is loaded, with 3 if not.`,
    footer: valuesFooter(),
  },
);
