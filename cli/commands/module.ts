/** `gyges module`: the commands about the kernel module. */
import { or } from "@optique/core/constructs";
import { command } from "@optique/core/primitives";
import { prose } from "../prose.ts";
import { valuesFooter } from "../values.ts";
import { moduleBuild } from "./module_build.ts";
import { moduleInstall } from "./module_install.ts";
import { moduleLoad, moduleUnload } from "./module_load.ts";
import { moduleStatus } from "./module_status.ts";

export const module = command("module", or(moduleBuild, moduleLoad, moduleUnload, moduleStatus, moduleInstall), {
  brief: prose`Build, load, unload, look at and install the kernel module.`,
  description: prose`Builds, loads, unloads, looks at and installs gyges.ko, the kernel pager, whose source this program
    carries.`,
  footer: valuesFooter(),
});
