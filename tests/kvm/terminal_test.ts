/** A terminal that stands still, or is closed, holds up neither a guest nor its move, and ends neither. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { touchesOf } from "../../lib/events.ts";
import { builtFiles } from "../helpers/binary.ts";
import { type Host, pause, until } from "../helpers/host.ts";
import { kvmTest } from "../helpers/kvm.ts";
import { isAlive } from "../helpers/proc.ts";
import { proveReport } from "../helpers/proof.ts";

const PIPE_BYTES = 65_536;
const TICKET = /^gyges:\S+/m;
const SOURCE = ["vm", "start", "src", "--ram", "64M"];
const DESTINATION = ["prepare", "dst", "--micro"];

/** Programs started by a shell line in which "$@" is a gyges; all are gone when it is. */
class Shells implements AsyncDisposable {
  readonly #host: Host;
  readonly #children: Deno.ChildProcess[] = [];
  readonly folder = Deno.makeTempDirSync({ prefix: "gyges-terminal-" });

  constructor(host: Host) {
    this.#host = host;
  }

  start(line: string, gyges: readonly string[] = []): Deno.ChildProcess {
    const [built] = builtFiles();
    assert.ok(built);
    const child = new Deno.Command("sh", {
      args: ["-c", line, "sh", built.path, ...gyges],
      env: { GYGES_RUNTIME_DIR: this.#host.runtimeDir },
      cwd: this.folder,
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
    this.#children.push(child);
    return child;
  }

  read(name: string): string {
    try {
      return Deno.readTextFileSync(join(this.folder, name));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return "";
      throw error;
    }
  }

  /** What fits `pattern` in the file `name`, once it is there. */
  async find(name: string, pattern: RegExp): Promise<string> {
    let found: string | undefined;
    await until(() => (found = pattern.exec(this.read(name))?.[0]) !== undefined, () => `${name}: ${this.read(name)}`);
    assert.ok(found);
    return found;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { name } of Deno.readDirSync(this.folder)) {
      if (name.endsWith(".pid")) kill(Number(this.read(name)));
    }
    for (const child of this.#children) {
      kill(child.pid);
      await child.status;
    }
    Deno.removeSync(this.folder, { recursive: true });
  }
}

function kill(pid: number): void {
  try {
    Deno.kill(pid, "SIGKILL");
  } catch (error) {
    if (!(error instanceof TypeError) && !(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Waits until process `name` answers, and its guest works. One that writes to its terminal might never answer. */
async function working(host: Host, name: string): Promise<void> {
  const works = () => host.guest(name).then((guest) => touchesOf(guest) > 0, () => false);
  const late = () => pause(1000).then(() => false);
  await until(() => Promise.race([works(), late()]), () => `"${name}" has no guest that works`);
}

/** The guest is whole at the destination, works, and ends well. */
async function proveArrived(host: Host): Promise<void> {
  await host.sampleUntil("dst", ({ side }) => side === "idle");
  const before = await host.guest("dst");
  await host.guestUntil("dst", (now) => touchesOf(now) > touchesOf(before) + 100);
  const { events: [event] } = await host.start(["vm", "stop", "dst"]).endedWith(0);
  assert.ok(event?.type === "guest");
  proveReport(event);
}

kvmTest("output that nobody reads, a terminal that stands still, holds up neither guest nor move", async (host) => {
  await using shells = new Shells(host);
  assert.ok((await shells.start("mkfifo full").status).success);
  const full = Deno.openSync(join(shells.folder, "full"), { read: true, write: true });
  assert.equal(full.writeSync(new Uint8Array(PIPE_BYTES)), PIPE_BYTES);
  const source = shells.start('exec "$@" >full 2>&1', SOURCE);
  await working(host, "src");
  const destination = shells.start('exec "$@" >ticket 2>full', DESTINATION);
  const ticket = await shells.find("ticket", TICKET);
  const move = ["migrate", ticket, "--vm", "src", "--precopy-timeout", "500ms"];
  const migrate = shells.start('exec "$@" >full 2>&1', move);
  await proveArrived(host);
  // It ends once all that it had to say is taken.
  const reader = shells.start("exec cat full >said");
  await until(() => shells.read("said").length > 0, () => "nothing was read");
  full.close();
  for (const { status } of [source, destination, migrate, reader]) assert.equal((await status).code, 0);
  assert.match(shells.read("said"), /serving/);
  host.assertEmpty();
});

kvmTest("a terminal that is closed ends neither guest nor move", async (host) => {
  await using shells = new Shells(host);
  /** Each on a terminal of its own, whose session it leads. */
  const open = (name: string, gyges: readonly string[]) =>
    shells.start(`exec script -qfec "echo \\$\\$ >${name}.pid; exec $*" ${name}`, gyges);
  const terminals = [open("src", SOURCE)];
  await working(host, "src");
  terminals.push(open("dst", DESTINATION));
  const ticket = await shells.find("dst", TICKET);
  terminals.push(open("migrate", ["migrate", `'${ticket}'`, "--vm", "src", "--mode", "full", "--bandwidth", "64Mbit"]));
  await host.sampleUntil("dst", ({ state }) => state === "running");
  for (const terminal of terminals) {
    terminal.kill("SIGKILL");
    await terminal.status;
  }
  assert.ok((await host.sample("dst")).missing_pages > 0, "the memory was all there when the terminals were closed");
  await proveArrived(host);
  const pids = ["src", "dst", "migrate"].map((name) => Number(shells.read(`${name}.pid`)));
  await until(() => !pids.some(isAlive), () => `of ${pids} some go on`);
  host.assertEmpty();
});
