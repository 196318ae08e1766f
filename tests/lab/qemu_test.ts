/**
 * A whole Linux guest of stock QEMU, with nested KVM, moves between the hosts by the kernel pager over soft-RoCE: its RAM
 * is in gygesfs, and nothing of QEMU knows.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import type { Summary } from "../../lib/events.ts";
import { GuestConsole } from "../qemu/console.ts";
import { consoleArguments, linuxGuest } from "../qemu/guest.ts";
import { GygesHost } from "./gyges_host.ts";
import type { LabHost } from "./host.ts";
import { type KernelVersion, type Lab, labTest } from "./lab.ts";

const OPTIONS = { rdma: true, gyges: true, memory: "1500M" } as const;
const GUEST = { memory: "160M", workingSet: "24M", rate: 1500 } as const;
const LOG = "/tmp/guest.console";
const PATIENCE_MS = 120_000;
const MIRROR_MS = 250;

/** The guest's arguments, with its kernel where the hosts see it. */
async function argumentsIn(lab: Lab): Promise<string[]> {
  const { args } = await linuxGuest(GUEST);
  const moved = await Promise.all(args.map(async (arg, i) => {
    if (args[i - 1] === "-accel") return "kvm";
    if (args[i - 1] === "-cpu") return "host";
    if (args[i - 1] !== "-kernel" && args[i - 1] !== "-initrd") return arg;
    const name = (args[i - 1] ?? "").slice(1);
    await Deno.copyFile(arg, join(lab.folder, "share", name));
    return `/run/lab/share/${name}`;
  }));
  return ["qemu-system-x86_64", ...moved, ...consoleArguments(LOG)];
}

/** Its console at `host`, here. */
class Mirror implements AsyncDisposable {
  readonly path: string;
  readonly #host: LabHost;
  readonly #over = new AbortController();
  readonly #copying: Promise<void>;

  constructor(lab: Lab, host: LabHost) {
    this.path = join(lab.folder, `${host.name}.guest`);
    this.#host = host;
    this.#copying = this.#copy();
  }

  async #copy(): Promise<void> {
    while (!this.#over.signal.aborted) {
      await this.once();
      await pause(MIRROR_MS);
    }
  }

  async once(): Promise<void> {
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

interface Place {
  gyges: GygesHost;
  mirror: Mirror;
}

/** One move a kernel, since each takes a minute: what is left to the other is moved by hand. */
const MOVES: readonly [kernel: KernelVersion, args: string[]][] = [
  ["6.1", ["--mode", "full"]],
  ["6.12", ["--mode", "hybrid", "--precopy-timeout", "5s"]],
];

for (const [kernel, args] of MOVES) {
  labTest(`a Linux guest of stock QEMU moves by the kernel pager: ${args[1]}`, { kernel, ...OPTIONS }, async (lab) => {
    const command = await argumentsIn(lab);
    const [one, two] = [lab.host(1), lab.host(2)];
    await using home = new Mirror(lab, one);
    await using away = new Mirror(lab, two);
    const [here, there] = [new GygesHost(one), new GygesHost(two)];
    const run = here.start(["run", "home", "--pager", "kernel", "--", ...command]);
    await run.waitFor("guest");
    using console = new GuestConsole(home.path);
    await console.untilStarted(PATIENCE_MS);

    const prepare = there.start(["prepare", "away", "--listen", `${two.address}:7000`, "--", ...command]);
    const { ticket } = await prepare.waitFor("ticket");
    const migrate = here.start(["migrate", ticket, "--vm", "home", ...args]);
    await migrate.endedWith(0, PATIENCE_MS);
    await run.endedWith(0);
    const summary = await migrate.waitFor("summary");
    await home.once();
    console.moveTo(away.path);
    await console.untilAllChecked(PATIENCE_MS);
    console.failIfCorrupt();
    assert.deepEqual([summary.pager, summary.transport, summary.duplicate_pages], ["kernel", "rdma", 0]);
    assert.ok(summary.postcopy_pages > 0);
    say(kernel, summary);
    await there.start(["vm", "stop", "away"]).endedWith(0, PATIENCE_MS);
    await prepare.endedWith(0);
  });
}

function say(kernel: KernelVersion, summary: Summary): void {
  const { mode, downtime_ns, total_ns, demand_faults, precopy_pages, postcopy_pages } = summary;
  const ms = (ns: number) => `${(ns / 1e6).toFixed(0)} ms`;
  globalThis.console.log(
    `lab: ${kernel}, QEMU, ${mode}: downtime ${ms(downtime_ns)}, total ${ms(total_ns)}, ` +
      `${precopy_pages} + ${postcopy_pages} pages, ${demand_faults} faults (emulated)`,
  );
}
