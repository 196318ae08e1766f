/** Looking on: monitor, vm list and vm status at both sides, in every phase, change nothing and end in order. */
import assert from "node:assert/strict";
import type { Sample } from "../../lib/events.ts";
import type { GygesProcess } from "../helpers/gyges_process.ts";
import type { Host } from "../helpers/host.ts";
import { kvmTest } from "../helpers/kvm.ts";
import { finished, prepare, startGuest, startMove } from "../helpers/pair.ts";
import { proveGuest, proveSummary } from "../helpers/proof.ts";
import { Hold, Wiretap } from "../helpers/wiretap.ts";

async function once(host: Host, name: string): Promise<Sample> {
  const { events } = await host.start(["monitor", name, "--once"]).endedWith(0);
  const [sample] = events;
  assert.ok(sample?.type === "sample" && events.length === 1, "one sample");
  return sample;
}

async function list(host: Host): Promise<string[]> {
  const { events } = await host.start(["vm", "list"]).endedWith(0);
  return events.map((event) => event.type === "sample" ? `${event.name} ${event.side} ${event.state}` : event.type);
}

/** Attaches, sees a sample, detaches by Ctrl-C. */
async function attachAndDetach(host: Host, name: string): Promise<void> {
  const monitor = host.start(["monitor", name]);
  await monitor.waitFor("sample");
  monitor.signal("SIGINT");
  await monitor.endedWith(0);
}

function samplesOf(monitor: GygesProcess): Sample[] {
  return monitor.events.flatMap((event) => event.type === "sample" ? [event] : []);
}

kvmTest("both sides can be watched in every phase, and watching changes nothing", async (host) => {
  const source = await startGuest(host, "src", ["--vcpus", "2", "--write-ratio", "1"]);
  assert.deepEqual(await list(host), ["src idle idle"]);
  const destination = await prepare(host, "dst");
  assert.deepEqual(await list(host), ["dst destination listening", "src idle idle"]);
  assert.equal((await once(host, "dst")).guest, null);
  await attachAndDetach(host, "src");
  await attachAndDetach(host, "dst");
  const watchers = [host.start(["monitor", "src"]), host.start(["monitor", "dst"])];
  const [atSource, atDestination] = watchers;
  assert.ok(atSource && atDestination);

  const options = ["--precopy-timeout", "1500ms", "--bandwidth", "150Mbit"];
  const migrate = startMove(host, source, destination.ticket, options);
  await destination.process.reached("precopy");
  await migrate.reached("precopy");
  await Promise.all(["src", "dst"].map((name) => attachAndDetach(host, name)));
  const early = [await once(host, "src"), await once(host, "dst")];
  assert.deepEqual(early.map(({ state, side, mode }) => [side, state, mode]), [
    ["source", "precopy", "hybrid"],
    ["destination", "precopy", "hybrid"],
  ]);
  assert.equal(early[0]?.guest?.location, "source");
  assert.equal(early[0]?.guest?.running, true);
  assert.equal(early[1]?.guest, null);

  await destination.process.reached("running");
  await migrate.reached("serving");
  await Promise.all(["src", "dst"].map((name) => attachAndDetach(host, name)));
  const late = [await once(host, "src"), await once(host, "dst")];
  assert.deepEqual(late.map(({ state, side }) => [side, state]), [["source", "serving"], ["destination", "running"]]);
  for (const { total_pages, present_pages, missing_pages, guest } of late) {
    assert.equal(present_pages + missing_pages, total_pages);
    assert.ok(missing_pages > 0);
    assert.equal(guest?.location, "destination-incomplete");
  }
  assert.equal((await host.guest("dst")).location, "destination-incomplete");
  const { events: [refused] } = await host.start(["vm", "status", "dst", "--verify"]).endedWith(2);
  assert.match(refused?.type === "error" ? refused.message : "", /holds part of its guest's memory only/);

  const moved = await finished(source, destination, await migrate.endedWith(0));
  proveSummary(moved);
  await atSource.endedWith(0);
  const seen = samplesOf(atSource);
  assert.ok(seen.some(({ state }) => state === "precopy") && seen.some(({ state }) => state === "serving"));
  proveMonotonic(seen);
  await host.sampleUntil("dst", ({ side }) => side === "idle");
  assert.deepEqual(await list(host), ["dst idle idle"]);
  const { events } = await host.start(["vm", "status", "dst", "--verify"]).endedWith(0);
  const [status] = events;
  assert.ok(status?.type === "guest" && status.ram_check?.bad_pages === 0 && status.guest.location === "here");
  await proveGuest(host, destination);
  // The process that it watched has ended, and so does it.
  await atDestination.endedWith(0);
  assert.ok(samplesOf(atDestination).some(({ state }) => state === "running"));
  host.assertEmpty();
});

for (const next of [["status", "dst"], ["status", "dst", "--verify"], ["stop", "dst"]]) {
  kvmTest(`a script may say vm ${next.join(" ")} as soon as migrate has ended`, async (host) => {
    for (let turn = 0; turn < 3; turn++) {
      const source = await startGuest(host, "src");
      const destination = await prepare(host, "dst");
      await startMove(host, source, destination.ticket, ["--mode", "precopy"]).endedWith(0);
      const { events: [report] } = await host.start(["vm", ...next]).endedWith(0);
      assert.ok(report?.type === "guest" && report.guest.corrupt === 0 && report.guest.location === "here");
      if (next[0] !== "stop") await host.start(["vm", "stop", "dst"]).endedWith(0);
      await destination.process.endedWith(0);
      await source.process.endedWith(0);
    }
    host.assertEmpty();
  });
}

kvmTest("a guest that is whole is told of while its destination still takes leave of the source", async (host) => {
  const source = await startGuest(host, "src");
  // What is held is lost with the source's process, and waited for no longer than this.
  const destination = await prepare(host, "dst", ["--tls", "off"], { env: { GYGES_RECONNECT_S: "1" } });
  const hold = new Hold("finished");
  await using tap = new Wiretap(destination.ticket, hold);
  const migrate = startMove(host, source, tap.ticket, ["--mode", "full", "--tls", "off"]);
  await hold.reached();
  assert.equal((await host.sample("dst")).guest?.location, "here");
  assert.equal((await host.guest("dst")).location, "here");
  hold.release();
  await finished(source, destination, await migrate.endedWith(0));
  await proveGuest(host, destination);
  host.assertEmpty();
});

function proveMonotonic(samples: readonly Sample[]): void {
  const moving = samples.filter(({ side }) => side === "source");
  for (const [index, sample] of moving.slice(1).entries()) {
    const before = moving[index];
    assert.ok(before && sample.elapsed_ns > before.elapsed_ns && sample.wire_bytes >= before.wire_bytes);
    assert.ok(sample.pulled_pages >= before.pulled_pages);
  }
}
