/** The link is lost after the commit point: both sides pause, the guest waits intact, and goes on when it is back. */
import assert from "node:assert/strict";
import { parseTicket } from "../../lib/wire/ticket.ts";
import type { GygesProcess, StartOptions } from "../helpers/gyges_process.ts";
import { type Host, pause, until } from "../helpers/host.ts";
import { kvmTest } from "../helpers/kvm.ts";
import { proveStays } from "../helpers/outcome.ts";
import { type Destination, finished, type Holder, prepare, startGuest, startMove } from "../helpers/pair.ts";
import { proveGuest, proveSummary } from "../helpers/proof.ts";
import { Proxy } from "../helpers/proxy.ts";
import { CUT, once, ROLES, Wiretap } from "../helpers/wiretap.ts";

interface Underway {
  source: Holder;
  destination: Destination;
  migrate: GygesProcess;
  link: Proxy;
}

const SLOW_FULL = ["--mode", "full", "--bandwidth", "100Mbit"];

/** A migration in the middle of post-copy, over a link that can be cut. */
async function inPostcopy(
  host: Host,
  link: Proxy,
  destination: Destination,
  args = SLOW_FULL,
  options: StartOptions = {},
): Promise<Underway> {
  const source = await startGuest(host, "src", ["--vcpus", "2"], options);
  const migrate = startMove(host, source, link.ticket, args);
  await migrate.reached("serving");
  await destination.process.reached("running");
  await host.sampleUntil("dst", ({ pulled_pages }) => pulled_pages > 1000);
  return { source, destination, migrate, link };
}

/** It went to `paused` and came back. */
function proveRecovered(process: GygesProcess, works: "serving" | "running"): void {
  const { states } = process;
  const paused = states.indexOf("paused");
  assert.ok(paused > 0 && states[paused + 1] === works && states.at(-1) === "completed", states.join(" "));
}

async function proveArrival(host: Host, { source, destination, migrate }: Underway): Promise<void> {
  const moved = await finished(source, destination, await migrate.endedWith(0));
  proveSummary(moved);
  proveRecovered(migrate, "serving");
  proveRecovered(destination.process, "running");
  await proveGuest(host, destination);
  host.assertEmpty();
}

async function bothPaused(host: Host, { migrate, destination }: Underway): Promise<void> {
  await migrate.reached("paused");
  await destination.process.reached("paused");
  assert.equal((await host.sample("src")).state, "paused");
  const sample = await host.sample("dst");
  assert.equal(sample.state, "paused");
  assert.ok(sample.missing_pages > 0, "nothing was missing: the test came too late");
}

// Control is the first connection, then the page connections in any order.
const CUTS: [what: string, which: (index: number) => boolean][] = [
  ["all connections", () => true],
  ["the control connection alone", (index) => index === 0],
  ["one page connection alone", (index) => index === 1],
  ["all page connections", (index) => index > 0],
];

for (const [what, which] of CUTS) {
  kvmTest(`a link that loses ${what} heals by itself, and the guest arrives whole`, async (host) => {
    const destination = await prepare(host, "dst");
    await using link = new Proxy(destination.ticket);
    const underway = await inPostcopy(host, link, destination);
    link.cut(which);
    await bothPaused(host, underway);
    await pause(500);
    link.heal();
    await proveArrival(host, underway);
  });
}

kvmTest("a link lost three times heals three times", async (host) => {
  const destination = await prepare(host, "dst", ["--tls", "off"]);
  await using link = new Proxy(destination.ticket);
  const underway = await inPostcopy(host, link, destination, [...SLOW_FULL, "--tls", "off"]);
  for (let times = 1; times <= 3; times++) {
    const { pulled_pages } = await host.sample("dst");
    link.cut();
    await host.sampleUntil("src", ({ state }) => state === "paused");
    await host.sampleUntil("dst", ({ state }) => state === "paused");
    link.heal();
    await host.sampleUntil("dst", (sample) => sample.state === "running" && sample.pulled_pages > pulled_pages + 500);
  }
  await proveArrival(host, underway);
});

kvmTest("a link that swallows everything is found lost, and heals", async (host) => {
  const destination = await prepare(host, "dst");
  await using link = new Proxy(destination.ticket);
  const underway = await inPostcopy(host, link, destination);
  link.freeze();
  await bothPaused(host, underway);
  link.heal();
  await proveArrival(host, underway);
});

kvmTest("a link that stalls for a second is not given up", async (host) => {
  const destination = await prepare(host, "dst");
  await using link = new Proxy(destination.ticket);
  const { source, migrate } = await inPostcopy(host, link, destination);
  link.freeze();
  await pause(1_000);
  link.heal();
  const moved = await finished(source, destination, await migrate.endedWith(0));
  proveSummary(moved);
  assert.ok(!migrate.states.includes("paused"));
  await proveGuest(host, destination);
  host.assertEmpty();
});

