/** `gyges vm start`: holds a new micro-VM. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { argument, command, option } from "@optique/core/primitives";
import { choice, float, integer } from "@optique/core/valueparser";
import { forgetLog } from "../../lib/control/runtime_dir.ts";
import { EXIT, type ExitCode } from "../../lib/errors.ts";
import { MICRO_VM_DEFAULTS, type MicroVmOptions } from "../../lib/options.ts";
import type { Action, ActionContext } from "../action.ts";
import { prose } from "../prose.ts";
import { byDefault, jsonOption, newName, pagerOption, ramSize, size, valuesFooter } from "../values.ts";
import { watched } from "../watched.ts";

const options = object({
  name: argument(newName(), { description: prose`Name for the process that holds the guest.` }),
  ramBytes: option("--ram", ramSize(), {
    description: prose`RAM of the guest, as in 512MiB or 4G (powers of 1024), a multiple of 2MiB.`,
  }),
  vcpus: byDefault(
    option("--vcpus", integer({ metavar: "N", min: 1, max: 8 }), { description: prose`Virtual CPUs, 1 to 8.` }),
    MICRO_VM_DEFAULTS.vcpus,
    `${MICRO_VM_DEFAULTS.vcpus}`,
  ),
  workload: byDefault(
    option("--workload", choice(["uniform", "sequential", "zipf"], { metavar: "PATTERN" }), {
      description: prose`In what order the guest touches its pages: uniform, sequential or zipf.`,
    }),
    MICRO_VM_DEFAULTS.workload,
    MICRO_VM_DEFAULTS.workload,
  ),
  workingSetBytes: byDefault(
    option("--working-set", size(), { description: prose`How much of its RAM the guest keeps touching.` }),
    MICRO_VM_DEFAULTS.workingSetBytes,
    "three quarters of its RAM",
  ),
  writeRatio: byDefault(
    option("--write-ratio", float({ metavar: "R", min: 0, max: 1 }), {
      description: prose`Share of touches that rewrite the page, 0 to 1.`,
    }),
    MICRO_VM_DEFAULTS.writeRatio,
    `${MICRO_VM_DEFAULTS.writeRatio}`,
  ),
  ratePagesPerSecond: byDefault(
    option("--rate", integer({ metavar: "PAGES_PER_S", min: 0 }), {
      description: prose`Touches per second over all vCPUs.`,
    }),
    MICRO_VM_DEFAULTS.ratePagesPerSecond,
    "as many as it can",
  ),
  irqchip: option("--irqchip", {
    description: prose`Give the guest an in-kernel interrupt controller, as KVM's asynchronous page faults need.`,
  }),
  pager: pagerOption(prose`Where RAM lives, and so what can move it: in the kernel module's file system, or in anonymous
    shared memory for the user pager. auto: the kernel's where it can.`),
  detach: option("--detach", {
    description: prose`Return once the guest runs; its process goes on in the background.`,
  }),
  json: jsonOption,
});

async function hold(name: string, vm: MicroVmOptions, context: ActionContext): Promise<ExitCode> {
  const { holdMicroVm } = await import("../../lib/api.ts");
  const code = await watched(`gyges monitor ${name}`, context, (run) => holdMicroVm(name, vm, run));
  // Where all went well nobody will ask what a detached process had to say.
  if (code === EXIT.completed) forgetLog(name);
  return code;
}

export const vmStart = command(
  "start",
  map(options, ({ name, json, detach, ...vm }): Action => ({
    output: { json },
    async run(context) {
      if (!detach) return await hold(name, vm, context);
      const { startDetached } = await import("../detach.ts");
      return await startDetached(name, context);
    },
  })),
  {
    brief: prose`Start a micro-VM and hold it.`,
    description: prose`Starts a micro-VM whose guest writes and verifies its own memory, and holds it until it is
      stopped or has moved away. Its size is in powers of 1024: 1G is 1024M.`,
    footer: valuesFooter("SIZE"),
  },
);
