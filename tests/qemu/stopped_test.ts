/** A guest that somebody has stopped moves and stays so, at whichever end, until somebody lets it run. */
import assert from "node:assert/strict";
import { QemuPair, type Shape } from "./pair.ts";
import { movedStopped, proveStopped, stopped } from "./stopped.ts";

const SHAPE = { rate: 8000, workingSet: "32M", withDisk: true, withNetwork: true } as const;
const FULL = ["--mode", "full"];
/** Where Debian's kernel has its code, in pages. */
const KERNEL_TEXT_PAGE = 0x1000000 / 4096;

for (
  const [args, shape] of [
    [FULL, { ...SHAPE, qemu: "7.2" }],
    [["--precopy-timeout", "1s"], { ...SHAPE, qemu: "10.0", machine: "q35" }],
  ] satisfies [string[], Shape][]
) {
  Deno.test(`a guest that is stopped moves, by QEMU ${shape.qemu}, and all of its RAM is as it was: ${args[0]}`, async () => {
    await using pair = await QemuPair.open(shape);
    assert.deepEqual(await movedStopped(pair, await stopped(pair), args), []);
    await pair.proved();
  });
}

Deno.test("control: a page that comes as zeros is seen in the RAM of a guest that was stopped", async () => {
  await using pair = await QemuPair.open({ rate: 8000, workingSet: "32M" });
  const env = { GYGES_INJECT: `zero-page@${KERNEL_TEXT_PAGE}` };
  assert.deepEqual(await movedStopped(pair, await stopped(pair), FULL, env), [KERNEL_TEXT_PAGE]);
});

Deno.test("native pager: a guest that is stopped moves and stays so", async () => {
  await using pair = await QemuPair.open({ ...SHAPE, qemu: "10.0" });
  const home = await stopped(pair, ["--pager", "native"]);
  const to = await pair.prepare();
  await pair.move(home, to, FULL, async () => {
    await to.process.reached("completed");
    await proveStopped(pair, to.name);
    await pair.order(to.name, "cont");
  });
  await pair.proved();
});

for (const [order, start] of [["stop", (pair: QemuPair) => pair.start()], ["cont", stopped]] as const) {
  Deno.test(`what somebody says to a guest while it moves holds: ${order}`, async () => {
    await using pair = await QemuPair.open({ rate: 8000, workingSet: "32M" });
    const home = await start(pair);
    const to = await pair.prepare();
    const args = ["--bandwidth", "20MiB/s", "--precopy-timeout", "5s"];
    const migrate = pair.host.start(["migrate", to.ticket, "--vm", home.name, ...args]);
    await migrate.waitFor("sample", ({ state, pulled_pages }) => state === "precopy" && pulled_pages > 0);
    await pair.order(home.name, order);
    await Promise.all([migrate.endedWith(0), home.process.endedWith(0), to.process.reached("completed")]);
    if (order === "stop") {
      await proveStopped(pair, to.name);
      await pair.order(to.name, "cont");
    }
    pair.console.moveTo(to.log);
    await pair.proved();
  });
}

Deno.test("a move of a stopped guest that is cancelled leaves it stopped, and says so", async () => {
  await using pair = await QemuPair.open({ rate: 8000, workingSet: "32M" });
  const home = await stopped(pair);
  const to = await pair.prepare();
  const slow = ["--bandwidth", "1MiB/s", "--precopy-timeout", "60s"];
  const migrate = pair.host.start(["migrate", to.ticket, "--vm", home.name, ...slow]);
  await migrate.reached("precopy");
  await pair.host.start(["cancel", home.name]).endedWith(0);
  const error = (await migrate.endedWith(130)).events.at(-1);
  assert.ok(error?.type === "error");
  assert.match(error.message, /^Cancelled by the operator. The guest is at the source, stopped as it was$/);
  await to.process.ended();
  await proveStopped(pair, home.name);
  await pair.order(home.name, "cont");
  await pair.proved();
});

/** The last one is the source's alone: a state with it is not loaded. */
const DEVICES = ["-device", "virtio-rng-pci"];

Deno.test("a move that fails leaves a guest stopped that was so, and it moves at last", async () => {
  await using pair = await QemuPair.open({ ...SHAPE, extra: DEVICES });
  const home = await stopped(pair);
  const to = await pair.prepare({ extra: [] });
  const { events } = await pair.host.start(["migrate", to.ticket, "--vm", home.name, ...FULL]).endedWith(10);
  const error = events.at(-1);
  assert.ok(error?.type === "error");
  assert.match(error.message, /cannot load.*The guest is at the source, stopped as it was/s);
  await to.process.ended();
  // QEMU's word for one whose state has been saved.
  await proveStopped(pair, home.name, "postmigrate");
  const next = await pair.prepare();
  const again = await pair.host.start(["migrate", next.ticket, "--vm", home.name, ...FULL]).endedWith(3);
  assert.match(JSON.stringify(again.events), /postmigrate.*say cont in its monitor, and stop/);
  next.process.signal("SIGINT");
  await next.process.ended();
  await pair.order(home.name, "cont");
  await pair.order(home.name, "stop");
  assert.deepEqual(await movedStopped(pair, home, FULL), []);
  await pair.proved();
});
