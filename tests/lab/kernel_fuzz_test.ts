/** Orders to the kernel pager that nobody would give. GYGES_FUZZ_SEED=N repeats a run. */
import assert from "node:assert/strict";
import { KERNELS, labTest } from "./lab.ts";

const ORDERS = 100_000;
const MODULE = { rdma: true, gyges: true } as const;

for (const kernel of KERNELS) {
  // What the kernel thinks of it is looked at when the lab ends, and whether the module can be unloaded.
  labTest("a hundred thousand senseless orders do no harm", { kernel, ...MODULE }, async (lab) => {
    const host = lab.host(1);
    const seed = Deno.env.get("GYGES_FUZZ_SEED") ?? String(crypto.getRandomValues(new Uint32Array(1))[0]);
    console.log(`lab: ${kernel}: GYGES_FUZZ_SEED=${seed}`);
    const command = `${await lab.program("fuzz")} /run/gyges/ram ${host.address} ${seed} ${ORDERS}`;
    const words = await host.ask(command, { timeoutMs: 180_000 });
    const [, given, obeyed] = /given=(\d+) obeyed=(\d+)/.exec(words) ?? [];
    assert.equal(Number(given), ORDERS);
    assert.ok(Number(obeyed) > ORDERS / 100, `only ${obeyed} were obeyed: states that matter were not reached`);
  });
}
