/**
 * The suite driver: runs the parts in order and ends with one line, `N passed, N failed, N skipped`.
 *
 *     deno run -A tests/run.ts [PART...]
 *
 * A test that cannot run here is skipped, never passed, and says why: it prints a line `skip: NAME: REASON`, or adds it
 * to the file $GYGES_TEST_SKIPS. Before the closing line the reasons are counted, and what failed is told again. Exit
 * code 1 if anything failed, a runner crashed or hung, or a part that has test files ran no test.
 */
import { setTimeout as delay } from "node:timers/promises";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { EMULATED_COUNT, EMULATED_RUNS, emulatedArguments } from "./helpers/emulated.ts";
import { type Counts, type Failure, type JunitReport, parseJunit } from "./helpers/junit.ts";

/** What a part says of itself; not every one has words for what failed. */
type Found = Counts & Partial<JunitReport>;

interface Part {
  name: string;
  /** Holds the test files, from the root of the tree. */
  folder: string;
  files: RegExp;
  command: (report: string) => string[];
  count: (stdout: string, report: string) => Found | null;
  timeoutSeconds: number;
  /** Whether it is for this machine. @default always */
  here?: () => boolean;
}

const DRAIN_MS = 3000;
/** Of a failure's message, at the end of the run. */
const MESSAGE_LINES = 30;
const ROOT = fileURLToPath(new URL("..", import.meta.url));

function denoPart(name: string, timeoutSeconds: number, quiet = true): Part {
  const folder = `tests/${name}`;
  return {
    name,
    folder,
    files: /_test\.ts$/,
    command: (report) => {
      // Quiet hides what tests print, too.
      return [Deno.execPath(), "test", ...(quiet ? ["--quiet"] : []), "-A", `--junit-path=${report}`, folder];
    },
    count: (_stdout, report) => readJunit(report),
    timeoutSeconds,
  };
}

/** Runs `program` in an emulated host, whose file `report` it brings here. */
function insideCommand(program: readonly string[], report: string): string[] {
  const inside = ["run", "--quiet", "-A", "tests/lab/inside.ts", "--seconds", "840", "--fetch", report, "--"];
  return [Deno.execPath(), ...inside, "sh", "-c", 'mkdir -p "$0" && exec "$@"', dirname(report), ...program];
}

function hasKvm(): boolean {
  try {
    Deno.statSync("/dev/kvm");
    return true;
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return false;
    throw cause;
  }
}

let interrupted = false;

const PARTS: Part[] = [
  denoPart("unit", 300),
  {
    name: "shim",
    folder: "tests/shim",
    files: /_test\.c$/,
    command: () => ["make", "--no-print-directory", `--jobs=${navigator.hardwareConcurrency}`, "-C", "c-shim", "check"],
    count: (stdout) => countClosingLine(stdout),
    timeoutSeconds: 900,
  },
  denoPart("cli", 600),
  denoPart("kvm", 1200),
  {
    name: "emulated",
    folder: "tests/kvm",
    files: /_test\.ts$/,
    command: (report) =>
      insideCommand(["env", "GYGES_TEST_PATIENCE=10", Deno.execPath(), ...emulatedArguments(report)], report),
    count: (_stdout, report) => countChosen(report, EMULATED_COUNT),
    timeoutSeconds: 900,
    here: () => !hasKvm(),
  },
  denoPart("qemu", 1200, false),
  // Its figures are worth reading.
  denoPart("lab", 3600, false),
];

/** Reads a JUnit file. Null if there is no such file. */
function readJunit(path: string): JunitReport | null {
  try {
    return parseJunit(Deno.readTextFileSync(path));
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return null;
    throw cause;
  }
}

/**
 * The same where a filter chose `expected` cases, all of which must have run: what is missing was renamed, or taken away,
 * and has failed. Those that it left out, which the file has as skipped, are another part's.
 */
function countChosen(path: string, expected: number): Found | null {
  const report = readJunit(path);
  if (!report) return null;
  const { passed, failed } = report;
  return { ...report, failed: failed + Math.max(0, expected - passed - failed), skipped: 0 };
}

/** Reads a part's own closing line. Null if it did not get there. */
function countClosingLine(stdout: string): Counts | null {
  const match = /^(\d+) passed, (\d+) failed, (\d+) skipped$/m.exec(stdout);
  return match && { passed: Number(match[1]), failed: Number(match[2]), skipped: Number(match[3]) };
}

function hasTests(folder: string, files: RegExp): boolean {
  try {
    return [...Deno.readDirSync(folder)].some((entry) => entry.isDirectory || files.test(entry.name));
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return false;
    throw cause;
  }
}

/** Copies `stream` to our own as it comes, and keeps it in `into`. */
async function tee(stream: ReadableStream<Uint8Array>, write: (chunk: Uint8Array) => unknown, into: string[]) {
  const decoder = new TextDecoder();
  for await (const chunk of stream) {
    write(chunk);
    into.push(decoder.decode(chunk, { stream: true }));
  }
}

function killGroup(pid: number): void {
  try {
    Deno.kill(-pid, "SIGKILL");
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound) && !isNoSuchProcess(cause)) throw cause;
  }
}

function isNoSuchProcess(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "ESRCH";
}

