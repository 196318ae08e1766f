/**
 * A whole Linux guest of stock QEMU, with nested KVM, moves between the hosts by the kernel pager over soft-RoCE: its RAM
 * is in gygesfs, and nothing of QEMU knows.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { Sample, Summary } from "../../lib/events.ts";
import type { PagerKind } from "../../lib/options.ts";
import type { GygesProcess } from "../helpers/gyges_process.ts";
import { until } from "../helpers/host.ts";
import { GuestConsole } from "../qemu/console.ts";
import { consoleArguments, linuxGuest, type LinuxGuestOptions } from "../qemu/guest.ts";
import { longestRun } from "../qemu/stamps.ts";
import { tool } from "./cache.ts";
import { GygesHost, type LabStartOptions } from "./gyges_host.ts";
import type { LabHost } from "./host.ts";
import { KERNELS, type KernelVersion, type Lab, labTest } from "./lab.ts";

const OPTIONS = { rdma: true, gyges: true, memory: "1500M" } as const;
/** QEMU's own network has a neighbour that answers pings. */
const GUEST = { memory: "160M", workingSet: "24M", rate: 1500, network: "user" } as const;
/** What another process reads at a time: soon done, so that there is something left for the rest of the test. */
const MAPPED_PAGES = 1000;
const LOG = "/tmp/guest.console";
const SHIM = fileURLToPath(new URL("../../c-shim", import.meta.url));
/** A host's one QEMU that gyges has started, for pgrep. */
const QEMU = "[q]emu-system.*gyges-monitor";
const PATIENCE_MS = 120_000;
const MIRROR_MS = 250;
/** As a shell tells of SIGKILL. */
const KILLED = 137;

/** The guest's arguments, with its kernel where the hosts see it. */
async function argumentsIn(lab: Lab, more: LinuxGuestOptions): Promise<string[]> {
  const { args } = await linuxGuest({ ...GUEST, ...more });
  const moved = await Promise.all(args.map(async (arg, i) => {
    if (args[i - 1] === "-accel") return "kvm";
    if (args[i - 1] === "-cpu") return "host";
    if (args[i - 1] !== "-kernel" && args[i - 1] !== "-initrd") return arg;
    return await lab.share(arg);
  }));
  return ["qemu-system-x86_64", ...moved, ...consoleArguments(LOG)];
}

/** Its console at `host`, here. */
class Mirror implements AsyncDisposable {
  readonly path: string;
  readonly #host: LabHost;
  readonly #over = new AbortController();
  readonly #copying: Promise<void>;
  /** One at a time: they write the same file. */
  #last: Promise<void> = Promise.resolve();

  private constructor(path: string, host: LabHost) {
    this.path = path;
    this.#host = host;
    this.#copying = this.#copy();
  }

  /** The hosts may have had another guest, whose console the next one's would be added to. */
  static async of(lab: Lab, host: LabHost): Promise<Mirror> {
    const path = join(lab.folder, `${host.name}.guest`);
    await host.ask(`rm -f ${LOG}`);
    await Deno.writeTextFile(path, "");
    return new Mirror(path, host);
  }

  async #copy(): Promise<void> {
    while (!this.#over.signal.aborted) {
      await this.once();
      await pause(MIRROR_MS);
    }
  }

  /** Resolves once all is here that had been said before. */
  once(): Promise<void> {
    return this.#last = this.#last.then(() => this.#fetch());
  }

  async #fetch(): Promise<void> {
    const { stdout } = await this.#host.run(`cat ${LOG} 2>/dev/null`);
    const before = `${this.path}.new`;
    await Deno.writeTextFile(before, stdout);
    await Deno.rename(before, this.path);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#over.abort();
    await this.#copying;
  }
}

/** A guest that beats in host 1, and the way to host 2. */
interface Stage {
  command: readonly string[];
  here: GygesHost;
  there: GygesHost;
  run: GygesProcess;
  /** Its consoles, and what has been said on all of them. */
  home: Mirror;
  away: Mirror;
  console: GuestConsole;
}

interface StageOptions extends LabStartOptions {
  /** @default "kernel" */
  pager?: PagerKind;
  /** Other than GUEST's. */
  guest?: LinuxGuestOptions;
  /** More of QEMU's arguments in host 1. */
  extra?: readonly string[];
}

