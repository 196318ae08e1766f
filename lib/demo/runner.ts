/**
 * Runs one scenario for real: two processes of this program, over loopback, with the user pager. Both ends and the
 * migration are commands as an operator would type them; this process only watches.
 */
import { monitor, vmStatus } from "../api.ts";
import { ControlError } from "../control/client.ts";
import { type GuestEvent, type Sample, type Summary, touchesOf } from "../events.ts";
import { formatSize } from "../units.ts";
import { GygesChild } from "./process.ts";
import { demoGuest, type DemoOptions, type Scenario } from "./scenarios.ts";
import { type LostWork, lostWork, type Point, type Reading, Recorder, type Series } from "./series.ts";

/** How often both sides are asked for figures. */
const SAMPLE_MS = 25;
/** The guest's undisturbed rate is measured over this. */
const UNDISTURBED_MS = 1_500;
/** The picture begins this long before the move and goes on as long after it. */
const MARGIN_MS = 500;

export interface ScenarioResult {
  scenario: Scenario;
  summary: Summary;
  /** When the migration began, on the series' clock; the command has started a moment earlier. */
  beganMs: number;
  lost: LostWork;
  series: Series;
  /** The guest's report and the check of all its RAM after the move. */
  proof: GuestEvent;
}

export interface RunnerOptions extends DemoOptions {
  onSample: (sample: Sample) => void;
  onNote: (text: string) => void;
  signal: AbortSignal;
}

/** Whether every page of the moved guest is what it must be. */
export function isProved({ guest, ram_check: check }: GuestEvent): boolean {
  return guest.corrupt === 0 && check !== undefined && check.bad_pages === 0;
}

/** Moves a fresh guest as `scenario` says. Everything it starts has ended when it returns or throws. */
export async function runScenario(scenario: Scenario, options: RunnerOptions): Promise<ScenarioResult> {
  const { signal } = options;
  const source = `demo-${Deno.pid}-source`;
  const destination = `demo-${Deno.pid}-destination`;
  await using holder = new GygesChild(["vm", "start", source, ...guestArgs(options)]);
  // The stack is left from the top: the watchers stop before the processes that they watch.
  await reachable(source, holder, signal);
  await using receiver = new GygesChild(["prepare", destination, "--micro", "--pager", "user"]);
  const { ticket } = await receiver.waitFor("ticket");

  const recorder = new Recorder();
  const stopWatching = new AbortController();
  const watched = { recorder, options, signal: stopWatching.signal };
  const watchers = [watch(source, "source", watched), watch(destination, "destination", watched)];
  try {
    const before = await readTouches(source);
    await pause(UNDISTURBED_MS, signal);
    const start = await readTouches(source);
    recorder.start(start.ms);
    const summary = await move(ticket, source, scenario, options);
    const end = await readTouches(destination);
    await pause(MARGIN_MS, signal);
    stopWatching.abort();
    await Promise.all(watchers);
    const proof = await stopGuest(destination);
    await Promise.all([holder.end(), receiver.end()]);
    const inPicture = (points: Point[]) => points.filter((point) => point.ms >= -MARGIN_MS);
    const series = { work: inPicture(recorder.series.work), wire: inPicture(recorder.series.wire) };
    const lost = lostWork(before, start, end, summary.total_ns / 1e6);
    return { scenario, summary, beganMs: recorder.beganMs ?? 0, lost, series, proof };
  } finally {
    stopWatching.abort();
    await Promise.allSettled(watchers);
  }
}

function guestArgs(options: DemoOptions): string[] {
  const guest = demoGuest(options);
  return [
    ["--ram", formatSize(guest.ramBytes)],
    ["--vcpus", String(guest.vcpus)],
    ["--workload", guest.workload],
    ["--working-set", formatSize(guest.workingSetBytes)],
    ["--write-ratio", String(guest.writeRatio)],
    ["--rate", String(guest.ratePagesPerSecond)],
    ["--pager", guest.pager],
  ].flat();
}

