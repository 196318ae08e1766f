import assert from "node:assert/strict";
import type { Machine } from "../../lib/machine/machine.ts";
import { reportOfRun } from "../../lib/machine/report.ts";

type Report = ReturnType<Machine["report"]>;

const AT_STOP: Report = {
  running: true,
  vcpus: 1,
  ram_bytes: 2 ** 24,
  passes: 1,
  verified_pages: 1000,
  written_pages: 0,
  corrupt: 0,
  first_corrupt_page: null,
  largest_stall_ns: 2,
  clock_backsteps: 0,
};

/** A guest that gives each report once, and the last of them from then on. */
function guestOf(...reports: Report[]): Pick<Machine, "report"> & { asked: number } {
  return {
    asked: 0,
    report(): Report {
      return reports[Math.min(this.asked++, reports.length - 1)] ?? AT_STOP;
    },
  };
}

Deno.test("a guest that has not run since it was started is asked again once it has", async () => {
  const guest = guestOf(AT_STOP, AT_STOP, { ...AT_STOP, verified_pages: 1001, largest_stall_ns: 284 });
  assert.equal((await reportOfRun(guest)).largest_stall_ns, 284);
});

Deno.test("a guest that stands still, or gives no account, is asked once", async () => {
  for (const report of [{ ...AT_STOP, running: false }, { ...AT_STOP, verified_pages: null }]) {
    const guest = guestOf(report);
    assert.deepEqual(await reportOfRun(guest), report);
    assert.equal(guest.asked, 1);
  }
});

Deno.test("a guest that takes no step is not waited for long", async () => {
  assert.deepEqual(await reportOfRun(guestOf(AT_STOP)), AT_STOP);
});
