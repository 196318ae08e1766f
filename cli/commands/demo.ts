/** `gyges demo`: the scenarios of the original demonstration, run and compared. */
import { object } from "@optique/core/constructs";
import { map, optional } from "@optique/core/modifiers";
import { command, option } from "@optique/core/primitives";
import { choice, string } from "@optique/core/valueparser";
import { UsageError } from "../../lib/errors.ts";
import type { Action } from "../action.ts";
import { prose } from "../prose.ts";
import { byDefault, jsonOption, ramSize, rate, valuesFooter } from "../values.ts";

const options = object({
  ramBytes: byDefault(option("--ram", ramSize(), { description: prose`RAM of the guest.` }), 256 * 2 ** 20, "256MiB"),
  bandwidthBytesPerSecond: byDefault(
    option("--bandwidth", rate(), { description: prose`Rate of the emulated link.` }),
    125_000_000,
    "1Gbit",
  ),
  scenario: byDefault(
    option("--scenario", choice(["full", "hybrid-short", "hybrid-long", "precopy", "all"], { metavar: "SCENARIO" }), {
      description: prose`Which scenario to run.`,
    }),
    "all",
    "all",
  ),
  report: optional(option("--report", string({ metavar: "FILE" }), {
    description: prose`Write the picture of each run to a file ending in .html or .svg.`,
  })),
  json: jsonOption,
});

/** `file` if its ending names a format. Throws UsageError before anything has run. */
function checkReport(file: string): string {
  if (/\.(svg|html?)$/.test(file)) return file;
  throw new UsageError(`Cannot write the report to "${file}" as its ending names no format: use .html or .svg`);
}

export const demo = command(
  "demo",
  map(options, ({ json, report, ...rest }): Action => ({
    output: { json },
    async run({ output }) {
      const { runDemo } = await import("../demo/run.ts");
      return await runDemo({ ...rest, ...(report !== undefined && { report: checkReport(report) }) }, output);
    },
  })),
  {
    brief: prose`Move a guest between two processes here and compare the modes.`,
    description: prose`Moves a micro-VM between two processes of this machine, over loopback and the user pager: full
      post-copy, hybrid with a limit too short to finish pre-copy, hybrid with one long enough, and classic pre-copy. Proves the
      guest's memory each time and compares the figures.`,
    footer: valuesFooter("SIZE", "RATE"),
  },
);
