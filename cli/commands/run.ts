/** `gyges run`: starts a QEMU whose guest can move. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { argument, command, option } from "@optique/core/primitives";
import { forgetLog } from "../../lib/control/runtime_dir.ts";
import { EXIT, type ExitCode, UsageError } from "../../lib/errors.ts";
import type { PagerChoice } from "../../lib/options.ts";
import type { Action, ActionContext } from "../action.ts";
import { prose } from "../prose.ts";
import { jsonOption, newName, pagerOption, qemuCommand, valuesFooter } from "../values.ts";
import { watched } from "../watched.ts";

const options = object({
  name: argument(newName(), { description: prose`Name for the process that holds the guest.` }),
  pager: pagerOption(prose`Where RAM lives, and so what can move it: in the kernel module's file system, or in shared
    memory for the user pager, or, native, wherever the arguments have it: QEMU's own post-copy moves it then. auto:
    the kernel's where it can, else shared memory.`),
  detach: option("--detach", {
    description: prose`Return once the guest runs; its process goes on in the background.`,
  }),
  json: jsonOption,
  qemu: qemuCommand(),
});

interface Wanted {
  name: string;
  command: readonly string[];
  pager: PagerChoice;
}

async function hold({ name, ...qemu }: Wanted, context: ActionContext): Promise<ExitCode> {
  const { holdQemu } = await import("../../lib/qemu_api.ts");
  const code = await watched(`gyges monitor ${name}`, context, (run) => holdQemu(name, qemu, run));
  // Where all went well nobody will ask what a detached process had to say.
  if (code === EXIT.completed) forgetLog(name);
  return code;
}

export const run = command(
  "run",
  map(options, ({ name, qemu, pager, json, detach }): Action => ({
    output: { json },
    async run(context) {
      if (qemu.length === 0) {
        throw new UsageError("Expected QEMU's command line: gyges run NAME -- qemu-system-x86_64 ...");
      }
      if (!detach) return await hold({ name, command: qemu, pager }, context);
      const { startDetached } = await import("../detach.ts");
      return await startDetached(name, context);
    },
  })),
  {
    brief: prose`Start a QEMU whose guest can move.`,
    description:
      prose`Starts QEMU by the arguments after "--" with RAM in shared files and a monitor for Gyges, and holds
      it until its guest ends or has moved away. QEMU runs in the background and outlives this process; what it prints
      goes to qemu.log beside the control socket. Ctrl-C asks the guest to power off.`,
    footer: valuesFooter(),
  },
);
