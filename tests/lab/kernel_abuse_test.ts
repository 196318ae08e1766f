/** What nobody should do to the kernel pager, and what it comes to; and two clones of one guest. */
import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";
import type { LabHost } from "./host.ts";
import { type Lab, labTest } from "./lab.ts";
import { arm, join, PHASE, proveComplete, RamFile, STAMP } from "./ram.ts";

const PAGES = 1024;
const MODULE = { rdma: true, gyges: true } as const;
const GROUP = "/sys/fs/cgroup/small";

/** struct gyges_region of the uapi header. */
interface Region {
  firstPage: bigint;
  remoteAddr: bigint;
  pages: number;
  rkey: number;
}

const REGION_BYTES = 24;

function regionsOf(digits: string): Region[] {
  const bytes = new Uint8Array((digits.match(/../g) ?? []).map((pair) => parseInt(pair, 16)));
  const view = new DataView(bytes.buffer);
  return Array.from({ length: bytes.length / REGION_BYTES }, (_, i) => ({
    firstPage: view.getBigUint64(i * REGION_BYTES, true),
    remoteAddr: view.getBigUint64(i * REGION_BYTES + 8, true),
    pages: view.getUint32(i * REGION_BYTES + 16, true),
    rkey: view.getUint32(i * REGION_BYTES + 20, true),
  }));
}

