/** `gyges vm stop`: ends a guest, with a last look at its memory. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { argument, command } from "@optique/core/primitives";
import { untilFree } from "../../lib/control/runtime_dir.ts";
import type { Action } from "../action.ts";
import { exitForMemory } from "../memory.ts";
import { prose } from "../prose.ts";
import { jsonOption, runningName, valuesFooter } from "../values.ts";

/** From the guest's stop to the end of its process, which gives its memory back. */
const END_DEADLINE_MS = 10_000;

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
      // The name is free for the next command of a script.
      if (!await untilFree(name, END_DEADLINE_MS)) output.say(`The process of "${name}" has not ended yet`);
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
