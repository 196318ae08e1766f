/** `gyges cancel`: gives a migration up before its commit point. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { argument, command } from "@optique/core/primitives";
import { EXIT } from "../../lib/errors.ts";
import type { Action } from "../action.ts";
import { prose } from "../prose.ts";
import { jsonOption, runningName, valuesFooter } from "../values.ts";

const options = object({
  name: argument(runningName(), { description: prose`Name of the process whose guest is moving.` }),
  json: jsonOption,
});

export const cancel = command(
  "cancel",
  map(options, ({ name, json }): Action => ({
    output: { json },
    async run({ output }) {
      const { cancel } = await import("../../lib/api.ts");
      await cancel(name);
      output.event({ type: "note", level: "info", detail: `Cancelled: the guest of "${name}" stays at the source` });
      return EXIT.completed;
    },
  })),
  {
    brief: prose`Give a migration up; the guest stays at the source.`,
    description: prose`Ends the migration that a process is making, if the commit point has not passed; the guest then
      stays at the source as it is. After the commit point it is refused.`,
    footer: valuesFooter(),
  },
);
