/** A guest held in the background by the built file: start, look, verify, stop, and what a kill leaves. */
import assert from "node:assert/strict";
import { touchesOf } from "../../lib/events.ts";
import { builtFiles } from "../helpers/binary.ts";
import { Host, until } from "../helpers/cli_host.ts";
import { isAlive } from "../helpers/proc.ts";
import { needsKvm } from "../helpers/kvm.ts";

for (const { form, path } of builtFiles()) {
  const test = (name: string, body: (host: Host) => Promise<void>) => {
    needsKvm(`${form}: ${name}`, async () => {
      await using host = new Host(path);
      await body(host);
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
    assert.ok(touchesOf(verified.guest) > touchesOf(first.guest), "the guest works on");

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
    assert.deepEqual([...Deno.readDirSync(host.base)], []);
  });

  test("cancel of a guest that is not moving is refused with 2", async (host) => {
    await host.start("vm1");
    const { code, stderr } = await host.gyges("cancel vm1");
    assert.equal(code, 2);
    assert.match(stderr, /not being moved/);
  });
}
