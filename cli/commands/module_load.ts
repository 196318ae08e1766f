/** `gyges module load` and `gyges module unload`. */
import { object } from "@optique/core/constructs";
import { map, optional } from "@optique/core/modifiers";
import { command, option } from "@optique/core/primitives";
import { string } from "@optique/core/valueparser";
import { EXIT } from "../../lib/errors.ts";
import type { LoadedModule } from "../../lib/host/module_load.ts";
import type { Action, ActionContext } from "../action.ts";
import type { Output } from "../output.ts";
import { prose } from "../prose.ts";
import { jsonOption, valuesFooter } from "../values.ts";
import { buildOptions, given } from "./module_build.ts";

const loadOptions = object({
  file: optional(option("--file", string({ metavar: "FILE" }), {
    description: prose`Load this gyges.ko instead of building one, as one that was signed.`,
  })),
  ...buildOptions,
  json: jsonOption,
});

function tell(output: Output, { done, status }: LoadedModule): void {
  output.answer([{ type: "module", ...status }], () => done.join("\n"));
}

async function load(wanted: { file?: string; headers?: string; cache?: string }, { output }: ActionContext) {
  const [{ loadModule }, { Interrupts }] = await Promise.all([
    import("../../lib/host/module_load.ts"),
    import("../signals.ts"),
  ]);
  using interrupts = new Interrupts({ say: (text) => output.say(text), lookWith: "gyges module status" });
  tell(output, await loadModule({ ...wanted, signal: interrupts.signal }));
  return EXIT.completed;
}

export const moduleLoad = command(
  "load",
  map(loadOptions, ({ json, ...wanted }): Action => ({
    output: { json },
    run: (context) => load(given(wanted), context),
  })),
  {
    brief: prose`Load the kernel module and mount its file system.`,
    description: prose`Builds the kernel module if it has not been built, loads it and what it needs, and mounts gygesfs
      at /run/gyges/ram, where the kernel pager looks for it. Does nothing that is done already. Needs root.`,
    footer: valuesFooter(),
  },
);

export const moduleUnload = command(
  "unload",
  map(object({ json: jsonOption }), ({ json }): Action => ({
    output: { json },
    async run({ output }) {
      const { unloadModule } = await import("../../lib/host/module_load.ts");
      tell(output, await unloadModule());
      return EXIT.completed;
    },
  })),
  {
    brief: prose`Unmount the file system and unload the kernel module.`,
    description: prose`Unmounts gygesfs and unloads the kernel module. While a guest or another process has RAM files
      open it refuses, with exit code 3, and names them. Needs root.`,
    footer: valuesFooter(),
  },
);
