/** A guest of stock QEMU under KVM moves by the user pager, there and back, and proves its own memory; with controls. */
import assert from "node:assert/strict";
import { needsKvm } from "../helpers/kvm.ts";
import { proveLostWriteIsFound, proveZeroPageIsFound } from "./controls.ts";
import { account, QemuPair, type Shape } from "./pair.ts";
import { ramFileOf, readPage, stampedPages, writePage } from "./stamps.ts";
import { movedStopped, stopped } from "./stopped.ts";

/** Its memory comes while it works, much of it because it asks for it. */
const FULL = ["--mode", "full", "--bandwidth", "16MiB/s"];
const SHAPES: [about: string, shape: Shape][] = [
  ["QEMU 7.2, pc, 1 vCPU, some writes", { guest: "ring0", qemu: "7.2", rate: 800 }],
  ["QEMU 10.0, q35, 2 vCPUs, some writes", { guest: "ring0", qemu: "10.0", machine: "q35", vcpus: 2 }],
  ["QEMU 7.2, pc, 2 vCPUs, in ring 3 all the writes they can", { guest: "ring3", qemu: "7.2", vcpus: 2 }],
  ["QEMU 10.0, q35, 1 vCPU, in ring 3 all the writes it can", { guest: "ring3", qemu: "10.0", machine: "q35" }],
];
/** Without the clock that KVM writes into RAM for firmware, also while all is loaded and no vCPU has run. */
const NO_CLOCK = ["-cpu", "qemu64,kvmclock=off"];

for (const [name, shape] of SHAPES) {
  needsKvm(`user pager under KVM: full there, hybrid back: ${name}`, async () => {
    await using pair = await QemuPair.open(shape);
    const home = await pair.start();
    const away = await pair.prepare();
    const there = await pair.move(home, away, FULL);
    await pair.proved();
    console.log(`  ${name}: ${account(there)}`);
    assert.ok(there.postcopy_pages > 1000, "its memory came after it");
    assert.ok(there.demand_faults > 20, "it waited for some");
    const last = await pair.prepare();
    const back = await pair.move(away, last, ["--precopy-timeout", "2s"]);
    await pair.proved();
    console.log(`  ${name}: ${account(back)}, largest gap by its clock ${pair.console.largestGapMs} ms`);
    assert.ok(back.precopy_rounds > 0 && back.precopy_pages > 0 && back.postcopy_pages > 0);
    await pair.host.start(["vm", "stop", last.name]).endedWith(0);
    await pair.console.untilEnded();
    pair.console.failIfCorrupt();
  });
}

for (
  const [mode, shape] of [
    ["full", { guest: "ring3", qemu: "7.2" }],
    ["hybrid", { guest: "ring3", qemu: "10.0", machine: "q35", vcpus: 2 }],
  ] satisfies [string, Shape][]
) {
  needsKvm(
    `a guest under KVM that is stopped moves, ${mode}, by QEMU ${shape.qemu}, and all of its RAM is as it was`,
    async () => {
      await using pair = await QemuPair.open({ ...shape, extra: NO_CLOCK });
      assert.deepEqual(await movedStopped(pair, await stopped(pair), ["--mode", mode]), []);
      await pair.proved();
    },
  );
}

needsKvm("control: a page that comes as zeros is found by a guest under KVM", async () => {
  await proveZeroPageIsFound({ guest: "ring3" });
});

needsKvm("control: a page whose last write is not sent is found by a guest under KVM", async () => {
  await proveLostWriteIsFound({ guest: "ring0", rate: 1000 });
});

needsKvm("control: a page that is torn is found by a guest under KVM", async () => {
  await using pair = await QemuPair.open({ guest: "ring3", qemu: "10.0" });
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
