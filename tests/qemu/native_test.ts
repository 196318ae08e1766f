/** Guests whose RAM is private to their QEMU move by QEMU's own post-copy, which Gyges carries and commands. */
import assert from "node:assert/strict";
import { pause, until } from "../helpers/host.ts";
import { needsKvm } from "../helpers/kvm.ts";
import { account, QemuPair, type Shape } from "./pair.ts";

const NATIVE = ["--pager", "native"];
const HYBRID = ["--precopy-timeout", "2s", "--bandwidth", "100MiB/s"];
/** 7.2's pre-copy loses writes under TCG, so its guests move at once there. */
const SHAPES: [about: string, shape: Shape, modes: string[][]][] = [
  ["QEMU 7.2, pc, 1 vCPU", { qemu: "7.2", rate: 8000 }, [["--mode", "full"], ["--mode", "full"]]],
  ["QEMU 10.0, q35, 2 vCPUs, disk and network", {
    qemu: "10.0",
    machine: "q35",
    vcpus: 2,
    rate: 20_000,
    withDisk: true,
    withNetwork: true,
  }, [["--mode", "full"], HYBRID]],
  ["QEMU 7.2, pc, 1 vCPU under KVM", { guest: "ring3", qemu: "7.2" }, [
    ["--mode", "full"],
    HYBRID,
  ]],
  ["QEMU 10.0, q35, 2 vCPUs under KVM", {
    guest: "ring3",
    qemu: "10.0",
    machine: "q35",
    vcpus: 2,
  }, [["--mode", "full"], HYBRID]],
];

for (const [name, shape, [there, back]] of SHAPES) {
  const test = shape.guest ? needsKvm : Deno.test;
  test(`native pager: there and back: ${name}`, async () => {
    await using pair = await QemuPair.open(shape);
    const home = await pair.start(NATIVE);
    // It finds out by itself that it has to leave RAM to its QEMU.
    const away = await pair.prepare();
    const first = await pair.move(home, away, there ?? []);
    await pair.proved();
    console.log(`  ${name}: ${account(first)}`);
    assert.equal(first.pager, "native");
    assert.ok(first.postcopy_pages > 5_000, "its memory came after it");
    if (shape.withDisk) assert.ok((pair.console.last?.disk ?? 0) > 0, "its disk is in use");
    const second = await pair.move(away, await pair.prepare({ args: NATIVE }), back ?? []);
    await pair.proved();
    if (second.mode === "hybrid") assert.ok(second.precopy_rounds > 0 && second.precopy_pages > 0);
    console.log(`  ${name}: ${account(second)}, largest gap in all ${Math.round(pair.console.largestSeenGapMs)} ms`);
  });
}

const SMALL = { qemu: "10.0", rate: 8000, workingSet: "32M" } as const;
/** Long enough to be met in pre-copy. */
const SLOW = ["--bandwidth", "20MiB/s", "--precopy-timeout", "60s"];
/** So that there is something left to lose. */
const SLOW_AFTER = ["--mode", "full", "--bandwidth", "20MiB/s"];

Deno.test("native pager: before QEMU goes on post-copy the guest stays, whatever dies, and moves at last", async (t) => {
  await using pair = await QemuPair.open({ ...SMALL, withDisk: true });
  const home = await pair.start(NATIVE);
  const failures: [what: string, code: number, happen: (destination: string) => Promise<unknown>][] = [
    ["cancel", 130, () => pair.host.run(["cancel", home.name])],
    ["SIGKILL of the destination's QEMU", 10, (name) => Promise.resolve(Deno.kill(pair.qemuOf(name), "SIGKILL"))],
  ];
  for (const [what, code, happen] of failures) {
    await t.step(what, async () => {
      const to = await pair.prepare({ args: NATIVE });
      const migrate = pair.host.start(["migrate", to.ticket, "--vm", home.name, ...SLOW]);
      await to.process.reached("precopy");
      await pause(500);
      await happen(to.name);
      await migrate.endedWith(code);
      assert.equal((await migrate.waitFor("error")).guest_location, "source");
      await pair.console.untilBeats(10);
      await to.process.ended();
      await until(() => !pair.hasQemu(to.name), () => "the QEMU that waited has ended");
    });
  }
  await t.step("SIGKILL of the destination's gyges, then a move of what nobody holds", async () => {
    const to = await pair.prepare({ args: NATIVE });
    const migrate = pair.host.start(["migrate", to.ticket, "--vm", home.name, ...SLOW]);
    await to.process.reached("precopy");
    to.process.signal("SIGKILL");
    await migrate.endedWith(10);
    await pair.console.untilBeats(10);
    home.process.signal("SIGKILL");
    await home.process.ended();
    const next = await pair.prepare();
    const qmp = pair.host.monitorOf(home.name);
    await pair.host.start(["migrate", next.ticket, "--qmp", qmp, "--mode", "full"]).endedWith(0);
    pair.console.moveTo(next.log);
    await pair.proved();
    await until(() => !pair.hasQemu(home.name), () => "the source's QEMU has ended");
  });
});

Deno.test("native pager: a link that is cut in post-copy heals, and the guest arrives whole", async () => {
  await using pair = await QemuPair.open(SMALL);
  const home = await pair.start(NATIVE);
  await pair.moveOverCutLink(home, await pair.prepare(), SLOW_AFTER, 500);
});

Deno.test("native pager: SIGKILL of the destination's QEMU in post-copy: the guest is lost, say both ends", async () => {
  await using pair = await QemuPair.open(SMALL);
  const home = await pair.start(NATIVE);
  const to = await pair.prepare({ args: NATIVE });
  const qemu = pair.qemuOf(to.name);
  const migrate = pair.host.start(["migrate", to.ticket, "--vm", home.name, ...SLOW_AFTER]);
  await migrate.reached("serving");
  await to.process.reached("running");
  Deno.kill(qemu, "SIGKILL");
  for (const process of [migrate, to.process]) {
    await process.endedWith(12);
    assert.equal((await process.waitFor("error")).guest_location, "lost");
  }
  await pair.host.start(["vm", "stop", home.name]).endedWith(0);
  await home.process.endedWith(0);
});
