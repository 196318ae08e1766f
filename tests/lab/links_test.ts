/** A link is lost in a move: before the commit point, just after it, half way, for a moment, for long, for good. */
import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";
import type { GygesProcess } from "../helpers/gyges_process.ts";
import type { Destination, Holder } from "../helpers/pair.ts";
import { GygesHost, type LabStartOptions } from "./gyges_host.ts";
import { type Lab, labTest } from "./lab.ts";
import { account, inPostcopy, move, prepareAt, proveRecovered, proveWhole, startGuest } from "./moves.ts";

const LAB = { rdma: true, gyges: true } as const;
/** Long enough for the link to be cut in the middle. */
const SLOW = ["--bandwidth", "20Mbit"];
const FULL = ["--mode", "full", ...SLOW];

interface Way {
  name: string;
  guest: readonly string[];
  move: readonly string[];
  /** A loss that no connection survives. */
  longMs: number;
}

const KERNEL: Way = {
  name: "kernel pager",
  guest: ["--pager", "kernel", "--irqchip"],
  move: ["--transport", "rdma"],
  longMs: 20_000,
};
const USER: Way = {
  name: "user pager over RDMA",
  guest: ["--pager", "user"],
  move: ["--transport", "rdma"],
  longMs: 10_000,
};
const TCP: Way = {
  name: "user pager over TCP",
  guest: ["--pager", "user"],
  move: ["--transport", "tcp"],
  longMs: 10_000,
};
const WAYS = [KERNEL, USER, TCP];

async function cutFor(lab: Lab, ms: number): Promise<void> {
  await lab.cut();
  await pause(ms);
  await lab.heal();
}

/** A guest in host 1, and a destination for it in host 2. */
function ready(
  lab: Lab,
  { guest }: Way,
  names: { guest?: string; there: string },
  ram = "16M",
  options: LabStartOptions = {},
): Promise<[Holder, Destination]> {
  return Promise.all([
    startGuest(lab.host(1), [...guest, "--ram", ram], { name: names.guest ?? "vm" }),
    prepareAt(lab.host(2), names.there, guest.slice(0, 2), options),
  ]);
}

/** A pre-copy that loses its link for a moment goes on; one that loses it for good is given up, and the guest runs on. */
async function proveStays(lab: Lab, way: Way): Promise<void> {
  const [guest, lost] = await ready(lab, way, { there: "lost" });
  const args = ["--mode", "hybrid", "--precopy-timeout", "60s", "--bandwidth", "4Mbit", ...way.move];
  const migrate = move(lab.host(1), guest, lost, args);
  await migrate.reached("precopy");
  await pause(500);
  await cutFor(lab, 1_000);
  await pause(1_000);
  assert.ok(migrate.running, "a second is too long for it");
  await lab.cut();
  const { events } = await migrate.endedWith(10);
  const error = events.at(-1);
  assert.ok(error?.type === "error");
  assert.equal(error.guest_location, "source");
  await lab.heal();
  assert.notEqual((await lost.process.ended()).code, 0);
  const last = events.findLast((event) => event.type === "sample");
  assert.ok(last?.type === "sample" && last.guest);
  await proveWhole(guest, { guest: last.guest });
}

/** Just after the commit point, and half way. */
async function cutTwice(lab: Lab, migrate: GygesProcess, to: Destination, ms: number): Promise<void> {
  await Promise.all([migrate.reached("serving"), to.process.reached("running")]);
  await cutFor(lab, ms);
  await pause(2_000);
  await cutFor(lab, ms);
}

for (const way of WAYS) {
  labTest(
    `${way.name}: a link lost in pre-copy leaves the guest where it is`,
    { kernel: "6.12", ...LAB },
    async (lab) => {
      await proveStays(lab, way);
    },
  );

  const long = `${way.longMs / 1000} s`;
  labTest(
    `${way.name}: a link that is cut for 1 s, or for ${long}, comes back`,
    { kernel: "6.12", ...LAB },
    async (lab) => {
      const [one, two] = [lab.host(1), lab.host(2)];
      const [guest, there] = await ready(lab, way, { there: "there" }, way === TCP ? "16M" : "32M");
      const brief = move(one, guest, there, [...FULL, ...way.move]);
      await cutTwice(lab, brief, there, 1_000);
      const back = await prepareAt(one, "back", way.guest.slice(0, 2));
      await account(`${way.name}, cut for 1 s, twice`, guest, there, brief);

      const migrate = move(two, there, back, [...FULL, ...way.move]);
      await cutTwice(lab, migrate, back, way.longMs);
      const summary = await account(`${way.name}, cut for ${long}, twice`, there, back, migrate);
      proveRecovered(migrate);
      proveRecovered(back.process);
      await proveWhole(back, summary);
    },
  );
}

