/** The user pager over RDMA: one-sided READs from user space, over soft-RoCE. */
import assert from "node:assert/strict";
import { KERNELS, labTest } from "./lab.ts";
import { account, move, prepareAt, proveWhole, startGuest } from "./moves.ts";

const USER = ["--pager", "user"];
const RDMA = { rdma: true } as const;

for (const kernel of KERNELS) {
  labTest(
    "the user pager moves a guest by RDMA in full mode, and back in hybrid mode",
    { kernel, ...RDMA },
    async (lab) => {
      const [one, two] = [lab.host(1), lab.host(2)];
      const [guest, there] = await Promise.all([startGuest(one, USER), prepareAt(two, "there", USER)]);
      const full = await account(`${kernel}, full`, guest, there, move(one, guest, there, ["--mode", "full"]));
      assert.deepEqual([full.pager, full.transport], ["user", "rdma"]);

      const back = await prepareAt(one, "back", USER);
      const hybrid = move(two, there, back, ["--mode", "hybrid", "--precopy-timeout", "2s", "--transport", "rdma"]);
      const summary = await account(`${kernel}, hybrid`, there, back, hybrid);
      assert.equal(summary.transport, "rdma");
      await proveWhole(one, back, summary);
    },
  );
}
