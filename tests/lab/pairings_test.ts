/** A kernel pager at one end and a user pager at the other: over RDMA they speak the same. */
import assert from "node:assert/strict";
import type { PagerKind } from "../../lib/options.ts";
import { KERNELS, type KernelVersion, type Lab, labTest } from "./lab.ts";
import { account, move, prepareAt, proveWhole, startGuest } from "./moves.ts";

const RDMA = { rdma: true, gyges: true } as const;
const PAIRINGS: readonly [source: PagerKind, destination: PagerKind][] = [["kernel", "user"], ["user", "kernel"]];

/** There in full mode, with the other pager, and back in hybrid mode, so that each pairing moves in both modes. */
async function thereAndBack(lab: Lab, kernel: KernelVersion, [from, to]: [PagerKind, PagerKind]): Promise<void> {
  const [one, two] = [lab.host(1), lab.host(2)];
  const guest = await startGuest(one, ["--pager", from, "--irqchip"]);
  const there = await prepareAt(two, "there", ["--pager", to]);
  const full = await account(
    `${kernel}, ${from} to ${to}, full`,
    guest,
    there,
    move(one, guest, there, ["--mode", "full"]),
  );
  assert.deepEqual([full.pager, full.transport], [to, "rdma"]);
  assert.ok(full.zero_pages > 0, "pages that nobody touched are known to be zero");

  const back = await prepareAt(one, "back", ["--pager", from]);
  const migrate = move(two, there, back, ["--mode", "hybrid", "--precopy-timeout", "2s"]);
  const hybrid = await account(`${kernel}, ${to} to ${from}, hybrid`, there, back, migrate);
  assert.deepEqual([hybrid.pager, hybrid.transport], [from, "rdma"]);
  await proveWhole(one, back, hybrid);
}

for (const kernel of KERNELS) {
  for (const [from, to] of PAIRINGS) {
    labTest(`a guest moves from a ${from} pager to a ${to} pager, and back`, { kernel, ...RDMA }, async (lab) => {
      await thereAndBack(lab, kernel, [from, to]);
    });
  }
}