async function withGuest(lab: Lab, options: StageOptions, body: (stage: Stage) => Promise<void>): Promise<void> {
  const { pager = "kernel", guest = {}, extra = [] } = options;
  const command = await argumentsIn(lab, guest);
  const [one, two] = [lab.host(1), lab.host(2)];
  await using home = await Mirror.of(lab, one);
  await using away = await Mirror.of(lab, two);
  const [here, there] = [new GygesHost(one), new GygesHost(two)];
  const run = here.start(["run", "home", "--pager", pager, "--", ...command, ...extra], options);
  await run.waitFor("guest");
  using console = new GuestConsole(home.path);
  await console.untilStarted(PATIENCE_MS);
  await body({ command, here, there, run, home, away, console });
}

/** The guest goes on where `to` mirrors it, is answered there, and has found all of its memory right. */
async function proveArrived(console: GuestConsole, from: Mirror, to: Mirror): Promise<void> {
  await from.once();
  console.moveTo(to.path);
  const before = console.last?.net ?? 0;
  await console.untilAllChecked(PATIENCE_MS);
  await console.untilBeat("pings are answered", ({ net }) => net > before + 10, PATIENCE_MS);
  console.failIfCorrupt();
}

/** Moves the guest `vm`, which `holder` has at `host`, to the process `prepare`; proved there. Its account. */
async function moveAndProve(
  { kernel, console }: { kernel: KernelVersion; console: GuestConsole },
  { host, holder, vm, mirror }: { host: GygesHost; holder: GygesProcess; vm: string; mirror: Mirror },
  to: { prepare: GygesProcess; mirror: Mirror },
  args: readonly string[],
): Promise<Summary> {
  const { ticket } = await to.prepare.waitFor("ticket");
  const migrate = host.start(["migrate", ticket, "--vm", vm, ...args]);
  await Promise.all([migrate.endedWith(0, PATIENCE_MS), holder.endedWith(0)]);
  const summary = await migrate.waitFor("summary");
  await proveArrived(console, mirror, to.mirror);
  say(kernel, summary);
  return summary;
}

/** Ends the guest `name`, which `holder` has at `host`. */
async function endGuest(host: GygesHost, name: string, holder: GygesProcess): Promise<void> {
  await host.start(["vm", "stop", name]).endedWith(0, PATIENCE_MS);
  await holder.endedWith(0);
}

for (const kernel of KERNELS) {
  labTest("a Linux guest of stock QEMU moves by the kernel pager in full mode, and back in hybrid mode", {
    kernel,
    ...OPTIONS,
  }, async (lab) => {
    await withGuest(lab, {}, async ({ command, here, there, run, home, away, console }) => {
      const what = { kernel, console };
      const prepare = there.start(["prepare", "away", "--listen", `${lab.host(2).address}:0`, "--", ...command]);
      const source = { host: here, holder: run, vm: "home", mirror: home };
      const full = await moveAndProve(what, source, { prepare, mirror: away }, ["--mode", "full"]);

      const back = here.start(["prepare", "back", "--listen", `${lab.host(1).address}:0`, "--", ...command]);
      const args = ["--mode", "hybrid", "--precopy-timeout", "5s"];
      const turned = { host: there, holder: prepare, vm: "away", mirror: away };
      const hybrid = await moveAndProve(what, turned, { prepare: back, mirror: home }, args);
      for (const { pager, transport, duplicate_pages, postcopy_pages } of [full, hybrid]) {
        assert.deepEqual([pager, transport, duplicate_pages], ["kernel", "rdma", 0]);
        assert.ok(postcopy_pages > 0);
      }
      assert.deepEqual([full.precopy_rounds, hybrid.precopy_rounds > 0], [0, true]);
      await endGuest(here, "back", back);
    });
  });
}

/** A monitor that takes a line from PIPE.in. */
const PIPE = "/tmp/monitor";
const MONITOR = ["-chardev", `pipe,id=pipe,path=${PIPE}`, "-mon", "chardev=pipe"];
const BALLOONED = { pager: "user", guest: { balloon: "romfile=" }, extra: MONITOR } as const;
/** Between two orders to the balloon. */
const ORDER_MS = 3000;
const HYBRID = ["--transport", "rdma", "--mode", "hybrid", "--precopy-timeout"];

/** Has the guest take all of its memory back from its balloon, which may be on its way to the last order still. */
async function deflate(host: LabHost): Promise<void> {
  const order = `echo balloon ${parseInt(GUEST.memory)} >${PIPE}.in; echo info balloon >${PIPE}.in`;
  let words = "";
  const isEmpty = async () => {
    words = await host.ask(`${order}; timeout 1 cat ${PIPE}.out || true`);
    return new RegExp(`actual=${parseInt(GUEST.memory)}\\b`).test(words);
  };
  await until(isEmpty, () => `the monitor says ${words}`, PATIENCE_MS);
}

