/**
 * The lab: one or two emulated hosts with Debian's kernels, nested KVM and soft-RoCE, and the build machine's own programs
 * in them. `await using lab = await Lab.boot({ kernel: "6.1", hosts: 2 })`; at its end the hosts' kernel logs are read,
 * and anything in them that a healthy kernel does not say fails the test.
 */
import assert from "node:assert/strict";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { exists, tool } from "./cache.ts";
import { addressOf, LabHost } from "./host.ts";
import { image } from "./image.ts";
import { gygesModule, hostProgram, loadGyges, unloadGyges } from "./module.ts";
import type { KernelVersion } from "./packages.ts";

export type { LabHost, RunResult } from "./host.ts";
export type { KernelVersion } from "./packages.ts";

/** Every kernel that there is a lab for. */
export const KERNELS: readonly KernelVersion[] = ["6.1", "6.12"];

export interface LabOptions {
  kernel: KernelVersion;
  /** @default 2 */
  hosts?: 1 | 2;
  /** A soft-RoCE device rxe0 in each host. @default false */
  rdma?: boolean;
  /** Modules to load, in order, by their paths on the build machine. @default none */
  modules?: readonly string[];
  /** gyges.ko, built from kernel/, in each host, and its file system at /run/gyges/ram. @default false */
  gyges?: boolean;
  /**
   * With more than one, QEMU's emulation now and then runs an instruction that the kernel is just rewriting (static keys,
   * tracepoints), and a host panics ("Oops: int3") or hangs. @default 1
   */
  vcpus?: number;
  /** Of each host. @default "1G" */
  memory?: string;
}

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
/** Of a lab's folder, before the process that it belongs to. */
const PREFIX = "gyges-lab-";
/** Where the consoles of failed runs are kept. */
const LOGS = join(ROOT, ".cache/lab-logs");

export class Lab implements AsyncDisposable {
  readonly hosts: readonly LabHost[];
  /** From QEMU's start until the last host took commands. */
  readonly bootMs: number;
  /** For as long as it lives: sockets, consoles, what the hosts see as /run/lab/share. */
  readonly folder: string;
  /** Where the consoles are after its end, if it failed. */
  keptLogs: string | null = null;
  /** The module that is in the hosts. */
  readonly #gyges: string | null;
  /** Names in the share, and what they were copied from. */
  readonly #shared = new Map<string, string>();
  #failed = false;

  private constructor(hosts: readonly LabHost[], folder: string, bootMs: number, gyges: string | null) {
    this.#gyges = gyges;
    this.hosts = hosts;
    this.folder = folder;
    this.bootMs = bootMs;
  }