labTest("kernel pager: a link that is cut half way comes back", { kernel: "6.1", ...LAB }, async (lab) => {
  const [guest, there] = await ready(lab, KERNEL, { there: "there" });
  const migrate = move(lab.host(1), guest, there, [...FULL, ...KERNEL.move]);
  await inPostcopy(migrate, there);
  await cutFor(lab, 10_000);
  const summary = await account("6.1, kernel pager, cut for 10 s", guest, there, migrate);
  proveRecovered(migrate);
  proveRecovered(there.process);
  await proveWhole(there, summary);
});

/** A network that only RDMA uses. */
const OF_RDMA = ["10.78.0.1", "10.78.0.2"] as const;

labTest(
  "user pager: pages go on over TCP where RDMA alone does not come back",
  { kernel: "6.12", ...LAB },
  async (lab) => {
    const [one, two] = [lab.host(1), lab.host(2)];
    const [guest, there] = await ready(lab, USER, { there: "there" }, "32M");
    for (const [i, host] of [one, two].entries()) await host.ask(`ip addr add ${OF_RDMA[i]}/24 dev eth0`);
    const migrate = move(one, guest, there, [...FULL, ...USER.move, "--rdma-listen", `${OF_RDMA[0]}:0`]);
    await inPostcopy(migrate, there);
    for (const [i, host] of [one, two].entries()) await host.ask(`ip addr del ${OF_RDMA[i]}/24 dev eth0`);
    const summary = await account("6.12, user pager, by RDMA and then over TCP", guest, there, migrate);
    assert.equal(summary.transport, "tls");
    for (const process of [migrate, there.process]) {
      proveRecovered(process);
      const told = process.events.some((event) => event.type === "note" && /over TCP from here on/.test(event.detail));
      assert.ok(told, "the operator was not told");
    }
    await proveWhole(there, summary);
  },
);

labTest(
  "user pager over RDMA: a destination that is silent for 8 s keeps its links, and all pages come",
  { kernel: "6.12", ...LAB },
  async (lab) => {
    const [guest, there] = await ready(lab, USER, { there: "there" }, "32M");
    const migrate = move(lab.host(1), guest, there, [...FULL, ...USER.move]);
    await inPostcopy(migrate, there);
    there.process.signal("SIGSTOP");
    await pause(8_000);
    assert.equal(migrate.states.at(-1), "paused", "the source has not noticed");
    there.process.signal("SIGCONT");
    const summary = await account("6.12, user pager over RDMA, silent for 8 s", guest, there, migrate);
    proveRecovered(migrate);
    // No processor of either end's gyges was needed but to ask: what it had asked with was still there.
    assert.ok(!there.process.states.includes("paused"), there.process.states.join(" "));
    await proveWhole(there, summary);
  },
);

labTest("a source host that dies leaves guests that wait and can be ended", { kernel: "6.1", ...LAB }, async (lab) => {
  const [one, two] = [lab.host(1), lab.host(2)];
  const soon = { env: { GYGES_RECONNECT_S: "2" } };
  const moves: { there: Destination; migrate: GygesProcess }[] = [];
  // One after the other: an emulated processor that does all at once misses deadlines.
  for (const [i, way] of WAYS.entries()) {
    // Slow guests: what they touch is not held back by the limit, and must not be all before the last has moved.
    const slow = { ...way, guest: [...way.guest, "--rate", "100"] };
    const [guest, there] = await ready(lab, slow, { guest: `vm${i}`, there: `there${i}` }, "64M", soon);
    const migrate = move(one, guest, there, ["--mode", "full", "--bandwidth", "1Mbit", ...way.move]);
    await inPostcopy(migrate, there);
    moves.push({ there, migrate });
  }
  await lab.kill(one);
  await Promise.all(moves.map(async ({ there, migrate }) => {
    assert.equal((await migrate.ended()).code, 137);
    await there.process.reached("paused");
    assert.equal((await there.process.waitFor("error")).code, 11);
    const { missing_pages, guest } = await new GygesHost(two).sample(there.name);
    assert.ok(missing_pages > 0 && guest?.corrupt === 0 && guest.running);
    there.process.signal("SIGKILL");
    assert.equal((await there.process.ended()).code, 137);
  }));
  // The end of the lab unloads the module: nothing of the import is left.
});
