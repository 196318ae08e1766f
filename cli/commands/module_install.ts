/** `gyges module install`: the module's source for DKMS, and what mounts its file system at boot. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { command, option } from "@optique/core/primitives";
import { string } from "@optique/core/valueparser";
import { EXIT } from "../../lib/errors.ts";
import type { InstalledModule } from "../../lib/host/module_install.ts";
import type { Action } from "../action.ts";
import { prose } from "../prose.ts";
import { byDefault, jsonOption, valuesFooter } from "../values.ts";

const options = object({
  root: byDefault(
    option("--root", string({ metavar: "DIRECTORY" }), {
      description: prose`Install into the system below this directory, as a packager does.`,
    }),
    "/",
    "/",
  ),
  json: jsonOption,
});

function installedText({ files, next }: InstalledModule): string {
  const width = "unchanged".length;
  const lines = files.map(({ path, change }) => `${change.padEnd(width)}  ${path}`);
  return [...lines, "", "Next:", ...next.map((step) => `  ${step}`)].join("\n");
}

export const moduleInstall = command(
  "install",
  map(options, ({ root, json }): Action => ({
    output: { json },
    async run({ output }) {
      const { installModule } = await import("../../lib/host/module_install.ts");
      const installed = installModule(root);
      output.answer([{ type: "module_installed", ...installed }], () => installedText(installed));
      return EXIT.completed;
    },
  })),
  {
    brief: prose`Install the kernel module's source, so that it is there after a boot.`,
    description: prose`Writes the kernel module's source for DKMS to /usr/src/gyges-VERSION, and a systemd unit that
      mounts gygesfs at /run/gyges/ram at boot, which loads the module. Says what it wrote and what is left to do. What
      is there already it leaves alone.`,
    footer: valuesFooter(),
  },
);
