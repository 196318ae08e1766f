/** The micro-VM moves by the kernel pager over soft-RoCE. */
import assert from "node:assert/strict";
import { KERNELS, labTest } from "./lab.ts";
import { account, move, prepareAt, proveWhole, startGuest } from "./moves.ts";

const KERNEL = ["--pager", "kernel"];
const RDMA = { rdma: true, gyges: true, vcpus: 2 } as const;

for (const kernel of KERNELS) {
  labTest("the kernel pager moves a guest in full mode, and back in hybrid mode", { kernel, ...RDMA }, async (lab) => {
    const [one, two] = [lab.host(1), lab.host(2)];
    const guest = await startGuest(one, [...KERNEL, "--ram", "64M", "--irqchip"]);
    const there = await prepareAt(two, "there", KERNEL);
    const full = await account(`${kernel}, full`, guest, there, move(one, guest, there, ["--mode", "full"]));
    assert.equal(full.duplicate_pages, 0);

    const back = await prepareAt(one, "back", KERNEL);
    const hybrid = move(two, there, back, ["--mode", "hybrid", "--precopy-timeout", "2s"]);
    await proveWhole(one, back, await account(`${kernel}, hybrid`, there, back, hybrid));
  });
}
