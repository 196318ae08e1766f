/** `gyges vm status`: the guest's own report. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { argument, command, option } from "@optique/core/primitives";
import type { Action } from "../action.ts";
import { exitForMemory } from "../memory.ts";
import { prose } from "../prose.ts";
import { jsonOption, runningName, valuesFooter } from "../values.ts";

const options = object({
  name: argument(runningName(), { description: prose`Name of the process that holds the guest.` }),
  verify: option("--verify", {
    description: prose`Stop the guest for a moment and check all of its RAM from the host.`,
  }),
  json: jsonOption,
});

export const vmStatus = command(
  "status",
  map(options, ({ name, verify, json }): Action => ({
    output: { json },
    async run({ output }) {
      const { vmStatus } = await import("../../lib/api.ts");
      const event = await vmStatus(name, { verify });
      output.event(event);
      return exitForMemory(event);
    },
  })),
  {
    brief: prose`Show the guest's own report.`,
    description: prose`Shows where the guest runs, what it has done, whether it found wrong pages, and the largest
      stall it saw. Exits with 12 when memory is corrupt.`,
    footer: valuesFooter(),
  },
);