  static async boot(options: LabOptions): Promise<Lab> {
    const { kernel, hosts: count = 2, rdma = false, gyges = false, modules = [], vcpus = 1, memory = "1G" } = options;
    const made = await image(kernel);
    const pager = gyges ? await gygesModule(kernel) : null;
    await removeDead();
    const folder = await Deno.makeTempDir({ prefix: `${PREFIX}${Deno.pid}-` });
    const share = join(folder, "share");
    await Deno.mkdir(share);
    // A copy, since a build may replace it under a running test.
    await Deno.copyFile(join(ROOT, "dist/gyges"), join(share, "gyges"));
    // Unpacked here once: under emulation that takes seconds.
    await tool(join(share, "gyges"), ["--version"], { env: { XDG_CACHE_HOME: join(share, "cache") } });
    for (const path of [...modules, ...(pager ? [pager] : [])]) await Deno.copyFile(path, join(share, basename(path)));
    const start = performance.now();
    const hosts = await bootAll(count, async (number) => {
      const console = join(folder, `host${number}.console`);
      const segment = `stream,id=n0,server=${number === 1 ? "on" : "off"},addr.type=unix,addr.path=${folder}/segment`;
      const netdev = count > 1 ? { netdev: segment } : {};
      return await LabHost.start({ number, image: made, folder, share, console, vcpus, memory, ...netdev });
    }).catch(async (cause) => {
      const kept = await keepLogs(folder);
      throw new Error(`The lab did not come up; consoles are in ${kept}`, { cause });
    });
    const lab = new Lab(hosts, folder, performance.now() - start, pager);
    try {
      if (count > 1) await lab.meet();
      for (const host of hosts) {
        if (rdma) await host.addRdma();
        for (const path of modules) await host.ask(`insmod /run/lab/share/${basename(path)}`);
        if (pager) await loadGyges(host, pager);
      }
      return lab;
    } catch (error) {
      await lab.fail();
      await lab[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Host `number`, from 1. */
  host(number: 1 | 2): LabHost {
    const host = this.hosts[number - 1];
    assert.ok(host, `the lab has no host ${number}`);
    return host;
  }

  /** Puts tests/lab/programs/NAME.c into the hosts; its path there. */
  async program(name: string): Promise<string> {
    return await this.share(await hostProgram(name), name);
  }

  /**
   * Puts the file `path` into the hosts as `name`; its path there. Another file needs another name: a host keeps what it
   * has read under one, and would have a guest boot what the one before it was given.
   */
  async share(path: string, name = basename(path)): Promise<string> {
    const known = this.#shared.get(name);
    assert.equal(path, known ?? path, `the hosts have another file as ${name}`);
    if (known === undefined) await Deno.copyFile(path, join(this.folder, "share", name));
    this.#shared.set(name, path);
    return `/run/lab/share/${name}`;
  }

  /** Cuts the link between the hosts: what is sent is lost, and both see it. */
  async cut(): Promise<void> {
    for (const host of this.hosts) await host.setLink(false);
  }

  async heal(): Promise<void> {
    for (const host of this.hosts) await host.setLink(true);
  }

  /** The sudden death of a host. */
  async kill(host: LabHost): Promise<void> {
    await host.kill();
  }

  /** No host has died. */
  get whole(): boolean {
    return this.hosts.every(({ alive }) => alive);
  }

  /**
   * The link is plugged in and carries nothing, between hosts that take commands: seen once, of QEMU 7.2. What failed on it
   * failed by what carries the packets in place of a wire.
   */
  async linkBroke(): Promise<boolean> {
    if (this.hosts.length < 2 || !this.whole) return false;
    for (const host of this.hosts) if (await host.ask("true").then(() => false, () => true)) return false;
    await this.heal();
    return await this.meet().then(() => false, () => true);
  }

  /** Soft-RoCE has failed in a host that takes commands, as it may where a link is cut: no move comes back by RDMA then. */
  async rdmaBroke(): Promise<boolean> {
    for (const host of this.hosts) if (await host.rdmaBroke().catch(() => false)) return true;
    return false;
  }

  /** Ends what a test has left running and makes all as it was after boot. What is wrong with the hosts, or nothing. */
  async renew(): Promise<string[]> {
    const trouble = await this.#unload();
    for (const host of this.hosts) trouble.push(...await host.trouble());
    if (trouble.length > 0) return trouble;
    // A lab of one host has no link.
    if (this.hosts.length > 1) {
      await this.heal();
      await this.meet();
      for (const host of this.hosts) await host.mendRdma();
    }
    for (const host of this.hosts) {
      host.said.length = 0;
      await host.ask("rm -rf /run/gyges");
      if (this.#gyges) await loadGyges(host, this.#gyges);
    }
    return [];
  }

  /**
   * Says that the test has failed, so that the consoles are kept, and with them what gyges has said in the hosts, what
   * they know of RDMA and what became of their packets.
   */
  async fail(): Promise<void> {
    this.#failed = true;
    for (const host of this.hosts) {
      await Deno.writeTextFile(join(this.folder, `${host.name}.said`), host.said.map((words) => words()).join("\n\n"));
    }
    for (const host of this.hosts.filter(({ alive }) => alive)) {
      const { stdout } = await host.run(LOOK, { timeoutMs: LOOK_MS }).catch((error) => ({ stdout: String(error) }));
      const queues = this.hosts.length > 1 ? await host.networkQueues().catch(String) : "";
      await Deno.writeTextFile(join(this.folder, `${host.name}.state`), stdout + queues);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const trouble = [...await this.#unload(), ...(await Promise.all(this.hosts.map((host) => host.dispose()))).flat()];
    if (this.#failed || trouble.length > 0) {
      this.keptLogs = await keepLogs(this.folder);
      console.log(`lab: consoles are kept in ${this.keptLogs}`);
    } else {
      await Deno.remove(this.folder, { recursive: true });
    }
    if (trouble.length > 0) throw new Error(`The lab's hosts are not well:\n${trouble.join("\n")}`);
  }

  /** What keeps the module from being unloaded once nothing of the test runs any more. */
  async #unload(): Promise<string[]> {
    const hosts = this.hosts.filter((host) => host.alive);
    return (await Promise.all(hosts.map(async (host) => {
      const trouble = await host.killAll();
      return this.#gyges ? [...trouble, ...await unloadGyges(host)] : trouble;
    }))).flat();
  }

  /** Waits until packets go both ways; the first after a change of the link may be lost. */
  async meet(): Promise<void> {
    const ping = `busybox ping -c 1 -W 1 ${addressOf(2)}`;
    await this.host(1).ask(`for try in $(seq 20); do ${ping} && exit 0; done; exit 1`);
  }
}

/** Boots `count` hosts, again where a boot ends in a panic before anything of ours is loaded, see `vcpus`. */
async function bootAll(count: number, start: (number: number) => Promise<LabHost>): Promise<LabHost[]> {
  for (let tries = 3;; tries--) {
    const hosts: LabHost[] = [];
    try {
      for (let number = 1; number <= count; number++) hosts.push(await start(number));
      await Promise.all(hosts.map((host) => host.booted()));
      return hosts;
    } catch (error) {
      for (const host of hosts) await host.dispose();
      if (tries === 1) throw error;
      console.log(`lab: boots again: ${wordsOf(error).slice(0, 200)}`);
    }
  }
}

/** Removes what runs that were killed have left. */
async function removeDead(): Promise<void> {
  for await (const { name } of Deno.readDir(tmpdir())) {
    const pid = new RegExp(`^${PREFIX}(\\d+)-`).exec(name)?.[1];
    if (pid === undefined || exists(`/proc/${pid}`)) continue;
    // Two runs may find the same.
    await Deno.remove(join(tmpdir(), name), { recursive: true }).catch((error) => {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    });
  }
}

/** What a failure may be about, besides what the kernel has said: connections, their counters, who sleeps where. */
const LOOK = `ip neigh; ip -s link show eth0; rdma resource show qp; rdma resource show cm_id
  cd /sys/class/infiniband/rxe0/ports/1 && grep . state cm_*/* hw_counters/* | grep -v ':0$'
  for task in /proc/[0-9]*/task/*; do
    where=$(cat $task/wchan)
    case $where in 0 | worker_thread | rescuer_thread) continue ;; esac
    echo "== $(cat $task/comm) $where"; head -8 $task/stack
  done`;
const LOOK_MS = 20_000;

/** Moves the consoles of the lab in `folder` to where they stay, and removes the rest. */
async function keepLogs(folder: string): Promise<string> {
  const into = join(LOGS, `${new Date().toISOString().replaceAll(":", "-")}-${Deno.pid}`);
  await Deno.mkdir(into, { recursive: true });
  for await (const { name } of Deno.readDir(folder)) {
    if (/\.(?:console|said|state)$/.test(name)) await Deno.copyFile(join(folder, name), join(into, name));
  }
  await Deno.remove(folder, { recursive: true });
  return into;
}

/** The lab of the last test, for the next one that wants the same. */
let kept: { lab: Lab; options: string } | null = null;
let closes = false;

/**
 * A test in a lab. Tests of a file that follow each other and want the same lab share one: after each its hosts are
 * looked at, what still runs is ended and the module is loaded anew, so that whatever is wrong is told of the test that
 * did it. After a test that failed, or that killed a host, the next one boots. The consoles of a failed one are kept.
 */
export function labTest(name: string, options: LabOptions, body: (lab: Lab) => Promise<void>): void {
  if (!closes) Deno.test.afterAll(closeKept);
  closes = true;
  Deno.test(`${options.kernel}: ${name}`, () => runInLab(options, body));
}

/** Throws what failed. What failed in an emulation that broke has not, and runs again: once. */
export async function runInLab(options: LabOptions, body: (lab: Lab) => Promise<void>): Promise<void> {
  let failure = await attempt(options, body);
  if (failure?.emulationBroke) {
    console.log(`lab: runs again, for the emulation of a host broke: ${wordsOf(failure.error).slice(0, 200)}`);
    failure = await attempt(options, body);
  }
  if (failure) throw failure.error;
}

interface Failure {
  error: unknown;
  emulationBroke: boolean;
}

async function attempt(options: LabOptions, body: (lab: Lab) => Promise<void>): Promise<Failure | null> {
  const lab = await labFor(options);
  const failures: unknown[] = [];
  try {
    await body(lab);
  } catch (error) {
    await lab.fail();
    failures.push(error);
  }
  const emulationBroke = lab.hosts.some((host) => host.emulationBroke) ||
    (failures.length > 0 && (await lab.rdmaBroke() || await lab.linkBroke()));
  const reusable = lab.whole && failures.length === 0;
  // Not by `await using`: of two errors Deno would show neither.
  if (reusable) await keep(lab, options).catch((error) => failures.push(error));
  else await lab[Symbol.asyncDispose]().catch((error) => failures.push(error));
  if (failures.length === 0) return null;
  const [only] = failures;
  const all = failures.map(wordsOf).join("\nThen, at the end of the lab: ");
  return { error: failures.length === 1 ? only : new Error(all), emulationBroke };
}

async function labFor(options: LabOptions): Promise<Lab> {
  if (kept?.options !== JSON.stringify(options)) await closeKept();
  const lab = kept?.lab ?? await Lab.boot(options);
  kept = null;
  return lab;
}

/** Keeps `lab` for the next test. Throws what is wrong with it, and then it is gone. */
async function keep(lab: Lab, options: LabOptions): Promise<void> {
  const trouble = await lab.renew().catch((error) => [wordsOf(error)]);
  if (trouble.length === 0) {
    kept = { lab, options: JSON.stringify(options) };
    return;
  }
  await lab.fail();
  await lab[Symbol.asyncDispose]().catch((error) => trouble.push(wordsOf(error)));
  throw new Error(`The lab's hosts are not well after it:\n${trouble.join("\n")}`);
}

async function closeKept(): Promise<void> {
  const lab = kept?.lab;
  kept = null;
  await lab?.[Symbol.asyncDispose]();
}

function wordsOf(failure: unknown): string {
  return failure instanceof Error ? failure.stack ?? failure.message : String(failure);
}
