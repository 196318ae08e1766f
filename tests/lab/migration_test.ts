/** The user pager between two hosts: each with a kernel and a clock of its own, and a real link in between. */
import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";
import { stopGuest } from "../helpers/pair.ts";
import { proveReport } from "../helpers/proof.ts";
import { GygesHost } from "./gyges_host.ts";
import { KERNELS, type Lab, labTest } from "./lab.ts";
import { account, inPostcopy, move, prepareAt, proveRecovered, proveWhole, startGuest } from "./moves.ts";

/** Long enough for the link to be cut in the middle. */
const SLOW = ["--bandwidth", "20Mbit"];

for (const kernel of KERNELS) {
  labTest("a guest moves to the other host in full mode, and back in hybrid mode", { kernel }, async (lab) => {
    const [one, two] = [lab.host(1), lab.host(2)];
    const [guest, there] = await Promise.all([startGuest(one), prepareAt(two, "there")]);
    const full = await account(`${kernel}, full`, guest, there, move(one, guest, there, ["--mode", "full"]));
    assert.equal(full.transport, "tls");

    const back = await prepareAt(one, "back");
    const hybrid = move(two, there, back, ["--mode", "hybrid", "--precopy-timeout", "2s"]);
    await proveWhole(one, back, await account(`${kernel}, hybrid`, there, back, hybrid));
  });
}

labTest("a link cut before the commit point leaves the guest at the source", { kernel: "6.12" }, async (lab) => {
  const [one, two] = [lab.host(1), lab.host(2)];
  const [guest, lost] = await Promise.all([startGuest(one), prepareAt(two, "lost")]);
  const migrate = move(one, guest, lost, ["--mode", "hybrid", "--precopy-timeout", "60s", ...SLOW]);
  await migrate.reached("precopy");
  await pause(500);
  await lab.cut();
  const { events } = await migrate.endedWith(10);
  const error = events.at(-1);
  assert.ok(error?.type === "error");
  assert.equal(error.guest_location, "source");
  await lab.heal();
  assert.notEqual((await lost.process.ended()).code, 0);
  const event = await stopGuest(new GygesHost(one), guest);
  proveReport(event);
});

labTest("a link cut after the commit point heals, short or long, and the guest arrives whole", { kernel: "6.1" }, cuts);

async function cuts(lab: Lab): Promise<void> {
  const [one, two] = [lab.host(1), lab.host(2)];
  const [guest, there] = await Promise.all([startGuest(one), prepareAt(two, "there")]);
  const migrate = move(one, guest, there, ["--mode", "full", ...SLOW]);
  await inPostcopy(migrate, there);
  await lab.cut();
  await pause(2_000);
  await lab.heal();
  await pause(1_000);
  await lab.cut();
  await Promise.all([migrate.reached("paused"), there.process.reached("paused")]);
  await lab.heal();
  const summary = await account("6.1, link cut twice", guest, there, migrate);
  proveRecovered(migrate);
  proveRecovered(there.process);
  await proveWhole(two, there, summary);
}

labTest("a source host that dies after the commit point leaves the guest waiting", { kernel: "6.12" }, async (lab) => {
  const [one, two] = [lab.host(1), lab.host(2)];
  const soon = { env: { GYGES_RECONNECT_S: "2" } };
  const [guest, there] = await Promise.all([startGuest(one), prepareAt(two, "there", [], soon)]);
  const migrate = move(one, guest, there, ["--mode", "full", ...SLOW]);
  await inPostcopy(migrate, there);
  await lab.kill(one);
  assert.equal((await migrate.ended()).code, 137);
  await there.process.reached("paused");
  assert.equal((await there.process.waitFor("error")).code, 11);
  const { missing_pages, guest: waiting } = await new GygesHost(two).sample("there");
  assert.ok(missing_pages > 0 && waiting?.corrupt === 0 && waiting.running);
  there.process.signal("SIGKILL");
  assert.equal((await there.process.ended()).code, 137);
});
