/** The kernel pager loses its link: before the commit point, just after it, half way, for a moment and for long. */
import assert from "node:assert/strict";
import { touchesOf } from "../../lib/events.ts";
import { setTimeout as pause } from "node:timers/promises";
import type { GygesProcess } from "../helpers/gyges_process.ts";
import type { Destination, Holder } from "../helpers/pair.ts";
import { GygesHost } from "./gyges_host.ts";
import { type Lab, type LabHost, labTest } from "./lab.ts";
import { account, inPostcopy, move, prepareAt, proveRecovered, proveWhole, startGuest } from "./moves.ts";

const KERNEL = ["--pager", "kernel"];
const RDMA = { rdma: true, gyges: true } as const;
/** More than a queue pair survives. */
const LONG_MS = 10_000;
/** Long enough for the link to be cut in the middle. */
const SLOW = ["--bandwidth", "20Mbit"];
const FULL = ["--mode", "full", ...SLOW];

async function cutFor(lab: Lab, ms: number): Promise<void> {
  await lab.cut();
  await pause(ms);
  await lab.heal();
}

/** A pre-copy that loses its link for so long is given up; the guest runs on where it is. */
async function proveStays(lab: Lab, from: LabHost, guest: Holder, to: Destination): Promise<void> {
  const migrate = move(from, guest, to, ["--mode", "hybrid", "--precopy-timeout", "60s", "--bandwidth", "4Mbit"]);
  await migrate.reached("precopy");
  await pause(1_000);
  await cutFor(lab, LONG_MS);
  const { events } = await migrate.endedWith(10);
  const error = events.at(-1);
  assert.ok(error?.type === "error");
  assert.equal(error.guest_location, "source");
  assert.notEqual((await to.process.ended()).code, 0);
  const before = await new GygesHost(from).guest(guest.name);
  await new GygesHost(from).guestUntil(guest.name, (now) => touchesOf(now) > touchesOf(before) + 100);
}

async function cutTwice(lab: Lab, migrate: GygesProcess, to: Destination, ms: number): Promise<void> {
  await Promise.all([migrate.reached("serving"), to.process.reached("running")]);
  await cutFor(lab, ms);
  await migrate.reached("serving");
  await pause(3_000);
  await cutFor(lab, ms);
}

labTest("a link lost in pre-copy leaves the guest, later it comes back", { kernel: "6.12", ...RDMA }, async (lab) => {
  const [one, two] = [lab.host(1), lab.host(2)];
  const guest = await startGuest(one, [...KERNEL, "--irqchip"]);
  await proveStays(lab, one, guest, await prepareAt(two, "lost", KERNEL));

  const there = await prepareAt(two, "there", KERNEL);
  const brief = move(one, guest, there, FULL);
  await cutTwice(lab, brief, there, 1_000);
  await account("link cut for 1 s, twice", guest, there, brief);

  const back = await prepareAt(one, "back", KERNEL);
  const long = move(two, there, back, FULL);
  await cutTwice(lab, long, back, LONG_MS);
  const summary = await account(`link cut for ${LONG_MS / 1000} s, twice`, there, back, long);
  proveRecovered(long);
  proveRecovered(back.process);
  await proveWhole(one, back, summary);
});

labTest(
  "a source host that dies leaves a guest that waits and can be ended",
  { kernel: "6.1", ...RDMA },
  async (lab) => {
    const [one, two] = [lab.host(1), lab.host(2)];
    const soon = { env: { GYGES_RECONNECT_S: "2" } };
    const guest = await startGuest(one, [...KERNEL, "--irqchip"]);
    const there = await prepareAt(two, "there", KERNEL, soon);
    const migrate = move(one, guest, there, FULL);
    await inPostcopy(migrate, there);
    await lab.kill(one);
    assert.equal((await migrate.ended()).code, 137);
    await there.process.reached("paused");
    const error = await there.process.waitFor("error");
    assert.equal(error.code, 11);
    const { missing_pages, guest: waiting } = await new GygesHost(two).sample("there");
    assert.ok(missing_pages > 0 && waiting?.running);
    there.process.signal("SIGKILL");
    assert.equal((await there.process.ended()).code, 137);
    // The end of the lab unloads the module: nothing of the import is left.
  },
);
