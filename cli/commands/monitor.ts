/** `gyges monitor`: watches a migration, or an idle guest, from either side. */
import { object } from "@optique/core/constructs";
import { map } from "@optique/core/modifiers";
import { argument, command, option } from "@optique/core/primitives";
import { EXIT } from "../../lib/errors.ts";
import type { Sample } from "../../lib/events.ts";
import type { Action } from "../action.ts";
import { plainLine } from "../progress.ts";
import { prose } from "../prose.ts";
import { jsonOption, runningName, valuesFooter } from "../values.ts";

/** People see four a second; lines for programs come once a second. */
const TERMINAL_INTERVAL_MS = 250;
const LINES_INTERVAL_MS = 1_000;

const options = object({
  name: argument(runningName(), { description: prose`Name of the process to watch.` }),
  once: option("--once", { description: prose`Print one sample and end.` }),
  json: jsonOption,
});

export const monitor = command(
  "monitor",
  map(options, ({ name, once, json }): Action => ({
    output: { json, samplesAreResult: true },
    async run({ output }) {
      const [{ monitor }, { Interrupts }] = await Promise.all([import("../../lib/api.ts"), import("../signals.ts")]);
      // Detaching hurts nobody, so it needs no word.
      using interrupts = new Interrupts({ say: () => {}, lookWith: "" });
      const intervalMs = json || !Deno.stderr.isTerminal() ? LINES_INTERVAL_MS : TERMINAL_INTERVAL_MS;
      let last: Sample | undefined;
      try {
        for await (const sample of monitor(name, { intervalMs, signal: interrupts.signal })) {
          last = sample;
          if (once) break;
          output.event(sample);
          if (output.closed) break;
        }
      } catch (error) {
        if (!interrupts.signal.aborted) throw error;
      }
      // A line that was redrawn is gone by now, so the last state of things is left standing.
      if (last && once) output.answer([last], () => plainLine(last));
      else if (last && Deno.stderr.isTerminal()) output.result(plainLine(last));
      return EXIT.completed;
    },
  })),
  {
    brief: prose`Watch what a process is doing.`,
    description:
      prose`Shows phase, present and missing pages, rates, faults, latency percentiles and the time left, live.
      Attaches to either side and detaches by Ctrl-C without any effect on the migration.`,
    footer: valuesFooter(),
  },
);
