/** Guests of QEMUs that gyges may not trace, as in a container: what it starts them with catches faults there; with a control. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { cached, digest, tool } from "../lab/cache.ts";
import { QemuPair } from "./pair.ts";

const HERE = fileURLToPath(new URL("programs/no_tracing.c", import.meta.url));
const FILTER = fileURLToPath(new URL("../shim/no_tracing.h", import.meta.url));
const LOADED = "/memfd:gyges-faults";

/** What it is run under. */
async function noTracing(): Promise<string[]> {
  const key = digest(Deno.readFileSync(HERE), Deno.readFileSync(FILTER));
  return [await cached(`no-tracing-${key}`, async (into) => void await tool("cc", ["-O2", "-o", into, HERE]))];
}

function hasHelper(pid: number): boolean {
  return Deno.readTextFileSync(`/proc/${pid}/maps`).includes(LOADED);
}

const SANDBOX = ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"];

for (const shape of [{ qemu: "7.2", extra: SANDBOX }, { qemu: "10.0", asNobody: "changes" }] as const) {
  Deno.test(`untraced: full there, hybrid back, and attached to: QEMU ${shape.qemu}`, async () => {
    const under = await noTracing();
    await using pair = await QemuPair.open({ ...shape, rate: 8000, workingSet: "32M" });
    const home = await pair.start([], { under });
    const away = await pair.prepare({ under });
    await pair.move(home, away, ["--mode", "full"]);
    await pair.proved();
    assert.ok(hasHelper(pair.qemuOf(away.name)));

    const back = await pair.prepare({ under });
    const summary = await pair.move(away, back, ["--precopy-timeout", "2s"]);
    await pair.proved();
    assert.ok(summary.precopy_pages > 0 && summary.postcopy_pages > 0);

    const last = await pair.prepare({ under });
    const migrate = pair.host.start([
      "migrate",
      last.ticket,
      "--vm",
      back.name,
      "--mode",
      "full",
      "--bandwidth",
      "20MiB/s",
    ]);
    await last.process.reached("running");
    last.process.signal("SIGKILL");
    await last.process.ended();
    await migrate.reached("paused");
    const attach = pair.host.start(["attach", last.name], { under });
    await migrate.endedWith(0);
    pair.console.moveTo(last.log);
    assert.equal((await attach.waitFor("summary")).duplicate_pages, 0);
    await pair.proved();
  });
}

Deno.test("control: what gyges did not start with it, it cannot move untraced, and the guest stays", async () => {
  const under = await noTracing();
  await using pair = await QemuPair.open({ rate: 8000, workingSet: "32M" });
  const home = await pair.start();
  assert.ok(!hasHelper(pair.qemuOf(home.name)));
  await home.process[Symbol.asyncDispose]();
  const qmp = pair.host.monitorOf(home.name);
  const { ticket } = await pair.prepare({ under });
  const migrate = pair.host.start(["migrate", ticket, "--qmp", qmp, "--precopy-timeout", "2s"], { under });
  await migrate.endedWith(3);
  assert.match((await migrate.waitFor("error")).message, /may not trace process.*--mode full/);
  await pair.console.untilBeats(5);
});
