/**
 * A source that is silent, hangs up or takes its pages away does an import no harm: it is told in time, whoever waits can
 * be killed, nothing is taken for a page that is none, and a true source completes it.
 */
import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";
import { until } from "../helpers/host.ts";
import type { RemoteProcess } from "./channel.ts";
import type { LabHost } from "./host.ts";
import { KERNELS, type Lab, labTest } from "./lab.ts";
import { type Count, count, leaks } from "./leaks.ts";
import { arm, join, type Joined, PHASE, proveComplete, RamFile, STAMP } from "./ram.ts";

const LAB = { rdma: true, gyges: true } as const;
const PAGES = 1024;
const TOKEN = "any token";
/** What the pages of a false source are stamped with where a true one has others. */
const FALSE_STAMP = 9;
/** That an import waits for a source. */
const WAIT_MS = 2_000;
/** That it may take besides, under emulation. */
const SLACK_MS = 1_500;
/** A dead link becomes an error after some four seconds, see kernel/link.c. */
const LOSS_MS = 20_000;
/** -errno. */
const ECONNRESET = -104;
const EREMOTEIO = -121;

type Reader = ReadableStreamDefaultReader<Uint8Array>;

type Conduct = "serve" | "ignore" | "slow" | "reject" | "hang-up" | "no-reads";

/** tests/lab/programs/false_source.c in host 1. */
class FalseSource implements AsyncDisposable {
  readonly table: string;
  readonly #address: string;
  readonly #process: RemoteProcess;
  readonly #reader: Reader;

  private constructor(address: string, table: string, process: RemoteProcess, reader: Reader) {
    this.#address = address;
    this.table = table;
    this.#process = process;
    this.#reader = reader;
  }

  static async listen(lab: Lab, demand: Conduct, prefetch = demand, stamp = STAMP): Promise<FalseSource> {
    const { address } = lab.host(1);
    const program = await lab.program("false_source");
    const process = lab.host(1).start(`exec ${program} ${address} ${PAGES} ${stamp} ${demand} ${prefetch}`);
    const reader = process.stdout.getReader();
    const [, port, table] = /^(\d+) ([0-9a-f]{48})\n$/.exec(await read(reader)) ?? [];
    assert.ok(port && table, "false_source does not listen");
    return new FalseSource(`${address} ${port}`, table, process, reader);
  }

  /** The order to import from it. */
  order(timeoutMs = 5_000): string {
    return `import ${this.#address} '${TOKEN}' ${timeoutMs}`;
  }