/** Runs one part; its counts, with a failure added for what no test could report. */
async function runPart(
  part: Part,
  reports: string,
): Promise<{ counts: Counts; failures: readonly Failure[]; skips: string[] }> {
  const report = `${reports}/${part.name}.xml`;
  const skipped = `${reports}/${part.name}.skips`;
  Deno.writeTextFileSync(skipped, "");
  console.log(`== ${part.name}`);
  const [program, ...args] = part.command(report);
  if (program === undefined) throw new Error(`Part ${part.name} has no command`);
  // timeout(1) puts the part in a process group of its own, so that nothing of it is left behind.
  const child = new Deno.Command("timeout", {
    args: ["--kill-after=5", `${part.timeoutSeconds}`, program, ...args],
    cwd: ROOT,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: { GYGES_TEST_SKIPS: skipped, ...(Deno.stdout.isTerminal() ? {} : { NO_COLOR: "1" }) },
  }).spawn();
  // The group is not the terminal's, so Ctrl-C has to be handed on.
  const interrupt = () => {
    interrupted = true;
    killGroup(child.pid);
  };
  Deno.addSignalListener("SIGINT", interrupt);
  Deno.addSignalListener("SIGTERM", interrupt);
  const start = performance.now();
  const lines: string[] = [];
  const output = Promise.all([
    tee(child.stdout, (chunk) => Deno.stdout.writeSync(chunk), lines),
    tee(child.stderr, (chunk) => Deno.stderr.writeSync(chunk), []),
  ]);
  const { code } = await child.status;
  const seconds = (performance.now() - start) / 1000;
  killGroup(child.pid);
  // A process that left the group may hold the pipes open for ever.
  const drained = await Promise.race([output.then(() => true), delay(DRAIN_MS, false, { ref: false })]);
  Deno.removeSignalListener("SIGINT", interrupt);
  Deno.removeSignalListener("SIGTERM", interrupt);

  const stdout = lines.join("");
  const { failures = [], ...counts } = part.count(stdout, report) ?? { passed: 0, failed: 0, skipped: 0 };
  const complain = (text: string) => {
    console.log(`${stdout === "" || stdout.endsWith("\n") ? "" : "\n"}${part.name}: FAILED: ${text}`);
    counts.failed++;
    failures.push({ test: `the part "${part.name}"`, message: text });
  };
  if (!drained) complain("a process that it started outlives it and holds its output");
  if (seconds >= part.timeoutSeconds) complain(`not done after ${part.timeoutSeconds} s`);
  else if (code !== 0 && counts.failed === 0) complain(`the runner ended with exit code ${code}`);
  else if (counts.passed + counts.failed + counts.skipped === 0) complain("there are test files, but no test ran");
  return { counts, failures, skips: reasonsIn(stdout + Deno.readTextFileSync(skipped)) };
}

/** For whoever reads only the end of a long log. */
function failureLines({ test, message }: Failure): string {
  const lines = message.split("\n");
  const left = lines.length > MESSAGE_LINES ? [`(${lines.length - MESSAGE_LINES} more lines above)`] : [];
  return `FAILED: ${test}\n${[...lines.slice(0, MESSAGE_LINES), ...left].map((line) => `    ${line}`).join("\n")}`;
}

/** The REASON of every `skip: NAME: REASON`. */
function reasonsIn(text: string): string[] {
  return [...text.matchAll(/^skip: .*: (.+)$/gm)].map(([, reason = ""]) => reason);
}

/** As many lines as there are reasons. */
function skipLines(skipped: number, skips: readonly string[]): string[] {
  const lines = [...new Set(skips)].map((reason) =>
    `skip: ${skips.filter((other) => other === reason).length} tests: ${reason}`
  );
  return skips.length < skipped ? [...lines, `skip: ${skipped - skips.length} tests: they do not say why`] : lines;
}

async function main(names: string[]): Promise<number> {
  const unknown = names.filter((name) => !PARTS.some((part) => part.name === name));
  if (unknown.length > 0) {
    console.error(`No such part: ${unknown.join(", ")}. Parts: ${PARTS.map((part) => part.name).join(", ")}`);
    return 2;
  }
  Deno.chdir(ROOT);
  const total: Counts = { passed: 0, failed: 0, skipped: 0 };
  const skips: string[] = [];
  const failures: Failure[] = [];
  const chosen = PARTS.filter(({ name, here }) => (names.length === 0 || names.includes(name)) && here?.() !== false);
  if (chosen.some(({ name }) => name === "emulated")) Deno.env.set(EMULATED_RUNS, "1");
  const reports = Deno.makeTempDirSync({ prefix: "gyges-test-" });
  try {
    for (const part of chosen) {
      if (!hasTests(part.folder, part.files) || interrupted) continue;
      const { counts, failures: failed, skips: reasons } = await runPart(part, reports);
      total.passed += counts.passed;
      total.failed += counts.failed;
      total.skipped += counts.skipped;
      skips.push(...reasons);
      failures.push(...failed);
      console.log(`== ${part.name}: ${closingLine(counts)}\n`);
    }
  } finally {
    Deno.removeSync(reports, { recursive: true });
  }
  for (const failure of failures) console.log(failureLines(failure));
  for (const line of skipLines(total.skipped, skips)) console.log(line);
  console.log(closingLine(total));
  if (interrupted) return 130;
  return total.failed > 0 || total.passed + total.skipped === 0 ? 1 : 0;
}

function closingLine({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed, ${skipped} skipped`;
}

Deno.exit(await main(Deno.args));
