/** `gyges vm stop`: ends a guest, with a last look at its memory. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { argument, command } from "@optique/core/primitives";
import { forgetLog } from "../../lib/control/runtime_dir.ts";
import type { Action } from "../action.ts";
import { exitForMemory } from "../memory.ts";
import { prose } from "../prose.ts";
import { jsonOption, runningName, valuesFooter } from "../values.ts";

const options = object({
  name: argument(runningName(), { description: prose`Name of the process that holds the guest.` }),
  json: jsonOption,
});

export const vmStop = command(
  "stop",
  map(options, ({ name, json }): Action => ({
    output: { json },
    async run({ output }) {
      const { vmStop } = await import("../../lib/api.ts");
      const event = await vmStop(name);
      output.event(event);
      forgetLog(name);
      return exitForMemory(event);
    },
  })),
  {
    brief: prose`Stop a guest, check all of its RAM and end its process.`,
    description: prose`Stops the guest, checks every page of its RAM from the host, prints the result and ends the
      process that held it. Exits with 12 when memory is corrupt.`,
    footer: valuesFooter(),
  },
);
