/** A guest held in the background by the built file: start, look, verify, stop, and what a kill leaves. */
import assert from "node:assert/strict";
import { parseEvent } from "../../lib/monitor/summary.ts";
import type { GygesEvent } from "../../lib/events.ts";
import { builtFiles, run, type RunResult } from "../helpers/binary.ts";

function hasKvm(): boolean {
  try {
    Deno.openSync("/dev/kvm", { read: true, write: true }).close();
    return true;
  } catch (error) {
    if (error instanceof Error) return false;
    throw error;
  }
}

const kvm = hasKvm();

/** The built file with a runtime directory of its own; whatever it started in the background is ended. */
class Host implements AsyncDisposable {
  readonly base = Deno.makeTempDirSync({ prefix: "gyges-vm-" });
  readonly pids: number[] = [];
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
  }

  gyges(line: string): Promise<RunResult> {
    return run(this.#path, line.split(" "), { env: { ...Deno.env.toObject(), GYGES_RUNTIME_DIR: this.base } });
  }

  /** Runs `line` with `--json`, expects code 0 and one event of `type`. */
  async ask<T extends GygesEvent["type"]>(line: string, type: T): Promise<Extract<GygesEvent, { type: T }>> {
    const { code, stdout, stderr } = await this.gyges(`${line} --json`);
    assert.deepEqual([code, stderr], [0, ""], stdout);
    const event = parseEvent(JSON.parse(stdout));
    assert.ok(isOf(event, type), stdout);
    return event;
  }

  async start(name: string): Promise<number> {
    const { code, stdout, stderr } = await this.gyges(`vm start ${name} --ram 32MiB --rate 20000 --detach`);
    assert.deepEqual([code, stderr], [0, ""]);
    const match = /^(\S+) (\d+)\n$/.exec(stdout);
    assert.equal(match?.[1], name);
    const pid = Number(match?.[2]);
    this.pids.push(pid);
    return pid;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const pid of this.pids) {
      while (isAlive(pid)) {
        Deno.kill(pid, "SIGKILL");
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    }
    Deno.removeSync(this.base, { recursive: true });
  }
}

function isOf<T extends GygesEvent["type"]>(event: GygesEvent, type: T): event is Extract<GygesEvent, { type: T }> {
  return event.type === type;
}

/** Whether process `pid` lives; a zombie of the test's own machine does not. */
function isAlive(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/.test(Deno.readTextFileSync(`/proc/${pid}/stat`));
  } catch (error) {
    if (error instanceof Error) return false;
    throw error;
  }
}

async function until(what: string, holds: () => boolean): Promise<void> {
  const deadline = performance.now() + 10_000;
  while (!holds()) {
    assert.ok(performance.now() < deadline, `${what}: not within 10 s`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

for (const { form, path } of builtFiles()) {
  const test = (name: string, body: (host: Host) => Promise<void>) => {
    if (!kvm) console.log(`skip: ${form}: ${name}: /dev/kvm cannot be opened`);
    Deno.test({
      name: `${form}: ${name}`,
      ignore: !kvm,
      async fn() {
        await using host = new Host(path);
        await body(host);
      },
    });
  };

  test("vm start --detach, status, list, monitor and stop tell of one guest", async (host) => {
    const pid = await host.start("vm1");
    await until("log", () => Deno.statSync(`${host.base}/vm1/log`).isFile);
    const first = await host.ask("vm status vm1", "guest");
    assert.deepEqual([first.guest.running, first.guest.corrupt, first.guest.ram_bytes], [true, 0, 32 * 2 ** 20]);

    const verified = await host.ask("vm status vm1 --verify", "guest");
    assert.equal(verified.ram_check?.bad_pages, 0);
    assert.equal(verified.ram_check?.pages, 8192);
    assert.ok(verified.guest.verified_pages > first.guest.verified_pages, "the guest works on");

    const sample = await host.ask("monitor vm1 --once", "sample");
    assert.deepEqual([sample.name, sample.side, sample.state], ["vm1", "idle", "idle"]);
    assert.match((await host.gyges("monitor vm1 --once")).stdout, /^vm1: idle {2}guest runs {2}memory good .*\n$/);
    assert.deepEqual((await host.ask("vm list", "sample")).name, "vm1");
    assert.match((await host.gyges("vm list")).stdout, /^NAME .*\nvm1 +idle +idle +32 MiB/);

    const again = await host.gyges("vm start vm1 --ram 32MiB --detach");
    assert.equal(again.code, 2);
    assert.match(again.stderr, new RegExp(`process ${pid} has it`));

    const stopped = await host.ask("vm stop vm1", "guest");
    assert.deepEqual([stopped.guest.running, stopped.guest.corrupt, stopped.ram_check?.bad_pages], [false, 0, 0]);
    await until("end", () => !isAlive(pid));
    assert.deepEqual([...Deno.readDirSync(host.base)], []);
  });

  test("a killed process is told as such, not listed, and its name can be used again", async (host) => {
    const pid = await host.start("vm1");
    Deno.kill(pid, "SIGKILL");
    await until("death", () => !isAlive(pid));
    const status = await host.gyges("vm status vm1");
    assert.equal(status.code, 2);
    assert.match(status.stderr, new RegExp(`its process ${pid} died`));
    assert.equal((await host.gyges("vm list --json")).stdout, "");
    await host.start("vm1");
    assert.equal((await host.ask("vm stop vm1", "guest")).ram_check?.bad_pages, 0);
  });

  test("SIGTERM ends a held guest in order", async (host) => {
    const pid = await host.start("vm1");
    Deno.kill(pid, "SIGTERM");
    await until("end", () => !isAlive(pid));
    assert.equal((await host.gyges("vm status vm1")).code, 2);
    assert.deepEqual([...Deno.readDirSync(`${host.base}/vm1`)].map((entry) => entry.name), ["log"]);
  });

  test("cancel of a guest that is not moving is refused with 2", async (host) => {
    await host.start("vm1");
    const { code, stderr } = await host.gyges("cancel vm1");
    assert.equal(code, 2);
    assert.match(stderr, /not being moved/);
  });
}
