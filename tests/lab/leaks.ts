/** What a kernel holds, counted, and what of it is never given back. */
import assert from "node:assert/strict";
import type { LabHost } from "./host.ts";

/** What a kernel holds. */
export interface Count {
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

export async function count(host: LabHost): Promise<Count> {
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

/**
 * Of what the host's own files come and go with; and of addresses that were vmalloc's, which a kernel gives up by the tens of
 * MiB: a leak of those is one of memory too.
 */
const OWN = /dentry|(?<!gyges_)inode|^vmap_area$/;

/** The least by which `of` grows from one count to the next: what a kernel keeps for a while comes and goes, a leak goes on. */
function growth(counts: readonly Count[], of: (count: Count) => number): number {
  return Math.min(...counts.slice(1).map((after, i) => of(after) - of(counts[i] ?? after)));
}

/**
 * What there is more of at each count, `times` times of something after the one before: nearly an object each time, or a
 * page.
 */
export function leaks(counts: readonly Count[], times: number): string[] {
  const [first, last] = [counts[0], counts.at(-1)];
  assert.ok(first && last);
  const found = [...last.slabs.keys()].filter((name) => !OWN.test(name)).flatMap((name) => {
    const more = growth(counts, ({ slabs }) => slabs.get(name) ?? 0);
    return more >= 0.9 * times ? [`${name}: ${more} objects more each ${times} times`] : [];
  });
  const less = growth(counts, ({ freeKib }) => -freeKib);
  if (less >= 4 * times) found.push(`${less} KiB less free memory each ${times} times`);
  if (last.rdma !== first.rdma) found.push(`of RDMA ${last.rdma} instead of ${first.rdma}`);
  return found;
}
