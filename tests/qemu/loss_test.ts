/** After the commit point: a QEMU that dies takes its guest with it, in words; a link that is cut heals. */
import assert from "node:assert/strict";
import { Wiretap } from "../helpers/wiretap.ts";
import { QemuPair } from "./pair.ts";

const SHAPE = { rate: 8000, workingSet: "32M" } as const;
const LOST = 12;
/** So that there is something left to lose. */
const SLOW = ["--mode", "full", "--bandwidth", "20MiB/s"];
/** While memory is on its way, at the latest. */
const UNCAUGHT = { GYGES_INJECT: "uncaught@2000" };

function isOutlived({ detail }: { detail: string }): boolean {
  return /^Internal error.*thrown on purpose/.test(detail);
}

Deno.test("SIGKILL of the destination's QEMU after the commit point: the guest is lost, say both ends", async () => {
  await using pair = await QemuPair.open(SHAPE);
  const home = await pair.start();
  const to = await pair.prepare();
  const qemu = pair.qemuOf(to.name);
  const migrate = pair.host.start(["migrate", to.ticket, "--vm", home.name, ...SLOW]);
  await migrate.reached("serving");
  await to.process.reached("running");
  Deno.kill(qemu, "SIGKILL");
  for (const process of [migrate, to.process]) {
    await process.endedWith(LOST);
    const error = await process.waitFor("error");
    assert.equal(error.guest_location, "lost");
    // The source may see the connection end before it is told why.
    assert.match(error.message, process === migrate ? /The guest is lost: / : /: QEMU, process \d+, has ended/);
  }
  // Nothing runs at the source, and what is there can be ended.
  const beats = pair.console.beats.length;
  pair.console.poll();
  assert.equal(pair.console.beats.length, beats, "the guest does not run at the source");
  await pair.host.start(["vm", "stop", home.name]).endedWith(0);
  await home.process.endedWith(0);
  assert.ok(!pair.hasQemu(home.name));
});

Deno.test("an error that nobody catches ends neither the process that serves a QEMU's pages nor the one that takes them", async () => {
  await using pair = await QemuPair.open(SHAPE);
  const home = await pair.start();
  await home.process[Symbol.asyncDispose]();
  const qmp = pair.host.monitorOf(home.name);
  const to = await pair.prepare({ env: UNCAUGHT });
  const migrate = pair.host.start(["migrate", to.ticket, "--qmp", qmp, ...SLOW], { env: UNCAUGHT });
  await Promise.all([migrate, to.process].map((process) => process.waitFor("note", isOutlived)));
  await migrate.endedWith(0);
  pair.console.moveTo(to.log);
  await pair.proved();
});

Deno.test("a link that is cut after the commit point heals, and the guest arrives whole", async () => {
  await using pair = await QemuPair.open(SHAPE);
  const home = await pair.start();
  await pair.moveOverCutLink(home, await pair.prepare(), SLOW);
});

for (const role of ["demand", "prefetch"] as const) {
  Deno.test(`a ${role} connection alone that is cut comes back, and the guest arrives whole`, async () => {
    await using pair = await QemuPair.open(SHAPE);
    const home = await pair.start();
    const to = await pair.prepare({ args: ["--tls", "off"] });
    await using tap = new Wiretap(to.ticket, {});
    const migrate = pair.host.start(["migrate", tap.ticket, "--vm", home.name, "--tls", "off", ...SLOW]);
    await migrate.reached("serving");
    await to.process.reached("running");
    tap.cut([role], 1000);
    await Promise.all([migrate.reached("paused"), to.process.reached("paused")]);
    await migrate.endedWith(0);
    pair.console.moveTo(to.log);
    await pair.proved();
    for (const { states } of [migrate, to.process]) {
      assert.equal(states.filter((state) => state === "paused").length, 1, states.join(" "));
      assert.equal(states.at(-1), "completed");
    }
  });
}
