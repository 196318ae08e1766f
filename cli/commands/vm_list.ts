/** `gyges vm list`: the guests that are held on this host. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { command } from "@optique/core/primitives";
import { survivorWords } from "../../lib/control/runtime_dir.ts";
import { EXIT } from "../../lib/errors.ts";
import type { Action } from "../action.ts";
import { listText } from "../render.ts";
import { prose } from "../prose.ts";
import { jsonOption, valuesFooter } from "../values.ts";

export const vmList = command(
  "list",
  map(object({ json: jsonOption }), ({ json }): Action => ({
    output: { json },
    async run({ output }) {
      const { vmList } = await import("../../lib/api.ts");
      const { samples, survivors } = await vmList();
      output.answer(samples, () => listText(samples));
      for (const survivor of survivors) {
        output.event({ type: "note", level: "warning", detail: survivorWords(survivor) });
      }
      return EXIT.completed;
    },
  })),
  {
    brief: prose`List the guests held on this host.`,
    description: prose`Lists the processes of this user that hold or await a guest, and what they are doing.`,
    footer: valuesFooter(),
  },
);