/** Both sides ask the operator after so long. */
const SOON = { env: { GYGES_RECONNECT_S: "2" } };

kvmTest("a link that does not come back ends migrate with 11, and both ends keep what they have", async (host) => {
  const destination = await prepare(host, "dst", [], SOON);
  await using link = new Proxy(destination.ticket);
  const { migrate } = await inPostcopy(host, link, destination, SLOW_FULL, SOON);
  link.cut();
  const { events } = await migrate.endedWith(11);
  const error = events.at(-1);
  assert.ok(error?.type === "error");
  assert.equal(error.guest_location, "destination-incomplete");
  assert.match(error.message, /keep it alive/);
  const told = await destination.process.waitFor("error");
  assert.equal(told.code, 11);
  assert.match(told.message, /keep the source alive/);
  const [source, arrived] = [await host.sample("src"), await host.sample("dst")];
  assert.deepEqual([source.state, arrived.state], ["paused", "paused"]);
  assert.ok(arrived.missing_pages > 0 && arrived.guest?.corrupt === 0);
  await host.start(["vm", "stop", "src"]).endedWith(2);
  await host.start(["vm", "stop", "dst"]).endedWith(2);
});

kvmTest(
  "a source that is away when the last page comes is told so whenever it is back, and the door closes then",
  async (host) => {
    const source = await startGuest(host, "src", [], SOON);
    const destination = await prepare(host, "dst", ["--tls", "off"], SOON);
    const cutLong = () => {
      // Longer than either end waits without asking the operator.
      tap.cut(ROLES, 6_000);
      return CUT;
    };
    await using tap: Wiretap = new Wiretap(destination.ticket, once("complete", cutLong));
    const migrate = startMove(host, source, tap.ticket, ["--mode", "full", "--tls", "off"]);
    await migrate.endedWith(11);
    const alone = await destination.process.waitFor("summary");
    const { host: hostname, port } = parseTicket(destination.ticket);
    (await Deno.connect({ hostname, port })).close();
    const { events } = await source.process.endedWith(0);
    const summary = events.at(-1);
    assert.ok(summary?.type === "summary");
    assert.deepEqual([summary.postcopy_pages, summary.duplicate_pages], [alone.postcopy_pages, 0]);
    const isShut = () => Deno.connect({ hostname, port }).then((open) => open.close(), () => true);
    await until(async () => await isShut() === true, () => "the destination still listens");
    await proveGuest(host, destination);
    host.assertEmpty();
  },
);

kvmTest("a destination in doubt is told, however late, that its guest stays at the source", async (host) => {
  const source = await startGuest(host, "src", [], SOON);
  const destination = await prepare(host, "dst", ["--tls", "off"], SOON);
  const cutLong = () => {
    tap.cut(ROLES, 6_000);
    return CUT;
  };
  await using tap: Wiretap = new Wiretap(destination.ticket, once("loaded", cutLong));
  await startMove(host, source, tap.ticket, ["--mode", "full", "--tls", "off"]).endedWith(10);
  assert.equal((await destination.process.waitFor("error")).code, 11);
  await destination.process.endedWith(10);
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("SIGKILL of the source after the commit point leaves the guest waiting, unhurt", async (host) => {
  const destination = await prepare(host, "dst", [], SOON);
  await using link = new Proxy(destination.ticket);
  const { source, migrate } = await inPostcopy(host, link, destination);
  source.process.signal("SIGKILL");
  assert.notEqual((await migrate.ended()).code, 0);
  await destination.process.reached("paused");
  assert.equal((await destination.process.waitFor("error")).code, 11);
  const { guest, missing_pages } = await host.sample("dst");
  assert.ok(missing_pages > 0 && guest?.corrupt === 0 && guest.running);
  destination.process.signal("SIGKILL");
  assert.notEqual((await destination.process.ended(2_000)).code, 0);
});

kvmTest(
  "SIGKILL of the destination after the commit point ends migrate, and the source keeps its pages",
  async (host) => {
    const destination = await prepare(host, "dst");
    await using link = new Proxy(destination.ticket);
    const { migrate } = await inPostcopy(host, link, destination, SLOW_FULL, SOON);
    destination.process.signal("SIGKILL");
    await migrate.endedWith(11);
    const { state, guest } = await host.sample("src");
    assert.equal(state, "paused");
    assert.equal(guest?.running, false, "the guest must not run in two places");
  },
);
