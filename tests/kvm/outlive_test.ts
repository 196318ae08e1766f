/** Errors that nobody catches, in the processes that have the guest: each is told, and the guest and its move go on. */
import type { GygesProcess } from "../helpers/gyges_process.ts";
import { kvmTest } from "../helpers/kvm.ts";
import { finished, prepare, startGuest, startMove } from "../helpers/pair.ts";
import { proveGuest, proveSummary } from "../helpers/proof.ts";

/** Later than it has started, whatever else goes on. */
const LATER = { env: { GYGES_INJECT: "uncaught@2000" } };

async function bothTold(process: GygesProcess): Promise<void> {
  for (const words of ["rejected on purpose", "thrown on purpose"]) {
    await process.waitFor("note", ({ detail }) => detail.startsWith("Internal error") && detail.includes(words));
  }
}

kvmTest(
  "an error that nobody catches ends neither the process that holds the guest nor the one that waits",
  async (host) => {
    const [source, destination] = await Promise.all([
      startGuest(host, "src", [], LATER),
      prepare(host, "dst", [], LATER),
    ]);
    await Promise.all([bothTold(source.process), bothTold(destination.process)]);
    const migrate = startMove(host, source, destination.ticket, ["--mode", "hybrid", "--precopy-timeout", "300ms"]);
    proveSummary(await finished(source, destination, await migrate.endedWith(0)));
    await proveGuest(host, destination);
    host.assertEmpty();
  },
);

kvmTest("nor does one while memory is on its way", async (host) => {
  const [source, destination] = await Promise.all([
    startGuest(host, "src", [], LATER),
    prepare(host, "dst", [], LATER),
  ]);
  const migrate = startMove(host, source, destination.ticket, ["--mode", "full", "--bandwidth", "64Mbit"]);
  await destination.process.reached("running");
  await Promise.all([bothTold(source.process), bothTold(destination.process)]);
  proveSummary(await finished(source, destination, await migrate.endedWith(0)));
  await proveGuest(host, destination);
  host.assertEmpty();
});
