/** `gyges attach`: goes on with a move in which the gyges of this end died. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { argument, command } from "@optique/core/primitives";
import type { Action } from "../action.ts";
import { prose } from "../prose.ts";
import { jsonOption, newName, valuesFooter } from "../values.ts";
import { watched } from "../watched.ts";

const options = object({
  name: argument(newName(), {
    description: prose`Name of the process that died, as gyges prepare, gyges run or gyges migrate was given it.`,
  }),
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
    brief: prose`Go on with a move whose process died here.`,
    description:
      prose`Where the gyges at either end of a QEMU's move dies after the commit point, the guest waits in QEMU at the
      destination, whole, and the source's QEMU keeps the rest of its memory. This takes the place of the process that died.
      At the destination it finds out which pages are here, lets the source come back, brings the rest, and holds the guest
      from then on. At the source it serves the rest, where pages go over TCP by the user pager; by the kernel pager they
      need no process, and what else RDMA or the native pager offered is gone with it. Exits with 12 where QEMU has ended
      too.`,
    footer: valuesFooter(),
  },
);
