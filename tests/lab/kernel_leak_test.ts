/** The module is loaded and unloaded, with traffic between, and leaves nothing behind in the kernel. */
import assert from "node:assert/strict";
import { basename } from "node:path";
import { KERNELS, type KernelVersion, type Lab, labTest } from "./lab.ts";
import { count, leaks } from "./leaks.ts";
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
