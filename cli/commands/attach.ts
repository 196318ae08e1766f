/** `gyges attach`: goes on with a guest whose process died while its memory was still coming. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { argument, command } from "@optique/core/primitives";
import type { Action } from "../action.ts";
import { prose } from "../prose.ts";
import { jsonOption, newName, valuesFooter } from "../values.ts";
import { watched } from "../watched.ts";

const options = object({
  name: argument(newName(), { description: prose`Name of the process that died, as gyges prepare was given it.` }),
  json: jsonOption,
});

export const attach = command(
  "attach",
  map(options, ({ name, json }): Action => ({
    output: { json },
    async run(context) {
      const { attachQemu } = await import("../../lib/qemu_api.ts");
      return await watched(`gyges monitor ${name}`, context, (run) => attachQemu(name, run));
    },
  })),
  {
    brief: prose`Go on with a guest whose process died here.`,
    description:
      prose`Where the gyges at the destination of a QEMU's guest dies after the commit point, the guest waits in
      QEMU, whole, and its source keeps the rest of its memory. This takes the place of the process that died: it finds out
      which pages are here, lets the source come back, brings the rest, and holds the guest from then on. Exits with 12
      where QEMU has ended too.`,
    footer: valuesFooter(),
  },
);