function digitsOf(regions: readonly Region[]): string {
  const view = new DataView(new ArrayBuffer(regions.length * REGION_BYTES));
  regions.forEach((region, i) => {
    view.setBigUint64(i * REGION_BYTES, region.firstPage, true);
    view.setBigUint64(i * REGION_BYTES + 8, region.remoteAddr, true);
    view.setUint32(i * REGION_BYTES + 16, region.pages, true);
    view.setUint32(i * REGION_BYTES + 20, region.rkey, true);
  });
  return [...new Uint8Array(view.buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Every page has its content, by way of the mapping. */
async function proveRight(file: RamFile, pages: number): Promise<void> {
  assert.deepEqual(await file.figures(`check all ${STAMP}`), { right: pages, zero: 0, wrong: 0, first_bad: -1 });
}

/** Tables that are wrong in themselves are refused, and the one that is set stays. */
async function refusesTables(lab: Lab): Promise<void> {
  const { source, destination } = await join(lab, { pages: PAGES, name: "table" });
  const [one, two] = regionsOf(await source.do("regions"));
  assert.ok(one && two, "the table has two regions");
  const wrong: Record<string, Region[]> = {
    "out of order": [two, one],
    overlap: [one, { ...two, firstPage: two.firstPage - 1n }],
    "longer than the file": [one, { ...two, pages: two.pages + 1 }],
    "beyond the file": [{ ...two, firstPage: BigInt(PAGES) }],
    "without pages": [one, { ...two, pages: 0 }],
    "at the end of all addresses": [{ ...one, remoteAddr: (1n << 64n) - 4096n }],
    "first page of 2^63": [{ ...one, firstPage: 1n << 63n }],
  };
  for (const table of Object.values(wrong)) await destination.refuses(`set-regions ${digitsOf(table)}`, "EINVAL");
  await destination.do(`set-regions ${digitsOf([one])}`);
  await destination.refuses(`discard ${one.pages}`, "ERANGE");
  await destination.do(`set-regions ${digitsOf([one, two])}`);
  await arm(destination, "all");
  await destination.do("run");
  await proveComplete(destination, PAGES);
  await proveRight(destination, PAGES);
  await destination.refuses(`import ${source.host.address} 1 x 1000`, "EALREADY");
  await Promise.all([source.remove(), destination.remove()]);
}

/** Imports and exports that do not go together, and a token that is not the export's. */
async function refusesPartners(lab: Lab): Promise<void> {
  const { source, destination, port, token } = await join(lab, { pages: PAGES, name: "partner" });
  const there = `import ${source.host.address} ${port}`;
  await destination.refuses(`${there} ${token} 5000`, "EBUSY");
  await destination.refuses(`export ${destination.host.address} ${token}`, "EBUSY");
  await source.refuses(`${there} ${token} 5000 overwrite`, "EBUSY");
  await source.refuses(`export ${source.host.address} ${token}`, "EBUSY");
  await source.refuses("punch 0 1", "EBUSY");

  const dirty = await RamFile.make(lab, lab.host(2), "partner-dirty", PAGES);
  await dirty.do("fill 0-9,1000 3");
  await dirty.refuses(`${there} ${token} 5000`, "ENOTEMPTY");
  await dirty.refuses(`${there} another 5000 overwrite`, "ECONNREFUSED");
  assert.equal((await dirty.figures("state")).phase, PHASE.none);
  assert.deepEqual(await dirty.do("present"), "0-9,1000");
  await dirty.do(`${there} ${token} 5000 overwrite`);
  await dirty.do(`set-regions ${await source.do("regions")}`);
  await arm(dirty, "0-999");
  await dirty.do("run");
  await proveComplete(dirty, 1000);
  // What it had of its own is gone, mapped or not, also where the source has nothing.
  assert.equal((await dirty.figures(`check 0-999 ${STAMP}`)).right, 1000);
  assert.equal((await dirty.figures("check 1000-1023 3")).zero, 24);
  await Promise.all([source.remove(), destination.remove(), dirty.remove()]);

  await lab.host(1).ask(": >/run/gyges/ram/empty");
  const empty = await RamFile.make(lab, lab.host(1), "empty", 0);
  await empty.refuses(`export ${lab.host(1).address} ${token}`, "EINVAL");
  await empty.refuses("dirty-start", "EINVAL");
  await empty.remove();
}

/** READs that the source's device refuses take the link down; with the right key the import goes on. */
async function survivesWrongKey(lab: Lab): Promise<void> {
  const { source, destination, port, token } = await join(lab, { pages: PAGES, name: "key" });
  const right = await source.do("regions");
  const [one, two] = regionsOf(right);
  assert.ok(one && two, "the table has two regions");
  await destination.do(`set-regions ${digitsOf([one, { ...two, rkey: two.rkey ^ 0x100 }])}`);
  await arm(destination, "all");
  await destination.do("run");
  const lost = await destination.figures("await link 0 30000");
  assert.deepEqual([lost.phase, lost.error], [PHASE.running, -121], JSON.stringify(lost));
  assert.ok((lost.missing ?? 0) >= 512, JSON.stringify(lost));
  await destination.do(`set-regions ${right}`);
  await destination.do(`import ${source.host.address} ${port} ${token} 5000`);
  const { failed_reads = 0 } = await proveComplete(destination, PAGES);
  assert.ok(failed_reads > 0);
  await proveRight(destination, PAGES);
  await Promise.all([source.remove(), destination.remove()]);
}

/** Two private mappings of one import: a page is READ once for both, and what one writes the other never sees. */
async function sharesClones(lab: Lab): Promise<void> {
  const { source, destination } = await join(lab, { pages: PAGES, name: "clone" });
  const [one, two] = await Promise.all(
    ["clone-1", "clone-2"].map((name) => destination.another(name, { clone: true })),
  );
  assert.ok(one && two);
  await destination.do("prefetch off 0 0 0");
  await arm(destination, "all");
  await destination.do("run");
  const looks = await Promise.all([one, two].map((clone) => clone.figures(`check 0-511 ${STAMP}`)));
  assert.deepEqual(looks.map(({ right }) => right), [512, 512]);
  // Pages that nobody has looked at are written to first.
  await Promise.all([one.do("fill 256-767 21"), two.do("fill 512-1023 22")]);
  const { demand_faults } = await proveComplete(destination, PAGES);
  assert.equal(demand_faults, PAGES);
  const right = async (file: RamFile, set: string, stamp: number) =>
    (await file.figures(`check ${set} ${stamp}`)).right;
  assert.deepEqual(
    await Promise.all([right(one, "256-767", 21), right(one, "0-255,768-1023", STAMP), right(two, "512-1023", 22)]),
    [512, 512, 512],
  );
  assert.equal(await right(two, "0-511", STAMP), 512);
  await proveRight(destination, PAGES);
  await Promise.all([one.close(), two.close()]);
  await Promise.all([source.remove(), destination.remove()]);
}

function limit(host: LabHost, bytes: string): Promise<string> {
  return host.ask(`echo ${bytes} >${GROUP}/memory.max`);
}

async function killed(host: LabHost): Promise<number> {
  return Number(await host.ask(`sed -n 's/^oom_kill //p' ${GROUP}/memory.events`));
}

/** Prefetch that finds no memory waits for it and kills nobody; pages that it brought are not dropped. */
async function waitsForMemory(lab: Lab): Promise<void> {
  const [pages, host] = [4096, lab.host(2)];
  const { source, destination } = await join(lab, { pages, name: "short", group: GROUP });
  // What answers must not want memory of the group that has none.
  const watcher = await destination.another("watcher");
  await limit(host, "8M");
  await arm(watcher, "all");
  await watcher.do("run");
  let missing = pages, before;
  do {
    before = missing;
    await pause(1_000);
    missing = (await watcher.figures("state")).missing ?? 0;
  } while (missing !== before);
  assert.ok(missing > pages / 4 && missing < pages, `${missing} pages are missing`);
  assert.equal(await killed(host), 0);
  await limit(host, "max");
  await proveComplete(watcher, pages);
  await host.ask("echo 3 >/proc/sys/vm/drop_caches");
  await proveRight(watcher, pages);
  await watcher.close();
  await Promise.all([source.remove(), destination.remove()]);
}

/** A guest that touches more than its group may have is killed like any other process; what is left goes with its file. */
async function diesOfMemory(lab: Lab): Promise<void> {
  const [pages, host] = [4096, lab.host(2)];
  await limit(host, "8M");
  const { source, destination } = await join(lab, { pages, name: "dying", group: GROUP });
  await destination.do("prefetch off 0 0 0");
  await arm(destination, "all");
  await destination.do("run");
  assert.notEqual((await destination.try(`check all ${STAMP}`)).stdout.includes("right"), true);
  assert.equal(await killed(host), 1);
  await Promise.all([source.remove(), destination.remove()]);
  const left = Number(await host.ask(`sed -n 's/^file //p' ${GROUP}/memory.stat`));
  assert.ok(left < 1 << 20, `${left} bytes are still charged`);
}

async function staysWhileMounted(host: LabHost): Promise<void> {
  const { code, stdout, stderr } = await host.run("rmmod gyges");
  assert.notEqual(code, 0);
  assert.match(stdout + stderr, /in use|busy|temporarily unavailable/i);
  await host.ask("grep -q '^gyges .* Live ' /proc/modules && test -d /run/gyges/ram");
}

labTest("what nobody should do to the kernel pager does no harm", { kernel: "6.12", ...MODULE }, async (lab) => {
  await refusesTables(lab);
  await refusesPartners(lab);
  await survivesWrongKey(lab);
  await sharesClones(lab);
  await lab.host(2).ask(
    `mount -t cgroup2 none /sys/fs/cgroup && echo +memory >/sys/fs/cgroup/cgroup.subtree_control && mkdir ${GROUP}`,
  );
  await waitsForMemory(lab);
  await diesOfMemory(lab);
  await staysWhileMounted(lab.host(1));
});
