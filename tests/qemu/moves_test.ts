/** Guests of stock QEMU move by the user pager, there and back, and prove their own memory; with controls. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { until } from "../helpers/host.ts";
import { testOrSkip } from "../helpers/skips.ts";
import { proveLostWriteIsFound, proveZeroPageIsFound } from "./controls.ts";
import { account, type Held, QemuPair, type Shape, type Waiting } from "./pair.ts";
import { noSlowDisk, SlowDisk } from "./slow_disk.ts";

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
  [
    "QEMU 7.2 without privilege, pc, 1 vCPU, some writes, two NUMA nodes, one preallocated, in a sandbox, disk and network",
    {
      asNobody: "started",
      qemu: "7.2",
      machine: "pc",
      rate: 8000,
      withDisk: true,
      withNetwork: true,
      extra: [...TWO_NODES, ...SANDBOX],
    },
  ],
  ["QEMU 10.0 without privilege, q35, 2 vCPUs, all the writes it can, 4 GiB around the PCI hole, disk and network", {
    asNobody: "changes",
    qemu: "10.0",
    machine: "q35",
    memory: "4G",
    vcpus: 2,
    rate: 0,
    withDisk: true,
    withNetwork: true,
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
    assert.ok((pair.console.last?.disk ?? 0) > 0, "its disk is in use");
    const back = await pair.move(away, await pair.prepare(), ["--precopy-timeout", "2s"]);
    await pair.proved();
    console.log(`  ${name}: ${account(back)}, largest gap in all ${Math.round(pair.console.largestSeenGapMs)} ms`);
    // No memory was copied while the guest stood still: what it had dirtied last came after it.
    assert.ok(back.precopy_rounds > 0 && back.precopy_pages > 0 && back.postcopy_pages > 0);
  });
}

/** It gives memory back all the time, which QEMU takes at once. */
const BALLOONED = {
  qemu: "10.0",
  memory: "256M",
  workingSet: "32M",
  rate: 8000,
  balloon: "free-page-reporting=on",
} as const;
const SMALL_MIB = 144;

Deno.test("user pager: a guest whose balloon was inflated before and is deflated after, and gives pages back meanwhile", async () => {
  await using pair = await QemuPair.open(BALLOONED);
  let holder = await pair.start();
  const { console } = pair;
  for (const args of [["--mode", "full", "--bandwidth", "40MiB/s"], ["--precopy-timeout", "2s"]]) {
    await pair.leave(holder.name, SMALL_MIB);
    const to = await pair.prepare();
    await failsOverRdma(pair, holder, to);
    await pair.move(holder, to, args);
    const why = await to.process.waitFor("note", ({ detail }) => detail.startsWith("Pages move by"));
    assert.match(why.detail, /over TCP.*the guest's balloon reports free pages/);
    await pair.leave(to.name, 256);
    const visits = console.last?.visits ?? 0;
    await console.untilBeat("memory is used anew", (beat) => beat.visits > visits + 2);
    await pair.proved();
    holder = to;
  }
});

/** It would read what the guest has given back as it was; the guest stays, and the ticket stays good. */
async function failsOverRdma(pair: QemuPair, from: Held, to: Waiting): Promise<void> {
  const migrate = pair.host.start(["migrate", to.ticket, "--vm", from.name, "--transport", "rdma"]);
  const { events } = await migrate.endedWith(3);
  const error = events.at(-1);
  assert.ok(error?.type === "error");
  assert.match(error.message, /balloon reports free pages \(\/machine\/peripheral-anon\/.*--transport tcp/);
  assert.deepEqual(to.process.states, []);
}

Deno.test("control: a page that comes as zeros is found by the guest", () => proveZeroPageIsFound({ rate: 8000 }));

// It is slow, so that it seldom writes the page again.
Deno.test("control: a page whose last write is not sent is found by the guest", async () => {
  await proveLostWriteIsFound({ workingSet: "64M", rate: 600 });
});

/** Eight requests under way at any time, half of them reads into the guest's memory. */
const BUSY_DISK = { workingSet: "16M", rate: 200, withDisk: true, diskWorkers: 8 } as const;
const READS_PER_SECOND = 100;

testOrSkip("what a disk reads past all caches is not lost, but where scans are not drained", noSlowDisk(), async () => {
  assert.deepEqual(await moveWithBusyDisk({}), []);
  const found = await moveWithBusyDisk({ GYGES_INJECT: "undrained-scans@0" });
  console.log(`  with the rule off ${found.length} pages are damaged`);
  assert.ok(found.length > 0);
  for (const word of found) assert.match(word, /^CORRUPT blk=.* (kept|read)$/);
});

/** Moves a guest whose disk is busy and slow; what damage it has found when it powers off. */
async function moveWithBusyDisk(env: Record<string, string>): Promise<readonly string[]> {
  await using pair = await QemuPair.open(BUSY_DISK);
  const home = await pair.start();
  const to = await pair.prepare();
  using _slow = new SlowDisk(pair.qemuOf(home.name), join(pair.folder, "disk"), READS_PER_SECOND);
  await home.process[Symbol.asyncDispose]();
  const qmp = pair.host.monitorOf(home.name);
  const args = ["--switch-threshold", "1ms", "--precopy-timeout", "4s"];
  await pair.host.start(["migrate", to.ticket, "--qmp", qmp, ...args], { env }).endedWith(0);
  await until(() => !pair.hasQemu(home.name), () => "the source's QEMU has ended");
  pair.console.moveTo(to.log);
  await pair.host.start(["vm", "stop", to.name]).ended();
  await pair.console.untilEnded();
  return pair.console.corruptions;
}