/** For good: not even root may trace anybody any more. What else is in this file needs no tracing. */
const NO_TRACING = "echo 3 >/proc/sys/kernel/yama/ptrace_scope";

labTest("a Linux guest moves by the user pager over RDMA where nobody may trace, not while its balloon takes memory", {
  kernel: "6.12",
  ...OPTIONS,
}, async (lab) => {
  const [one, two] = [lab.host(1), lab.host(2)];
  for (const host of lab.hosts) await host.ask(NO_TRACING);
  await one.ask(`rm -f ${PIPE}.*; mkfifo ${PIPE}.in ${PIPE}.out`);
  await withGuest(lab, BALLOONED, async ({ command, here, there, run, home, away, console }) => {
    const [first, second] = ["first", "second"].map((name) =>
      there.start(["prepare", name, "--pager", "user", "--listen", `${two.address}:0`, "--", ...command])
    );
    assert.ok(first && second);
    const { ticket: unlucky } = await first.waitFor("ticket");
    // Slowly, as commands to a busy host are slow.
    const fails = here.start(["migrate", unlucky, "--vm", "home", ...HYBRID, "90s", "--bandwidth", "24Mbit"]);
    await fails.waitFor("sample", ({ state, pulled_pages }) => state === "precopy" && pulled_pages > 0);
    // Again and again: the guest may not have its balloon yet.
    for (let mib = 140; fails.running; mib = 290 - mib) {
      await one.ask(`echo balloon ${mib} >${PIPE}.in`);
      await pause(ORDER_MS);
    }
    const { events } = await fails.endedWith(10);
    const error = events.at(-1);
    assert.ok(error?.type === "error");
    assert.match(error.message, /was given back to the host.*The guest runs at the source/);
    await deflate(one);
    await console.untilAllChecked(PATIENCE_MS);
    console.failIfCorrupt();

    const source = { host: here, holder: run, vm: "home", mirror: home };
    const to = { prepare: second, mirror: away };
    const summary = await moveAndProve({ kernel: "6.12", console }, source, to, [...HYBRID, "5s"]);
    await endGuest(there, "second", second);
    assert.deepEqual([summary.pager, summary.transport, summary.duplicate_pages], ["user", "rdma", 0]);
  });
});

/** Older than asynchronous write protection. */
const OLD = "6.1";

labTest("a Linux guest moves by the user pager where writes are known by soft-dirty bits only; a lost one is found", {
  kernel: OLD,
  ...OPTIONS,
}, async (lab) => {
  // What the machine's own kernel cannot show: marks that are lost and writes that are not; a page table read word by word.
  for (const name of ["soft_dirty_test", "hold_test"]) {
    const program = `build/tests/${name}`;
    await tool("make", ["-s", "-C", SHIM, program]);
    const path = await lab.share(join(SHIM, program));
    assert.match(await lab.host(1).ask(path), new RegExp(`^${name}: passed$`, "m"));
  }
  const guest = { workingSet: "8M", rate: 1500 };
  await withGuest(lab, { pager: "user", guest }, async (stage) => {
    const { run, console } = stage;
    const first = await moveBySoftDirty(lab, stage, { to: 2, name: "away", transport: "rdma" }, ["--vm", "home"]);
    await Promise.all([first.migrate.endedWith(0, PATIENCE_MS), run.endedWith(0)]);
    await first.proved();
    const second = await moveBySoftDirty(lab, stage, { to: 1, name: "back", transport: "tcp" }, ["--vm", "away"]);
    await Promise.all([second.migrate.endedWith(0, PATIENCE_MS), first.prepare.endedWith(0)]);
    await second.proved();

    // Control: the last write to some pages is left out, by a process that has this fault armed, and so holds no guest yet.
    second.prepare.signal("SIGKILL");
    await second.prepare.endedWith(KILLED);
    const host = lab.host(1);
    const stamps = await host.ask(`${await lab.program("mapper")} list $(pgrep -f '${QEMU}')`);
    const { first: page, pages } = longestRun(stamps.trim().split("\n").map((line) => Number(line.split(" ")[0])));
    assert.ok(pages > 500, `the longest run of stamped pages has ${pages}`);
    const env = { GYGES_INJECT: `skip-dirty@${page}+${pages}` };
    const from = ["--qmp", "/run/gyges/back/qmp.sock", "--vm", "again"];
    // Pre-copy ends with its first round, which is long: a guest in a busy emulation may write hardly a page in the last of many.
    const soon = ["--switch-threshold", "30s"];
    const third = await moveBySoftDirty(lab, stage, { to: 2, name: "last", transport: "rdma", env }, [
      ...from,
      ...soon,
    ]);
    await third.migrate.endedWith(0, PATIENCE_MS);
    console.moveTo(stage.away.path);
    // It would be long in coming to the page, but before it powers off it looks at all.
    await stage.there.start(["vm", "stop", "last"]).ended();
    await console.untilEnded(PATIENCE_MS);
    assert.match(console.corruptions[0] ?? "", /stale$/);
    await third.prepare.ended();
  });
});

