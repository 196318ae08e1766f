/** Guests of stock QEMU move by the user pager, there and back, and prove their own memory; with controls. */
import assert from "node:assert/strict";
import { sharedMappings } from "../../lib/qemu/guest_ram.ts";
import { account, QemuPair, type Shape } from "./pair.ts";
import { stampedPages } from "./stamps.ts";

const PAGE_BYTES = 4096;
const TWO_NODES = [
  ...[
    "-object",
    "memory-backend-ram,id=left,size=64M",
    "-object",
    "memory-backend-memfd,id=right,size=128M,prealloc=on",
  ],
  ...["-numa", "node,memdev=left", "-numa", "node,memdev=right"],
];
const SANDBOX = ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"];
const SHAPES: [about: string, shape: Shape][] = [
  ["QEMU 7.2, pc, 1 vCPU, some writes, two NUMA nodes, one preallocated, in a sandbox", {
    qemu: "7.2",
    machine: "pc",
    rate: 8000,
    extra: [...TWO_NODES, ...SANDBOX],
  }],
  ["QEMU 10.0, q35, 2 vCPUs, all the writes it can, 4 GiB around the PCI hole, a disk past all caches", {
    qemu: "10.0",
    machine: "q35",
    memory: "4G",
    vcpus: 2,
    rate: 0,
    withDisk: true,
  }],
];

for (const [name, shape] of SHAPES) {
  Deno.test(`user pager: full there, hybrid back: ${name}`, async () => {
    await using pair = await QemuPair.open(shape);
    const home = await pair.start();
    const away = await pair.prepare();
    const there = await pair.move(home, away, ["--mode", "full"]);
    await pair.proved();
    console.log(`  ${name}: ${account(there)}`);
    assert.ok(there.postcopy_pages > 10_000, "its memory came after it");
    if (shape.withDisk) assert.ok((pair.console.last?.disk ?? 0) > 0, "its disk is in use");
    const back = await pair.move(away, await pair.prepare(), ["--precopy-timeout", "2s"]);
    await pair.proved();
    console.log(`  ${name}: ${account(back)}, largest gap in all ${Math.round(pair.console.largestSeenGapMs)} ms`);
    // No memory was copied while the guest stood still: what it had dirtied last came after it.
    assert.ok(back.precopy_rounds > 0 && back.precopy_pages > 0 && back.postcopy_pages > 0);
  });
}

Deno.test("control: a page that comes as zeros is found by the guest", async () => {
  await using pair = await QemuPair.open({ rate: 8000 });
  const home = await pair.start();
  const page = stampedPage(pair.qemuOf(home.name));
  const to = await pair.prepare({ env: { GYGES_INJECT: `zero-page@${page}` } });
  await pair.move(home, to, ["--mode", "full"]);
  await pair.console.untilCorrupt();
  assert.match(pair.console.corruptions[0] ?? "", /zero$/);
});

Deno.test("control: a page whose last write is not sent is found by the guest", async () => {
  // So slow that the page is hardly written again before the stop, when its loss would be mended.
  await using pair = await QemuPair.open({ workingSet: "32M", rate: 4000 });
  const home = await pair.start();
  const page = stampedPage(pair.qemuOf(home.name));
  const to = await pair.prepare();
  // The source's side runs in the process that holds the guest, so here in one that has the fault armed.
  await home.process[Symbol.asyncDispose]();
  const qmp = `${pair.host.runtimeDir}/${home.name}/qmp.sock`;
  const migrate = pair.host.start(
    ["migrate", to.ticket, "--qmp", qmp, "--precopy-timeout", "1s", "--switch-threshold", "1ms"],
    { env: { GYGES_INJECT: `skip-dirty@${page}` } },
  );
  await migrate.endedWith(0);
  pair.console.moveTo(to.log);
  await pair.console.untilCorrupt();
  assert.match(pair.console.corruptions[0] ?? "", /stale$/);
});

/** A page of the guest's working set. */
function stampedPage(qemu: number): number {
  const mapping = sharedMappings(Deno.readTextFileSync(`/proc/${qemu}/maps`)).find(({ bytes }) => bytes >= 64 << 20);
  assert.ok(mapping);
  const pages = stampedPages(`/proc/${qemu}/map_files/${mapping.first}`);
  // Not the first: that may just be being rewritten.
  const page = pages[1000];
  assert.ok(page);
  return page.offset / PAGE_BYTES;
}
