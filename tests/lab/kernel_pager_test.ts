/** The kernel pager by itself: RAM files in two hosts, joined by RDMA. */
import assert from "node:assert/strict";
import { until } from "../helpers/host.ts";
import { KERNELS, labTest } from "./lab.ts";
import { arm, join, proveComplete, STAMP } from "./ram.ts";

const PAGES = 2048;

for (const kernel of KERNELS) {
  labTest("touched pages are READ from the other host, each once", { kernel, rdma: true, gyges: true }, async (lab) => {
    const { source, destination } = await join(lab, { pages: PAGES, filled: "0-1023,1500" });
    await destination.do("prefetch off 0 0 0");
    await arm(destination, "0-1023,1500");
    await destination.do("run");
    const check = await destination.figures(`check all ${STAMP}`);
    assert.deepEqual(check, { right: 1025, zero: 1023, wrong: 0, first_bad: 1024 });
    const figures = await proveComplete(destination, 1025);
    assert.equal(figures.demand_faults, 1025);
    assert.equal((await source.figures("state")).exporting, 1);
    await source.remove();
    await destination.remove();
  });

  labTest("threads touch pages at random while prefetch runs", { kernel, rdma: true, gyges: true }, async (lab) => {
    const { source, destination } = await join(lab, { pages: PAGES });
    const other = await destination.another("other");
    await destination.do(`prefetch on 8 0 ${2 << 20}`);
    await arm(destination, "all");
    // So few that they cannot reach all pages before prefetch has begun, as fast as they may be.
    const touches = [destination.figures(`touch 8 100 1 ${STAMP}`), other.figures(`touch 8 100 2 ${STAMP}`)];
    await destination.do("run");
    for (const { wrong } of await Promise.all(touches)) assert.equal(wrong, 0);
    const figures = await proveComplete(destination, PAGES);
    assert.ok((figures.demand_faults ?? 0) > 100 && (figures.prefetched_pages ?? 0) > 100, JSON.stringify(figures));
    assert.equal(figures.demand_reads, (figures.demand_faults ?? 0) - (figures.joined_faults ?? 0));
    assert.deepEqual(await destination.figures(`check all ${STAMP}`), {
      right: PAGES,
      zero: 0,
      wrong: 0,
      first_bad: -1,
    });
    await other.close();
    await source.remove();
    await destination.remove();
  });

  labTest(
    "who gave the orders at either end may die, and all pages come",
    { kernel, rdma: true, gyges: true },
    async (lab) => {
      const { source, destination } = await join(lab, { pages: PAGES });
      const [guest, vm] = [await source.another("guest"), await destination.another("vm")];
      await destination.do(`prefetch on 1 0 ${1 << 20}`);
      await arm(destination, "all");
      await destination.do("run");
      await destination.kill();
      await source.kill();
      assert.ok(((await vm.figures("state")).missing ?? 0) > 0, "nothing was left to come");
      assert.equal((await guest.figures("state")).read, 0);
      await proveComplete(vm, PAGES);
      const whole = { right: PAGES, zero: 0, wrong: 0, first_bad: -1 };
      assert.deepEqual(await vm.figures(`check all ${STAMP}`), whole);
      // The kernels settle between them that all is over, since nobody else is left who would.
      await until(async () => (await guest.figures("state")).read === 1, () => "no farewell was heard");
      // The export is the file's, and ends when nobody has it any more.
      assert.equal((await guest.figures("state")).exporting, 1);
      await guest.close();
      const again = await guest.another("again");
      assert.equal((await again.figures("state")).exporting, 0);
      assert.deepEqual(await again.figures(`check all ${STAMP}`), whole);
      await again.remove();
      await vm.remove();
    },
  );
}