/** Begins a move in hybrid mode that is known by soft-dirty bits, and says so. */
async function moveBySoftDirty(
  lab: Lab,
  { command, here, there, home, away, console }: Stage,
  { to, name, transport, ...options }: LabStartOptions & { to: 1 | 2; name: string; transport: "rdma" | "tcp" },
  source: readonly string[],
): Promise<{ prepare: GygesProcess; migrate: GygesProcess; proved: () => Promise<void> }> {
  const [from, into] = to === 2 ? [here, there] : [there, here];
  const where = ["--pager", "user", "--listen", `${lab.host(to).address}:0`];
  const prepare = into.start(["prepare", name, ...where, "--", ...command]);
  const { ticket } = await prepare.waitFor("ticket");
  const how = ["--transport", transport, "--mode", "hybrid", "--precopy-timeout", "40s"];
  const migrate = from.start(["migrate", ticket, ...source, ...how], options);
  await migrate.waitFor("note", ({ detail }) => detail.startsWith("Writes are tracked by soft-dirty bits"));
  const proved = async () => {
    await (to === 2 ? proveArrived(console, home, away) : proveArrived(console, away, home));
    const summary = await migrate.waitFor("summary");
    say(OLD, summary);
    const link = transport === "tcp" ? "tls" : transport;
    assert.deepEqual([summary.pager, summary.transport, summary.duplicate_pages], ["user", link, 0]);
    // Were all pages taken for written, all would come again after the switch.
    assert.ok(summary.precopy_rounds > 0 && summary.precopy_pages > 2 * summary.postcopy_pages);
  };
  return { prepare, migrate, proved };
}

/** Memory that is still to come when a process is killed. */
const SLOW = ["--mode", "full", "--bandwidth", "16Mbit"];
const SOON = { env: { GYGES_RECONNECT_S: "2" } };
/** Later than all pages have come. */
const LATE = { env: { GYGES_RECONNECT_S: "90" } };

labTest("gyges dies at the destination, then at the source, and a guest moves all the same; others map its RAM", {
  kernel: "6.12",
  ...OPTIONS,
}, async (lab) => {
  await withGuest(lab, LATE, async ({ command, here, there, run, home, away, console }) => {
    const [one, two] = [lab.host(1), lab.host(2)];
    const mapper = await lab.program("mapper");
    const stamps = await stampedPages(lab, one, mapper);
    const prepare = there.start(["prepare", "away", "--listen", `${two.address}:0`, "--", ...command]);
    const { ticket } = await prepare.waitFor("ticket");
    const migrate = here.start(["migrate", ticket, "--vm", "home", ...SLOW]);
    await Promise.all([migrate.reached("serving"), prepare.reached("running")]);
    await proveMapped(two, mapper, stamps, 0);
    prepare.signal("SIGKILL");
    await prepare.endedWith(KILLED);
    // Its kernel still brings what is touched.
    await proveMapped(two, mapper, stamps, MAPPED_PAGES);
    // Beside a guest, a command may take longer in an emulated host than all that is left to come.
    const orphan = await there.sample("away");
    assert.equal(orphan.state, orphan.missing_pages > 0 ? "running" : "completed");
    await untilWhole(there, "away", orphan);
    await proveArrived(console, home, away);
    // Its source hears of the end from the destination's kernel.
    await migrate.endedWith(0, PATIENCE_MS);
    await run.endedWith(0);
    const { postcopy_pages } = await migrate.waitFor("summary");
    assert.equal(postcopy_pages, orphan.pulled_pages + orphan.missing_pages);

    // Nobody of Gyges holds it now, so it moves by its monitor.
    const back = here.start(["prepare", "back", "--listen", `${one.address}:0`, "--", ...command], SOON);
    const { ticket: another } = await back.waitFor("ticket");
    const monitor = "/run/gyges/away/qmp.sock";
    const again = there.start(["migrate", another, "--qmp", monitor, "--vm", "again", ...SLOW]);
    await Promise.all([again.reached("serving"), back.reached("running")]);
    again.signal("SIGKILL");
    await again.endedWith(KILLED);
    const summary = await back.waitFor("summary");
    const readOn = back.events.some((event) => event.type === "note" && /says nothing any more/.test(event.detail));
    assert.ok(readOn, "nothing was left to come");
    assert.deepEqual([summary.duplicate_pages, back.states.includes("paused")], [0, false]);
    await proveArrived(console, away, home);
    await endQemu(two);
    await endGuest(here, "back", back);
  });
});

