/** The module is loaded and unloaded, with traffic between, and leaves nothing behind in the kernel. */
import assert from "node:assert/strict";
import { basename } from "node:path";
import type { LabHost } from "./host.ts";
import { KERNELS, type KernelVersion, type Lab, labTest } from "./lab.ts";
import { gygesModule } from "./module.ts";

const FOLDER = "/run/gyges/ram";
const LOADS = 100;
/** It is counted before the loads, and after each of so many equal parts of them. */
const PARTS = 4;
/** Makes the kernel have what it takes of its own accord for what is done here. */
const WARM_UP = 20;
/** Emulation is slow, and slower on a busy machine. */
const PATIENCE_MS = 200_000;
/** Loads that leak on purpose. */
const LEAKING = 40;
/** GYGES_INJECT_LEAK of kernel/gyges_internal.h: each import leaves a bitmap of its pages behind. */
const LEAK = 16;
/** A bitmap of 512 bytes, which a slab has; and of 64 KiB, which is whole pages. */
const SMALL = 4096;
const LARGE = 524_288;

/** What a kernel holds. */
interface Count {
  /** Objects of each slab cache. */
  slabs: ReadonlyMap<string, number>;
  freeKib: number;
  /** Of RDMA: queue pairs, keys and the rest. */
  rdma: string;
}

/**
 * Nothing is held back by a processor: slabs give up what they keep for it, and the pages that it keeps are counted. These
 * are not in MemFree, and 6.7 and later let a processor keep tens of MiB.
 */
const COUNT = `for cache in /sys/kernel/slab/*/shrink; do echo 1 >$cache; done 2>/dev/null
  echo 3 >/proc/sys/vm/drop_caches
  rdma resource show
  awk '$1 == "MemFree:" { kib += $2 } $1 == "count:" { kib += 4 * $2 } END { print "free", kib }' /proc/meminfo /proc/zoneinfo
  cat /proc/slabinfo`;

async function count(host: LabHost): Promise<Count> {
  const text = await host.ask(COUNT);
  const slabs = new Map<string, number>();
  // Of which of its random siblings an object is says nothing.
  for (const [, name = "", objects] of text.matchAll(/^(\S+?)(?:-rnd-\d+)? +(\d+) +\d+ +\d+ .*: tunables/gm)) {
    slabs.set(name, (slabs.get(name) ?? 0) + Number(objects));
  }
  assert.ok(slabs.size > 50, `these are no slabs: ${text}`);
  return {
    slabs,
    freeKib: Number(/^free (\d+)$/m.exec(text)?.[1]),
    rdma: /^\d+: rxe0: .*$/m.exec(text)?.[0].trim() ?? "no device",
  };
}

/** Of what the host's own files come and go with. */
const OWN = /dentry|(?<!gyges_)inode/;

/** The least by which `of` grows from one count to the next: what a kernel keeps for a while comes and goes, a leak goes on. */
function growth(counts: readonly Count[], of: (count: Count) => number): number {
  return Math.min(...counts.slice(1).map((after, i) => of(after) - of(counts[i] ?? after)));
}

/** What there is more of at each count, `times` loads after the one before: nearly an object a load, or a page. */
function leaks(counts: readonly Count[], times: number): string[] {
  const [first, last] = [counts[0], counts.at(-1)];
  assert.ok(first && last);
  const found = [...last.slabs.keys()].filter((name) => !OWN.test(name)).flatMap((name) => {
    const more = growth(counts, ({ slabs }) => slabs.get(name) ?? 0);
    return more >= 0.9 * times ? [`${name}: ${more} objects more after each ${times} loads`] : [];
  });
  const less = growth(counts, ({ freeKib }) => -freeKib);
  if (less >= 4 * times) found.push(`${less} KiB less free memory after each ${times} loads`);
  if (last.rdma !== first.rdma) found.push(`of RDMA ${last.rdma} instead of ${first.rdma}`);
  return found;
}

interface Loads {
  times: number;
  /** Of each of the two files. @default SMALL */
  pages?: number;
  /** @default 0 */
  inject?: number;
}

/** Unloads the module, loads it and moves a file by it, so many times. What has leaked. */
async function loads(lab: Lab, kernel: KernelVersion, { times, pages = SMALL, inject = 0 }: Loads): Promise<string[]> {
  const host = lab.host(1);
  const module = `/run/lab/share/${basename(await gygesModule(kernel))}`;
  const program = await lab.program("loads");
  const command = `${program} ${module} inject=${inject} ${FOLDER} ${host.address} ${pages} ${times / PARTS}`;
  const counts = [await count(host)];
  while (counts.length <= PARTS) {
    await host.ask(command, { timeoutMs: PATIENCE_MS });
    counts.push(await count(host));
  }
  return leaks(counts, times / PARTS);
}

for (const kernel of KERNELS) {
  labTest("a hundred loads of the module, each with an import, leave nothing behind", {
    kernel,
    rdma: true,
    gyges: true,
  }, async (lab) => {
    await loads(lab, kernel, { times: WARM_UP });
    const start = performance.now();
    assert.deepEqual(await loads(lab, kernel, { times: LOADS }), []);
    console.log(`lab: ${kernel}: ${LOADS} loads in ${((performance.now() - start) / 1000).toFixed(1)} s (emulated)`);

    const small = (await loads(lab, kernel, { times: LEAKING, inject: LEAK })).join("\n");
    assert.match(small, /^kmalloc-cg-512: \d+ objects more/m);
    const large = (await loads(lab, kernel, { times: LEAKING, pages: LARGE, inject: LEAK })).join("\n");
    assert.match(large, /^\d+ KiB less free memory/m);
    console.log(`lab: ${kernel}: leaks on purpose: ${small}; ${large}`);
  });
}
