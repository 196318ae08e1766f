/** A guest of stock QEMU under KVM moves by the user pager, there and back, and proves its own memory; with controls. */
import assert from "node:assert/strict";
import { needsKvm } from "../helpers/kvm.ts";
import { proveLostWriteIsFound, proveZeroPageIsFound } from "./controls.ts";
import { account, QemuPair, type Shape } from "./pair.ts";
import { ramFileOf, readPage, stampedPages, writePage } from "./stamps.ts";
import { movedStopped, stopped } from "./stopped.ts";

/** Its memory comes while it works, much of it because it asks for it. */
const FULL = ["--mode", "full", "--bandwidth", "8MiB/s"];
const SHAPES: [about: string, shape: Shape, stoppedMode: string][] = [
  ["QEMU 7.2, pc, 1 vCPU, some writes", { guest: "ring0", qemu: "7.2", rate: 800 }, "full"],
  ["QEMU 10.0, q35, 2 vCPUs, all the writes they can", {
    guest: "ring0",
    qemu: "10.0",
    machine: "q35",
    workingSet: "8M",
    vcpus: 2,
    rate: 0,
  }, "hybrid"],
];
/** The firmware's clock, which KVM writes into RAM when a vCPU is let run, or is about to be. */
const NO_CLOCK = ["-cpu", "qemu64,kvmclock=off"];

for (const [name, shape, stoppedMode] of SHAPES) {
  needsKvm(`user pager under KVM: full there, hybrid back: ${name}`, async () => {
    await using pair = await QemuPair.open(shape);
    const home = await pair.start();
    const away = await pair.prepare();
    const there = await pair.move(home, away, FULL);
    await pair.proved();
    console.log(`  ${name}: ${account(there)}`);
    assert.ok(there.postcopy_pages > 1000, "its memory came after it");
    assert.ok(there.demand_faults > 50, "it waited for some");
    const back = await pair.move(away, await pair.prepare(), ["--precopy-timeout", "2s"]);
    await pair.proved();
    console.log(`  ${name}: ${account(back)}, largest gap in all ${Math.round(pair.console.largestSeenGapMs)} ms`);
    assert.ok(back.precopy_rounds > 0 && back.precopy_pages > 0 && back.postcopy_pages > 0);
  });

  needsKvm(
    `under KVM a guest that is stopped moves, and all of its RAM is as it was: ${stoppedMode}: ${name}`,
    async () => {
      await using pair = await QemuPair.open({ ...shape, extra: NO_CLOCK });
      assert.deepEqual(await movedStopped(pair, await stopped(pair), ["--mode", stoppedMode]), []);
      await pair.proved();
    },
  );
}

needsKvm("control: a page that comes as zeros is found by a guest under KVM", async () => {
  await proveZeroPageIsFound({ guest: "ring0" });
});

needsKvm("control: a page whose last write is not sent is found by a guest under KVM", async () => {
  await proveLostWriteIsFound({ guest: "ring0", rate: 200 });
});

needsKvm("control: a page that is torn is found by a guest under KVM", async () => {
  await using pair = await QemuPair.open({ guest: "ring0", qemu: "10.0" });
  const { name } = await stopped(pair);
  const ram = ramFileOf(pair.qemuOf(name));
  const page = stampedPages(ram)[100];
  assert.ok(page);
  writePage(ram, page.offset, readPage(ram, page.offset).fill(0, 4092));
  await pair.order(name, "cont");
  await pair.console.untilCorrupt();
  const { version } = page;
  assert.deepEqual(pair.console.corruptions, [`CORRUPT page=${page.page} want=${version} got=${version} torn`]);
});
