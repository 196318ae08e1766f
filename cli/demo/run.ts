/** The demonstration from first word to last. */
import type { ScenarioResult } from "../../lib/demo/runner.ts";
import { isProved, runScenario } from "../../lib/demo/runner.ts";
import { demoGuest, type DemoOptions, demoScenarios, type ScenarioName } from "../../lib/demo/scenarios.ts";
import { EXIT, type ExitCode } from "../../lib/errors.ts";
import { formatBytes, formatCount, formatRate } from "../../lib/units.ts";
import type { Output } from "../output.ts";
import { Interrupts } from "../signals.ts";
import { commonSpan, comparisonObject, comparisonTable, linkScale, picture, proofText } from "./comparison.ts";
import { reportFor } from "./report.ts";

export interface RunDemoOptions extends DemoOptions {
  scenario: ScenarioName | "all";
  /** A file ending in .svg or .html. */
  report?: string;
}

/** An undisturbed guest that makes less than this of its set rate shares its CPUs with something else. */
const BUSY_SHARE = 0.95;

/** What this is and what it is not. */
function truth(options: DemoOptions): string {
  const guest = demoGuest(options);
  const link = options.bandwidthBytesPerSecond;
  const rate = link > 0 ? `held to ${formatRate(link)}` : "at full speed";
  return `Two processes of this machine, over loopback ${rate}, with the user pager (userfaultfd, TCP with TLS 1.3): ` +
    `no RDMA, no kernel module. The guest is a micro-VM with ${formatBytes(guest.ramBytes)} of RAM that touches ` +
    `${formatCount(guest.ratePagesPerSecond)} pages a second of ${formatBytes(guest.workingSetBytes)}, ` +
    `rewrites ${Math.round(guest.writeRatio * 100)}% of them and verifies every one.`;
}

/** Runs what `options` name and shows the comparison. Code 12 when a guest's memory was not proved. */
export async function runDemo(options: RunDemoOptions, output: Output): Promise<ExitCode> {
  // A scenario is ended whatever its state: its guest is the demo's own.
  using interrupts = new Interrupts({ say: (text) => output.say(text), lookWith: "gyges vm list" });
  const chosen = demoScenarios(options).filter(({ name }) => options.scenario === "all" || name === options.scenario);
  output.say(`${truth(options)}\n`);
  const results: ScenarioResult[] = [];
  for (const scenario of chosen) {
    output.say(`${scenario.name}: ${scenario.about}`);
    const result = await runScenario(scenario, {
      ...options,
      signal: interrupts.signal,
      onSample: (sample) => output.progress(sample),
      onNote: (text) => output.say(text),
    });
    results.push(result);
    output.say(`${proofText(result)}\n`);
    if (result.lost.undisturbedPerSecond < BUSY_SHARE * demoGuest(options).ratePagesPerSecond) {
      output.say(
        "warning: this machine is busy: the guest was slowed before it moved, so these figures are of little use\n",
      );
    }
    output.object(comparisonObject(result));
  }
  show(results, options, output);
  return results.every((result) => isProved(result.proof)) ? EXIT.completed : EXIT.guestLost;
}

function show(results: readonly ScenarioResult[], options: RunDemoOptions, output: Output): void {
  const span = commonSpan(results);
  const link = linkScale(results, options.bandwidthBytesPerSecond);
  for (const result of results) output.result(`${picture(result, span, link)}\n`);
  output.result(comparisonTable(results));
  for (const result of results) output.result(proofText(result));
  if (options.report === undefined) return;
  const { bandwidthBytesPerSecond } = options;
  const text = reportFor(options.report, { results, bandwidthBytesPerSecond, about: truth(options) });
  if (text === null) return;
  Deno.writeTextFileSync(options.report, text);
  output.say(`Report written to ${options.report}`);
}
