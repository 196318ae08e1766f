/** Two ends of a move on one machine: guests of stock QEMU in the built gyges, and all that they started, ended. */
import assert from "node:assert/strict";
import { basename, join } from "node:path";
import { LISTEN_FD } from "../../ffi/process.ts";
import type { Summary } from "../../lib/events.ts";
import { QmpClient } from "../../lib/qemu/qmp.ts";
import type { GygesProcess, StartOptions } from "../helpers/gyges_process.ts";
import { Host, pause, until } from "../helpers/host.ts";
import { Proxy } from "../helpers/proxy.ts";
import { qemuBinary, type QemuVersion } from "./binaries.ts";
import { GuestConsole } from "./console.ts";
import { consoleArguments, linuxGuest, type LinuxGuestOptions, PINGS_AT_ONCE } from "./guest.ts";
import { Network } from "./network.ts";
import { ring0Guest, ring3Guest } from "./ring0_guest.ts";

const DISK_BYTES = 64 << 20;
const NOBODY = 65534;
const GUESTS = { linux: linuxGuest, ring0: ring0Guest, ring3: ring3Guest };
const AS_NOBODY = ["setpriv", "--reuid", `${NOBODY}`, "--regid", `${NOBODY}`, "--clear-groups", "--no-new-privs"];

export interface Shape extends LinuxGuestOptions {
  /** The others need KVM, and have no disk, network or balloon. @default "linux" */
  guest?: keyof typeof GUESTS;
  /** @default "7.2" */
  qemu?: QemuVersion;
  /** A disk that both ends share, which the guest writes and reads past all caches. @default false */
  withDisk?: boolean;
  /** A network card, by which it pings a neighbour that stays where it is. @default false */
  withNetwork?: boolean;
  /** More of QEMU's arguments. @default none */
  extra?: readonly string[];
  /** QEMU has no privilege: it is started so, or gives it up once it has opened its files. @default it has */
  asNobody?: "started" | "changes";
}

/** A guest that a `gyges run` or a finished `gyges prepare` holds. */
export interface Held {
  name: string;
  process: GygesProcess;
  /** Where its serial port writes to. */
  log: string;
}

export interface Waiting extends Held {
  ticket: string;
}

export interface PrepareOptions extends StartOptions {
  /** Another one than the source's. */
  disk?: string;
  /** Of QEMU's arguments, in place of those that the source has more. */
  extra?: readonly string[];
  args?: readonly string[];
}

export class QemuPair implements AsyncDisposable {
  readonly host: Host;
  readonly folder: string;
  readonly shape: Shape;
  readonly #network: Network;
  #console: GuestConsole | null = null;
  #names = 0;

  private constructor(host: Host, folder: string, shape: Shape) {
    this.host = host;
    this.folder = folder;
    this.#network = new Network(folder);
    this.shape = shape;
  }

  static async open(shape: Shape): Promise<QemuPair> {
    const folder = await Deno.makeTempDir({ prefix: "gyges-qemu-" });
    if (shape.asNobody) await Deno.chown(folder, NOBODY, NOBODY);
    if (!shape.withDisk) return new QemuPair(await Host.open(), folder, shape);
    const disk = join(folder, "disk");
    await Deno.writeFile(disk, new Uint8Array());
    await Deno.truncate(disk, DISK_BYTES);
    if (shape.asNobody) await Deno.chown(disk, NOBODY, NOBODY);
    return new QemuPair(await Host.open(), folder, { ...shape, disk });
  }

