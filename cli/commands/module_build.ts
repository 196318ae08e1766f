/** `gyges module build`: compiles the kernel module that this program carries. */
import { object } from "@optique/core/constructs";
import { map, optional } from "@optique/core/modifiers";
import { command, option } from "@optique/core/primitives";
import { string } from "@optique/core/valueparser";
import { EXIT } from "../../lib/errors.ts";
import type { Action, ActionContext } from "../action.ts";
import { prose } from "../prose.ts";
import { jsonOption, valuesFooter } from "../values.ts";

/** The options of a build that `load` has too. */
export const buildOptions = {
  headers: optional(option("--headers", string({ metavar: "DIRECTORY" }), {
    description: prose`The kernel's headers. Without it: /lib/modules/KERNEL/build.`,
  })),
  cache: optional(option("--cache", string({ metavar: "DIRECTORY" }), {
    description: prose`Where what is built is kept. Without it: /var/cache/gyges for root, gyges-module in the cache
      directory of other users.`,
  })),
};

/** `options` without what was not given. */
export function given<T extends Record<string, string | undefined>>(options: T): { [K in keyof T]?: string } {
  const entries = Object.entries(options).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [K in keyof T]?: string };
}

const options = object({
  kernel: optional(option("--kernel", string({ metavar: "KERNEL" }), {
    description: prose`The kernel to build for, as its uname -r says. Without it: the running one.`,
  })),
  ...buildOptions,
  json: jsonOption,
});

async function build(wanted: { kernel?: string; headers?: string; cache?: string }, { output }: ActionContext) {
  const [{ buildModule }, { Interrupts }] = await Promise.all([
    import("../../lib/host/module_build.ts"),
    import("../signals.ts"),
  ]);
  using interrupts = new Interrupts({ say: (text) => output.say(text), lookWith: "gyges module status" });
  const module = await buildModule({ ...wanted, signal: interrupts.signal });
  output.answer([{ type: "module_built", ...module }], () => module.path);
  output.say(module.built ? `Built for Linux ${module.kernel}` : "It was built before");
  return EXIT.completed;
}

export const moduleBuild = command(
  "build",
  map(options, ({ json, ...wanted }): Action => ({
    output: { json },
    run: (context) => build(given(wanted), context),
  })),
  {
    brief: prose`Build the kernel module and print its path.`,
    description: prose`Compiles the kernel module from the source that this program carries, and prints the path of
      gyges.ko, which is named by the kernel and by the source. What was built once is kept. Needs the kernel's headers,
      make and the compiler; names the package of what is missing.`,
    footer: valuesFooter(),
  },
);