function migrateArgs(scenario: Scenario, { bandwidthBytesPerSecond }: DemoOptions): string[] {
  const { mode, precopyTimeoutMs, downtimeLimitMs } = scenario.migrate;
  const args = ["--mode", mode, "--transport", "tcp"];
  if (mode === "hybrid") args.push("--precopy-timeout", `${precopyTimeoutMs}ms`);
  if (mode === "precopy") args.push("--downtime-limit", `${downtimeLimitMs}ms`);
  if (bandwidthBytesPerSecond > 0) args.push("--bandwidth", `${bandwidthBytesPerSecond}B/s`);
  return args;
}

async function move(ticket: string, source: string, scenario: Scenario, options: RunnerOptions): Promise<Summary> {
  const onEvent = (event: { type: string; detail?: string }) => {
    if (event.type === "promise" && event.detail) options.onNote(event.detail);
  };
  await using child = new GygesChild(["migrate", ticket, "--vm", source, ...migrateArgs(scenario, options)], {
    onEvent,
  });
  const aborted = abortion(options.signal);
  const summary = await Promise.race([child.waitFor("summary"), aborted.promise]);
  aborted[Symbol.dispose]();
  await child.end();
  return summary;
}

async function stopGuest(name: string): Promise<GuestEvent> {
  await using child = new GygesChild(["vm", "stop", name]);
  return await child.waitFor("guest");
}

/** The guest's touches now. */
async function readTouches(name: string): Promise<Reading> {
  const { guest } = await vmStatus(name, { verify: false });
  return { touches: touchesOf(guest), ms: performance.now() };
}

/** Waits until `name` answers with a guest that works; throws what its process said if it ended instead. */
async function reachable(name: string, holder: GygesChild, signal: AbortSignal): Promise<void> {
  const failed = holder.end().then(() => {
    throw new Error(`The process "${name}" ended before it held a guest`);
  });
  for (;;) {
    try {
      const { guest } = await vmStatus(name, { verify: false });
      if (guest.running && touchesOf(guest) > 0) break;
    } catch (error) {
      if (!(error instanceof ControlError)) throw error;
    }
    await Promise.race([pause(20, signal), failed]);
  }
  // From here on whoever waits for the holder hears of its end.
  failed.catch(() => {});
}

interface Watched {
  recorder: Recorder;
  options: RunnerOptions;
  signal: AbortSignal;
}

async function watch(name: string, role: "source" | "destination", watched: Watched): Promise<void> {
  const { recorder, options, signal } = watched;
  try {
    for await (const sample of monitor(name, { intervalMs: SAMPLE_MS, signal })) {
      recorder.add(sample, role, performance.now());
      // One line tells of the whole move: the destination's, which has all figures.
      if (sample.side === "destination" && sample.state !== "listening") options.onSample(sample);
    }
  } catch (error) {
    // The source's process ends when its guest has gone; an end of the destination's is heard of elsewhere.
    if (!signal.aborted && !(error instanceof ControlError)) throw error;
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  return new Promise((resolve, reject) => {
    const timeout = setTimeout(done, ms);
    function done() {
      signal.removeEventListener("abort", abort);
      resolve();
    }
    function abort() {
      clearTimeout(timeout);
      reject(signal.reason);
    }
    signal.addEventListener("abort", abort, { once: true });
  });
}

/** A promise that rejects when `signal` aborts, until it is disposed of. */
function abortion(signal: AbortSignal): { promise: Promise<never> } & Disposable {
  const { promise, reject } = Promise.withResolvers<never>();
  const abort = () => reject(signal.reason);
  if (signal.aborted) abort();
  signal.addEventListener("abort", abort, { once: true });
  promise.catch(() => {});
  return { promise, [Symbol.dispose]: () => signal.removeEventListener("abort", abort) };
}