  get console(): GuestConsole {
    assert.ok(this.#console, "the guest was started");
    return this.#console;
  }

  /** Starts the guest by `gyges run` and waits until it works. */
  async start(args: readonly string[] = [], options: StartOptions = {}): Promise<Held> {
    const { name, log, command } = await this.#new("guest");
    const process = this.host.start(["run", name, ...args, "--", ...command], options);
    this.#console = new GuestConsole(log);
    await process.waitFor("guest");
    await this.console.untilStarted();
    await this.console.untilBeats(5);
    return { name, process, log };
  }

  /** Starts a destination for it. */
  async prepare(options: PrepareOptions = {}): Promise<Waiting> {
    const waiting = await this.startPrepare(options);
    const { ticket } = await waiting.process.waitFor("ticket");
    return { ...waiting, ticket };
  }

  /** The same for one that need not come to a ticket. */
  async startPrepare({ args = [], disk, extra, ...options }: PrepareOptions = {}): Promise<Held> {
    const shape = { ...this.shape, ...disk !== undefined && { disk }, ...extra && { extra } };
    const { name, log, command } = await this.#new("dest", shape);
    const process = this.host.start(["prepare", name, ...args, "--", ...command], options);
    return { name, process, log };
  }

  async #new(kind: string, { ...shape }: Shape = this.shape) {
    const name = `${kind}${++this.#names}`;
    if (shape.withNetwork) shape.network = this.#network.port(name);
    const log = join(this.folder, `${name}.console`);
    const [{ program, args, version }, guest] = await Promise.all([
      qemuBinary(shape.qemu ?? "7.2"),
      GUESTS[shape.guest ?? "linux"](shape),
    ]);
    const command = [program, ...args, ...guest.args, ...shape.extra ?? [], ...consoleArguments(log)];
    command.push(...this.#monitor(name));
    if (shape.asNobody === "changes") {
      command.push(...version === "7.2" ? ["-runas", "nobody"] : ["-run-with", "user=nobody"]);
    }
    return { name, log, command: shape.asNobody === "started" ? await this.#startedAsNobody(command, log) : command };
  }

  /** By a user who can read and write what it needs. */
  async #startedAsNobody(command: readonly string[], log: string): Promise<string[]> {
    await Deno.writeFile(log, new Uint8Array());
    await Deno.chown(log, NOBODY, NOBODY);
    const readable = command.map(async (word, i) => {
      if (!["-kernel", "-initrd"].includes(command[i - 1] ?? "")) return word;
      const copy = join(this.folder, basename(word));
      await Deno.copyFile(word, copy);
      await Deno.chown(copy, NOBODY, NOBODY);
      return copy;
    });
    return [...AS_NOBODY, ...await Promise.all(readable)];
  }

  /** What QEMU of `name` answers to an order by the test's own monitor. */
  async order(name: string, command: string): Promise<unknown> {
    using qmp = await QmpClient.connect(this.#monitorPath(name));
    return await qmp.call(command);
  }

  /** Has the balloon of `name` leave the guest so many MiB, and waits until it has. */
  async leave(name: string, mib: number): Promise<void> {
    using qmp = await QmpClient.connect(this.#monitorPath(name));
    await qmp.call("balloon", { value: mib << 20 });
    let now: unknown;
    const isLeft = async () => JSON.stringify(now = await qmp.call("query-balloon")) === `{"actual":${mib << 20}}`;
    await until(isLeft, () => `the balloon of "${name}": ${JSON.stringify(now)}, to leave ${mib} MiB`);
  }

  /** One for the test alone. */
  #monitor(name: string): string[] {
    return ["-qmp", `unix:${this.#monitorPath(name)},server=on,wait=off`];
  }

  #monitorPath(name: string): string {
    return join(this.folder, `${name}.monitor`);
  }

  /** Moves the guest; `arrived` is done before anything is expected of it. */
  async move(
    from: Held,
    to: Waiting,
    args: readonly string[],
    arrived: () => Promise<unknown> = () => Promise.resolve(),
  ): Promise<Summary> {
    const lostBefore = this.console.last?.netLost ?? 0;
    const migrate = this.host.start(["migrate", to.ticket, "--vm", from.name, ...args]);
    await migrate.endedWith(0);
    await from.process.endedWith(0);
    await arrived();
    this.console.moveTo(to.log);
    if (this.shape.withNetwork) await this.#proveNetwork(from, to, lostBefore);
    return await migrate.waitFor("summary");
  }

  /** Its pings go on being answered, it never ran at both ends, and the network was told where it is. */
  async #proveNetwork(from: Held, to: Held, lostBefore: number): Promise<void> {
    const before = this.console.last?.net ?? 0;
    await this.console.untilBeat("pings are answered", ({ net }) => net > before + 50);
    this.#network.failIfRanAtBoth(from.name, to.name);
    const lost = (this.console.last?.netLost ?? 0) - lostBefore;
    assert.ok(lost <= PINGS_AT_ONCE, `${lost} pings were lost, and ${PINGS_AT_ONCE} at most were under way`);
    const heard = this.#network.announcements(to.name);
    await until(() => heard.qemu > 0 && heard.guest > 0, () => `announced at "${to.name}": ${JSON.stringify(heard)}`);
  }

