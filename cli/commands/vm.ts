/** `gyges vm`: the commands about guests held on this host. */
import { or } from "@optique/core/constructs";
import { command } from "@optique/core/primitives";
import { prose } from "../prose.ts";
import { valuesFooter } from "../values.ts";
import { vmList } from "./vm_list.ts";
import { vmStart } from "./vm_start.ts";
import { vmStatus } from "./vm_status.ts";
import { vmStop } from "./vm_stop.ts";

export const vm = command("vm", or(vmStart, vmStatus, vmList, vmStop), {
  brief: prose`Start, look at and stop guests on this host.`,
  description: prose`Starts, looks at and stops the guests that are held on this host.`,
  footer: valuesFooter(),
});