  /** Has it do to all who are connected what it does at `signal`, and say so. */
  async turn(signal: "SIGUSR1" | "SIGUSR2" | "SIGHUP", words: string): Promise<void> {
    this.#process.kill(signal);
    assert.equal(await read(this.#reader), `${words} 2\n`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.status;
  }
}

async function read(reader: Reader): Promise<string> {
  const { value } = await reader.read();
  return new TextDecoder().decode(value);
}

/** A file in host 2 without a source. */
function make(lab: Lab, name: string): Promise<RamFile> {
  return RamFile.make(lab, lab.host(2), name, PAGES);
}

/** `file` imports from `source`, which serves, and waits for orders. */
async function begin(file: RamFile, source: FalseSource): Promise<void> {
  await file.do(source.order());
  await file.do(`set-regions ${source.table}`);
  await arm(file, "all");
}

/** The import of `file`, which has lost its link, goes on with what a true source has. */
async function goOn(file: RamFile, { source, port, token }: Joined): Promise<void> {
  await file.do(`set-regions ${await source.do("regions")}`);
  await file.do("prefetch on 0 0 0");
  await file.do(`import ${source.host.address} ${port} ${token} 5000`);
}

async function removeAll(...files: RamFile[]): Promise<void> {
  for (const file of files) await file.remove();
}

/** Pages of `file` that have this stamp. */
async function right(file: RamFile, set: string, stamp: number): Promise<number | undefined> {
  return (await file.figures(`check ${set} ${stamp}`)).right;
}

/** The link is gone in time and the guest's pages are waited for. The state. */
async function proveLost(file: RamFile, ...errors: number[]): Promise<{ missing: number }> {
  const { phase, missing = 0, error = 0 } = await file.figures(`await link 0 ${LOSS_MS}`);
  assert.equal(phase, PHASE.running);
  assert.ok(errors.includes(error), `${error}`);
  return { missing };
}

/** What the kernel of `host` has said that is more than information. Soft-RoCE warns of every READ that is refused. */
async function warnings(host: LabHost): Promise<string[]> {
  const said = await host.ask("dmesg --notime --level=emerg,alert,crit,err,warn");
  return said.split("\n").filter((line) => !line.startsWith("rxe0: "));
}

/** Objects of RDMA. */
function resources(host: LabHost): Promise<string> {
  return host.ask("rdma resource show");
}

interface Refusal {
  demand: Conduct;
  prefetch?: Conduct;
  error: string;
  /** It says nothing: that it does not is known only after a while. */
  silent?: true;
}

const REFUSALS: readonly Refusal[] = [
  { demand: "ignore", error: "ETIMEDOUT", silent: true },
  { demand: "serve", prefetch: "ignore", error: "ETIMEDOUT", silent: true },
  // The time is that of both together.
  { demand: "slow", prefetch: "ignore", error: "ETIMEDOUT", silent: true },
  { demand: "reject", error: "ECONNREFUSED" },
  { demand: "serve", prefetch: "reject", error: "ECONNREFUSED" },
  { demand: "no-reads", prefetch: "serve", error: "EPROTO" },
  { demand: "serve", prefetch: "no-reads", error: "EPROTO" },
  { demand: "hang-up", prefetch: "serve", error: "ECONNRESET" },
];

/** An import that does not come about leaves nothing; the same file's next is whole. */
async function proveRefusals(lab: Lab): Promise<void> {
  const host = lab.host(2);
  const [said, held] = [await warnings(host), await resources(host)];
  const file = await make(lab, "refused");
  for (const { demand, prefetch, error, silent } of REFUSALS) {
    const what = `${demand} ${prefetch ?? demand}`;
    await using source = await FalseSource.listen(lab, demand, prefetch);
    const start = performance.now();
    await file.refuses(source.order(WAIT_MS), error);
    const tookMs = performance.now() - start;
    assert.ok(tookMs < SLACK_MS + (silent ? WAIT_MS : 0), `${what}: ${tookMs} ms`);
    assert.equal((await file.figures("state")).phase, PHASE.none, what);
    assert.equal(await resources(host), held, what);
  }
  {
    // The control: nothing but its conduct was in the way.
    await using source = await FalseSource.listen(lab, "serve");
    await begin(file, source);
    await file.do("run");
    await proveComplete(file, PAGES);
    assert.equal(await right(file, "all", STAMP), PAGES);
  }
  await file.remove();
  assert.deepEqual(await warnings(host), said);
}

/** Whoever waits for a source that says nothing can be killed, and so can who waits for those. */
async function proveKillable(lab: Lab): Promise<void> {
  await using source = await FalseSource.listen(lab, "ignore");
  const file = await make(lab, "killed");
  const watcher = await file.another("watcher");
  const waits = file.try(source.order(600_000));
  await pause(500);
  const asks = watcher.try("state");
  await pause(500);
  const start = performance.now();
  await watcher.kill();
  assert.equal((await asks).stdout, "");
  await file.kill();
  assert.equal((await waits).stdout, "");
  assert.ok(performance.now() - start < 5_000, "they were not killed at once");
  await file.host.ask(`rm ${file.path}`);
}

/** READs that nobody answers: who waits for them can be killed or told that they never come, and what is asked anew is whole. */
async function proveSilence(lab: Lab): Promise<void> {
  const truth = await join(lab, { pages: PAGES, name: "true" });
  await using source = await FalseSource.listen(lab, "serve");
  const file = await make(lab, "silent");
  const [victim, waiter] = [await file.another("victim"), await file.another("waiter")];
  await begin(file, source);
  await file.do("prefetch off 0 0 0");
  await source.turn("SIGHUP", "silent");
  await file.do("run");
  const touches = [victim.try(`check 0 ${STAMP}`), right(waiter, "1", STAMP)] as const;
  await until(async () => (await file.figures("stats")).demand_reads === 2, () => "nobody touches");
  await victim.kill();
  assert.equal((await touches[0]).stdout, "");
  assert.equal((await file.figures("state")).link, 1, "it was the loss that let it go");

  assert.equal((await proveLost(file, ECONNRESET)).missing, PAGES);
  assert.equal(await file.do("present"), "none");
  await goOn(file, truth);
  assert.equal(await touches[1], 1);
  await proveComplete(file, PAGES);
  assert.equal(await right(file, "all", STAMP), PAGES);
  await waiter.close();
  await removeAll(file, truth.source, truth.destination);
}

/** As above, but nobody has another source. */
async function proveAbandon(lab: Lab): Promise<void> {
  await using source = await FalseSource.listen(lab, "serve");
  const file = await make(lab, "abandoned");
  const [guest, watcher] = [await file.another("guest"), await file.another("watcher")];
  await file.host.ask("echo 1 >/proc/sys/kernel/print-fatal-signals");
  await begin(file, source);
  await file.do("prefetch off 0 0 0");
  await source.turn("SIGHUP", "silent");
  await file.do("run");
  const touch = guest.try(`check 0 ${STAMP}`);
  await until(async () => (await file.figures("stats")).demand_reads === 1, () => "nobody touches");
  await watcher.do("abandon");
  assert.equal((await touch).stdout, "");
  await guest.close();
  assert.match(await file.host.dmesg(), /potentially unexpected fatal signal 7\./);
  await file.refuses(`pread 0-7 ${STAMP}`, "EIO");
  assert.equal(await file.do("present"), "none");
  await watcher.close();
  await file.remove();
}

interface Change {
  name: string;
  signal: "SIGUSR1" | "SIGUSR2";
  words: string;
  error: number;
}

const CHANGES: readonly Change[] = [
  { name: "gone", signal: "SIGUSR1", words: "hung up", error: ECONNRESET },
  { name: "keyless", signal: "SIGUSR2", words: "no keys", error: EREMOTEIO },
];

/** A source that serves until it changes its mind: what it has sent stays, and the rest, no more, is asked of a true one. */
async function proveRest(lab: Lab, { name, signal, words, error }: Change): Promise<void> {
  const truth = await join(lab, { pages: PAGES, name: `true-${name}` });
  await using source = await FalseSource.listen(lab, "serve", "serve", FALSE_STAMP);
  const file = await make(lab, name);
  await begin(file, source);
  await file.do(`prefetch on 8 0 ${1 << 20}`);
  await file.do("run");
  await until(async () => ((await file.figures("state")).missing ?? 0) < PAGES - 100, () => "no page came");
  await source.turn(signal, words);
  const { missing } = await proveLost(file, error);
  assert.ok(missing > 0, "all had come");
  const came = await file.do("present");
  assert.equal(await right(file, came, FALSE_STAMP), PAGES - missing);
  await goOn(file, truth);
  await proveComplete(file, PAGES);
  // By their stamps: whose they are.
  assert.equal(await right(file, came, FALSE_STAMP), PAGES - missing);
  assert.equal(await right(file, "all", STAMP), missing);
  await removeAll(file, truth.source, truth.destination);
}

const STORM: readonly [Conduct, Conduct][] = [["hang-up", "hang-up"], ["serve", "hang-up"], ["hang-up", "serve"]];
/** The first part makes the kernel have what it takes of its own accord. */
const PARTS = 4;
/** What grows by chance in few parts does not in many; what leaks does. */
const MOST_PARTS = 8;
const TIMES = 10;

/** Resumes from a source that hangs up at once, again and again; there is no link after it. */
async function storm(file: RamFile, source: FalseSource): Promise<void> {
  for (let time = 0; time < TIMES; time++) {
    const { stdout } = await file.try(source.order());
    assert.match(stdout, /^(?:error: ECONNRESET\n)?$/);
    // A READ may have been quicker, with a key of another source.
    await proveLost(file, ECONNRESET, EREMOTEIO);
  }
}

async function proveStorm(lab: Lab): Promise<void> {
  const host = lab.host(2);
  const said = await warnings(host);
  const truth = await join(lab, { pages: PAGES, name: "true" });
  const file = await make(lab, "storm");
  {
    await using source = await FalseSource.listen(lab, "serve");
    await begin(file, source);
    await source.turn("SIGUSR1", "hung up");
    await file.do("run");
    await proveLost(file, ECONNRESET);
  }
  const sources = await Promise.all(STORM.map((conducts) => FalseSource.listen(lab, ...conducts)));
  const counts: Count[] = [];
  const found = () => leaks(counts.slice(1), TIMES);
  while (counts.length < PARTS || (counts.length < MOST_PARTS && found().length > 0)) {
    for (const source of sources) await storm(file, source);
    // What the connection manager keeps of a connection for a while.
    await pause(2_000);
    counts.push(await count(host));
  }
  assert.deepEqual(found(), []);
  for (const source of sources) await source[Symbol.asyncDispose]();
  assert.equal((await file.figures("state")).missing, PAGES);
  await goOn(file, truth);
  await proveComplete(file, PAGES);
  assert.equal(await right(file, "all", STAMP), PAGES);
  await removeAll(file, truth.source, truth.destination);
  assert.deepEqual(await warnings(host), said);
}

for (const kernel of KERNELS) {
  labTest(
    "a source that answers no request, refuses or hangs up ends an import in time",
    { kernel, ...LAB },
    async (lab) => {
      await proveRefusals(lab);
      await proveKillable(lab);
    },
  );

  labTest(
    "a source that answers no READ keeps nobody who is killed, and pauses the import",
    { kernel, ...LAB },
    async (lab) => {
      await proveSilence(lab);
      await proveAbandon(lab);
    },
  );

  labTest(
    "what a source has sent before it went stays, and a true one sends the rest",
    { kernel, ...LAB },
    async (lab) => {
      for (const change of CHANGES) await proveRest(lab, change);
    },
  );

  labTest("a source that hangs up again and again leaves nothing behind", { kernel, ...LAB }, proveStorm);
}