  /** Moves the guest by a link that is cut for a second, `afterMs` after it runs at `to`; it arrives whole. */
  async moveOverCutLink(from: Held, to: Waiting, args: readonly string[], afterMs = 0): Promise<void> {
    await using link = new Proxy(to.ticket);
    const migrate = this.host.start(["migrate", link.ticket, "--vm", from.name, ...args]);
    await migrate.reached("serving");
    await to.process.reached("running");
    await pause(afterMs);
    link.cut();
    await Promise.all([migrate.reached("paused"), to.process.reached("paused")]);
    await pause(1000);
    link.heal();
    await migrate.endedWith(0);
    this.console.moveTo(to.log);
    await this.proved();
    assert.ok(to.process.states.includes("completed"));
  }

  /** Every page has been looked at since, and nothing was found wrong; no beat is missing. */
  async proved(): Promise<void> {
    await this.console.untilAllChecked();
    this.console.failIfCorrupt();
  }

  /** The pid of the QEMU that `name` holds. */
  qemuOf(name: string): number {
    const pid = this.#qemus().find((qemu) => qemu.name === name)?.pid;
    assert.ok(pid !== undefined, `no QEMU of "${name}" runs`);
    return pid;
  }

  /** Whether `name` has a QEMU. */
  hasQemu(name: string): boolean {
    return this.#qemus().some((qemu) => qemu.name === name);
  }

  /** Command lines of all that runs for either end: each has the ends' runtime directory in its environment. */
  processes(): string[] {
    return [...Deno.readDirSync("/proc")].flatMap(({ name }) => {
      if (!/^\d+$/.test(name)) return [];
      try {
        const ours = Deno.readTextFileSync(`/proc/${name}/environ`).includes(this.host.runtimeDir);
        return ours ? [Deno.readTextFileSync(`/proc/${name}/cmdline`).replaceAll("\0", " ")] : [];
      } catch (error) {
        // It ended in between.
        if (error instanceof Error) return [];
        throw error;
      }
    });
  }

  /** Those that listen on a monitor in the runtime directory, by the name that it is of. */
  #qemus(): { pid: number; name: string }[] {
    const names = new Map<string, string>();
    for (const line of Deno.readTextFileSync("/proc/net/unix").split("\n")) {
      const [inode = "", path = ""] = line.split(/\s+/).slice(6);
      const [, name] = path.startsWith(this.host.runtimeDir) ? /([^/]+)\/qmp\.sock$/.exec(path) ?? [] : [];
      if (name !== undefined) names.set(`socket:[${inode}]`, name);
    }
    return [...Deno.readDirSync("/proc")].flatMap(({ name: pid }) => {
      if (!/^\d+$/.test(pid)) return [];
      const name = names.get(linkOf(`/proc/${pid}/fd/${LISTEN_FD}`) ?? "");
      return name === undefined ? [] : [{ pid: Number(pid), name }];
    });
  }

  /** Ends what is left: QEMUs outlive the gyges that started them. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#console?.[Symbol.dispose]();
    for (const { pid } of this.#qemus()) Deno.kill(pid, "SIGKILL");
    while (this.#qemus().length > 0) await pause(10);
    await this.#network[Symbol.asyncDispose]();
    await this.host[Symbol.asyncDispose]();
    await Deno.remove(this.folder, { recursive: true });
  }
}

/** Null: it is none, or not any more. */
function linkOf(path: string): string | null {
  try {
    return Deno.readLinkSync(path);
  } catch (error) {
    if (error instanceof Error) return null;
    throw error;
  }
}

/** What every move must give, whatever guest and mode; in words. */
export function account(summary: Summary): string {
  assert.equal(summary.duplicate_pages, summary.pager === "native" ? null : 0);
  assert.equal(summary.guest.corrupt, null, "only the guest can tell");
  const ms = (ns: number) => (ns / 1e6).toFixed(1);
  return `${summary.mode}: total ${ms(summary.total_ns)} ms, downtime ${ms(summary.downtime_ns)} ms, ` +
    `${summary.precopy_pages} + ${summary.postcopy_pages} pages, ${summary.demand_faults} faults`;
}
