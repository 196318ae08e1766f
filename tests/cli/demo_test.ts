/** The demo, small: it runs, proves the memory, writes its report and leaves nothing behind, also when interrupted. */
import assert from "node:assert/strict";
import * as v from "valibot";
import { listRunning } from "../../lib/control/runtime_dir.ts";
import { summarySchema } from "../../lib/monitor/summary.ts";
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

  test("demo --json prints one proved comparison a scenario and writes the report", async (host) => {
    const report = `${host.base}/report.html`;
    const line = `demo --ram 32MiB --bandwidth 1Gbit --scenario hybrid-short --report ${report} --json`;
    const { code, stdout, stderr } = await host.gyges(line);
    assert.deepEqual([code, stderr], [0, ""], stdout);
    const comparison = JSON.parse(stdout);
    assert.deepEqual([comparison.type, comparison.scenario, comparison.proved], ["comparison", "hybrid-short", true]);
    const summary = v.parse(summarySchema, comparison.summary);
    assert.deepEqual([summary.mode, summary.transport, summary.duplicate_pages], ["hybrid", "tls", 0]);
    // How it worked, not only that it did: both phases moved pages, and the guest waited for some.
    assert.ok(summary.precopy_pages > 0 && summary.postcopy_pages > 0 && summary.demand_faults > 0, stdout);
    assert.ok(comparison.undisturbed_pages_per_second > 1000, stdout);
    assert.deepEqual([comparison.ram_check.bad_pages, comparison.guest.corrupt], [0, 0]);
    assert.match(Deno.readTextFileSync(report), /hybrid-short: memory proved[\s\S]*<svg [\s\S]*<polyline/);
    Deno.removeSync(report);
    assert.deepEqual([...Deno.readDirSync(host.base)], []);
  });

  test("demo for people ends with the picture, the table and the proof", async (host) => {
    const { code, stdout } = await host.gyges("demo --ram 16MiB --scenario full");
    assert.equal(code, 0);
    assert.match(stdout, /^full: .*\nguest work {2}\|/);
    assert.match(stdout, /\ntotal time .*\ndowntime .*\nlargest stall the guest saw /);
    assert.match(stdout, /\nfull: memory proved: the host checked 4,096 pages, 0 bad; .* 0 corrupt\n$/);
  });

  test("demo refuses a report that it could not write before it runs anything", async (host) => {
    const { code, stderr } = await host.gyges("demo --report picture.pdf");
    assert.equal(code, 2);
    assert.match(stderr, /use .html or .svg/);
  });

  test("demo interrupted ends with 130 and ends all that it started", async (host) => {
    const demo = host.spawn("demo --ram 64MiB --json");
    await until("both processes", () => listRunning(host.base).length === 2);
    const pids = listRunning(host.base).flatMap(({ pid }) => pid === null ? [] : [pid]);
    host.pids.push(...pids);
    demo.kill("SIGINT");
    const { code, stdout } = await demo.output();
    const last = JSON.parse(new TextDecoder().decode(stdout).trimEnd().split("\n").at(-1) ?? "");
    assert.deepEqual([code, last.type, last.code, last.name], [130, "error", 130, "InterruptedError"]);
    await until("their ends", () => pids.every((pid) => !isAlive(pid)));
  });
}