/** Enough is left when the first commands after the switch have ended. */
const LONG = ["--mode", "full", "--bandwidth", "48Mbit"];

labTest("the source's gyges dies whose pages went by RDMA from user space, and another serves them over TCP", {
  kernel: "6.12",
  ...OPTIONS,
}, async (lab) => {
  const guest = { workingSet: "8M", rate: 1500 };
  await withGuest(lab, { pager: "user", guest }, async ({ command, here, there, run, home, away, console }) => {
    const where = ["--pager", "user", "--listen", `${lab.host(2).address}:0`];
    const prepare = there.start(["prepare", "away", ...where, "--", ...command]);
    const { ticket } = await prepare.waitFor("ticket");
    const migrate = here.start(["migrate", ticket, "--vm", "home", "--transport", "rdma", ...LONG]);
    await Promise.all([migrate.reached("serving"), prepare.reached("running")]);
    run.signal("SIGKILL");
    await run.endedWith(KILLED);
    await Promise.all([migrate.ended(), prepare.reached("paused")]);
    const attach = here.start(["attach", "home"]);
    await attach.endedWith(0, PATIENCE_MS);
    await proveArrived(console, home, away);
    const summary = await prepare.waitFor("summary");
    say("6.12", summary);
    assert.deepEqual([summary.pager, summary.transport, summary.duplicate_pages], ["user", "tls", 0]);
    assert.ok(attach.states.includes("serving") && prepare.states.filter((state) => state === "running").length === 2);
    await endGuest(there, "away", prepare);
  });
});

/** A file, for both hosts, of where the guest in `host` has stamped pages. */
async function stampedPages(lab: Lab, host: LabHost, mapper: string): Promise<string> {
  const list = await host.ask(`${mapper} list $(pgrep -f '${QEMU}')`, { timeoutMs: PATIENCE_MS });
  const path = await Deno.makeTempFile({ dir: lab.folder, prefix: "stamps-" });
  await Deno.writeTextFile(path, list);
  return await lab.share(path);
}

/** A process that maps the guest's RAM as well, and touches pages that are still to come, has them as the guest has. */
async function proveMapped(host: LabHost, mapper: string, stamps: string, first: number): Promise<void> {
  const command = `${mapper} read $(pgrep -f '${QEMU}') ${stamps} ${first} ${MAPPED_PAGES}`;
  const words = await host.ask(command, { timeoutMs: PATIENCE_MS });
  globalThis.console.log(`lab: mapped by another process: ${words.trim()}`);
  const found = Object.fromEntries([...words.matchAll(/(\w+)=(\d+)/g)].map(([, key, value]) => [key, Number(value)]));
  const { absent = 0, whole = 0, stale, zero, torn } = found;
  assert.deepEqual([stale, zero, torn], [0, 0, 0], "what another process reads is not the guest's");
  assert.ok(absent > 0, "every page had come before it was read");
  assert.ok(whole > MAPPED_PAGES * 0.9, "the guest has its pages somewhere else by now");
}

/** Every page has come to the guest of `name`, which nobody of Gyges holds, and each once. */
async function untilWhole(host: GygesHost, name: string, before: Sample): Promise<void> {
  let now = before;
  const isWhole = async () => (now = await host.sample(name)).state === "completed";
  await until(isWhole, () => JSON.stringify(now), PATIENCE_MS);
  assert.equal(now.missing_pages, 0);
  assert.equal(now.pulled_pages, before.pulled_pages + before.missing_pages);
}

/** Ends the QEMU of a guest that nobody of Gyges holds. */
async function endQemu(host: LabHost): Promise<void> {
  await host.ask(`pkill -KILL -f '${QEMU}'`);
}

function say(kernel: KernelVersion, summary: Summary): void {
  const { mode, downtime_ns, total_ns, demand_faults, precopy_pages, postcopy_pages } = summary;
  const ms = (ns: number) => `${(ns / 1e6).toFixed(0)} ms`;
  globalThis.console.log(
    `lab: ${kernel}, QEMU, ${mode}: downtime ${ms(downtime_ns)}, total ${ms(total_ns)}, ` +
      `${precopy_pages} + ${postcopy_pages} pages, ${demand_faults} faults (emulated)`,
  );
}
