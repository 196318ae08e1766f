/** Whatever goes wrong before the commit point: the guest runs on at the source, and the code says what happened. */
import assert from "node:assert/strict";
import * as v from "valibot";
import { ControlClient } from "../../lib/control/client.ts";
import { type ErrorEvent, touchesOf } from "../../lib/events.ts";
import { MIGRATE_DEFAULTS } from "../../lib/options.ts";
import { guestSchema } from "../../lib/monitor/summary.ts";
import { PROTOCOL_VERSION } from "../../lib/wire/messages.ts";
import { parseTicket } from "../../lib/wire/ticket.ts";
import { connectTo, FakeDestination, greetedSource, welcome } from "../helpers/fake_end.ts";
import type { Ended } from "../helpers/gyges_process.ts";
import { type Host, pause } from "../helpers/host.ts";
import { kvmTest } from "../helpers/kvm.ts";
import { type Destination, type Holder, move, prepare, startGuest, startMove, stopGuest } from "../helpers/pair.ts";
import { proveGuest, proveReport, proveSummary } from "../helpers/proof.ts";

/** Pre-copy that lasts longer than any test needs. */
const LONG_PRECOPY = ["--precopy-timeout", "60s", "--bandwidth", "50Mbit"];

function errorOf({ events }: Ended): ErrorEvent {
  const error = events.at(-1);
  assert.ok(error?.type === "error", `the last word is no error: ${JSON.stringify(error)}`);
  return error;
}

/** The guest works on at the source, and all of its memory is whole. */
async function proveStays(host: Host, source: Holder): Promise<void> {
  const before = await host.guest(source.name);
  assert.equal(before.location, "here");
  await host.guestUntil(
    source.name,
    (now) => now.running && touchesOf(now) > touchesOf(before),
  );
  proveReport(await stopGuest(host, source));
}

interface Underway {
  source: Holder;
  destination: Destination;
  migrate: ReturnType<typeof startMove>;
}

/** A migration in the middle of pre-copy. */
async function inPrecopy(host: Host): Promise<Underway> {
  const source = await startGuest(host, "src");
  const destination = await prepare(host, "dst");
  const migrate = startMove(host, source, destination.ticket, LONG_PRECOPY);
  await destination.process.reached("precopy");
  await migrate.reached("precopy");
  await host.sampleUntil("dst", ({ pulled_pages }) => pulled_pages > 0);
  return { source, destination, migrate };
}

kvmTest("cancel in pre-copy leaves the guest at the source, and it can be moved later", async (host) => {
  const { source, destination, migrate } = await inPrecopy(host);
  await host.start(["cancel", "src"]).endedWith(0);
  const error = errorOf(await migrate.endedWith(130));
  assert.equal(error.guest_location, "source");
  await destination.process.endedWith(10);
  assert.equal((await host.guest("src")).location, "here");

  const second = await prepare(host, "dst");
  const moved = await move(host, source, second, ["--mode", "full"]);
  proveSummary(moved);
  await proveGuest(host, second);
  host.assertEmpty();
});

kvmTest("cancel at the destination in pre-copy leaves the guest at the source", async (host) => {
  const { source, destination, migrate } = await inPrecopy(host);
  await host.start(["cancel", "dst"]).endedWith(0);
  await destination.process.endedWith(130);
  await migrate.endedWith(10);
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("cancel of a destination that waits ends it", async (host) => {
  const destination = await prepare(host, "dst");
  await host.start(["cancel", "dst"]).endedWith(0);
  await destination.process.endedWith(130);
  host.assertEmpty();
});

kvmTest("cancel of a guest that is not being moved is refused", async (host) => {
  const source = await startGuest(host, "src");
  assert.match(errorOf(await host.start(["cancel", "src"]).endedWith(2)).message, /not being moved/);
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("cancel after the commit point is refused at both sides, and the guest arrives", async (host) => {
  const source = await startGuest(host, "src");
  const destination = await prepare(host, "dst");
  const migrate = startMove(host, source, destination.ticket, ["--mode", "full", "--bandwidth", "200Mbit"]);
  await destination.process.reached("running");
  await migrate.reached("serving");
  for (const name of ["src", "dst"]) {
    const error = errorOf(await host.start(["cancel", name]).endedWith(2));
    assert.match(error.message, /past the commit point/);
  }
  await migrate.endedWith(0);
  await source.process.endedWith(0);
  await destination.process.waitFor("summary");
  await proveGuest(host, destination);
  host.assertEmpty();
});

kvmTest("Ctrl-C of migrate in pre-copy ends it with 130, and the guest stays", async (host) => {
  const { source, destination, migrate } = await inPrecopy(host);
  migrate.signal("SIGINT");
  await migrate.endedWith(130);
  await destination.process.endedWith(10);
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("Ctrl-C of migrate after the commit point explains and does not kill", async (host) => {
  const source = await startGuest(host, "src");
  const destination = await prepare(host, "dst");
  const migrate = startMove(host, source, destination.ticket, ["--mode", "full", "--bandwidth", "200Mbit"]);
  await destination.process.reached("running");
  await migrate.reached("serving");
  for (const process of [migrate, destination.process, source.process]) process.signal("SIGINT");
  await migrate.endedWith(0);
  await source.process.endedWith(0);
  await destination.process.waitFor("summary");
  await proveGuest(host, destination);
  host.assertEmpty();
});

kvmTest("SIGKILL of migrate in pre-copy leaves the guest at the source", async (host) => {
  const { source, destination, migrate } = await inPrecopy(host);
  migrate.signal("SIGKILL");
  await migrate.ended();
  await destination.process.endedWith(10);
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("SIGKILL of the destination in pre-copy ends migrate with 10, and the guest stays", async (host) => {
  const { source, destination, migrate } = await inPrecopy(host);
  destination.process.signal("SIGKILL");
  const error = errorOf(await migrate.endedWith(10));
  assert.equal(error.guest_location, "source");
  await destination.process.ended();
  await Deno.remove(`${host.runtimeDir}/dst`, { recursive: true });
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("SIGTERM of the destination in pre-copy ends it with 130 and migrate with 10", async (host) => {
  const { source, destination, migrate } = await inPrecopy(host);
  destination.process.signal("SIGTERM");
  await destination.process.endedWith(130);
  await migrate.endedWith(10);
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("SIGKILL of the source's process in pre-copy ends the destination with 10", async (host) => {
  const { source, destination, migrate } = await inPrecopy(host);
  source.process.signal("SIGKILL");
  await source.process.ended();
  await destination.process.endedWith(10);
  assert.notEqual((await migrate.ended()).code, 0);
  await Deno.remove(`${host.runtimeDir}/src`, { recursive: true });
  host.assertEmpty();
});

kvmTest("Ctrl-C of the source's process in pre-copy gives the migration up and stops the guest", async (host) => {
  const { source, destination, migrate } = await inPrecopy(host);
  source.process.signal("SIGINT");
  await migrate.endedWith(130);
  await destination.process.endedWith(10);
  const { events } = await source.process.endedWith(0);
  const last = events.at(-1);
  assert.ok(last?.type === "guest");
  proveReport(last);
  host.assertEmpty();
});

kvmTest("a guest that is being moved is not moved twice, not stopped, and not verified", async (host) => {
  const { source, destination, migrate } = await inPrecopy(host);
  for (
    const args of [["migrate", destination.ticket, "--vm", "src"], ["vm", "stop", "src"], [
      "vm",
      "status",
      "src",
      "--verify",
    ]]
  ) {
    await host.start(args).endedWith(2);
  }
  await host.start(["cancel", "src"]).endedWith(0);
  await migrate.endedWith(130);
  await destination.process.endedWith(10);
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("a ticket that is used already is refused", async (host) => {
  const { source, destination, migrate } = await inPrecopy(host);
  const other = await startGuest(host, "other");
  const error = errorOf(await startMove(host, other, destination.ticket, LONG_PRECOPY).endedWith(4));
  assert.equal(error.field, "ticket");
  assert.match(error.message, /works once/);
  await proveStays(host, other);
  // The migration that has the ticket goes on undisturbed.
  assert.equal((await host.sample("src")).state, "precopy");
  await host.start(["cancel", "src"]).endedWith(0);
  await migrate.endedWith(130);
  await destination.process.endedWith(10);
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("a wrong key is refused, and the right one serves after it", async (host) => {
  const source = await startGuest(host, "src");
  const destination = await prepare(host, "dst");
  const [address = ""] = destination.ticket.split("#");
  const error = errorOf(await startMove(host, source, `${address}#${"A".repeat(43)}`).endedWith(4));
  assert.equal(error.field, "ticket");
  assert.equal(error.guest_location, "source");
  const moved = await move(host, source, destination, ["--mode", "full"]);
  proveSummary(moved);
  await proveGuest(host, destination);
  host.assertEmpty();
});

kvmTest("an expired ticket ends the destination, and migrate leaves the guest", async (host) => {
  const source = await startGuest(host, "src");
  const destination = await prepare(host, "dst", ["--ticket-ttl", "300ms"]);
  assert.match(errorOf(await destination.process.endedWith(10)).message, /expired/);
  await startMove(host, source, destination.ticket).endedWith(10);
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("a ticket of another kind of link than asked for is refused", async (host) => {
  const source = await startGuest(host, "src");
  for (const [kind, args] of [["off", []], ["on", ["--tls", "off"]]] as const) {
    const destination = await prepare(host, `dst-${kind}`, ["--tls", kind]);
    const error = errorOf(await startMove(host, source, destination.ticket, args).endedWith(4));
    assert.equal(error.field, "tls");
    destination.process.signal("SIGINT");
    await destination.process.endedWith(130);
  }
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("a source of another version is refused with both versions, and the ticket stays good", async (host) => {
  const source = await startGuest(host, "src");
  const destination = await prepare(host, "dst");
  using peer = await connectTo(destination.ticket);
  await peer.send({ type: "hello", protocol: 99, role: "control" });
  await assert.rejects(peer.expect("welcome", 5_000), {
    name: "HandshakeError",
    field: "protocol",
    ours: "99",
    theirs: `${PROTOCOL_VERSION}`,
  });
  await move(host, source, destination, ["--mode", "full"]);
  await proveGuest(host, destination);
  host.assertEmpty();
});

kvmTest("migrate ends with 4 when the destination has another version", async (host) => {
  const source = await startGuest(host, "src");
  await using fake = await FakeDestination.open(async (peer) => {
    await peer.receive(5_000);
    await peer.send({ type: "refused", field: "protocol", ours: "2", theirs: "1", message: "run the same version" });
  });
  const error = errorOf(await startMove(host, source, fake.ticket).endedWith(4));
  assert.deepEqual([error.field, error.ours, error.theirs], ["protocol", "1", "2"]);
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("an offer of more RAM than the host has is refused by the destination, which ends with 3", async (host) => {
  const destination = await prepare(host, "dst");
  using peer = await greetedSource(destination.ticket);
  await peer.send({
    type: "offer",
    mode: "full",
    pager: "user",
    transports: ["tcp"],
    machine: {
      kind: "micro",
      ram_bytes: 2 ** 38,
      page_bytes: 4096,
      vcpus: 1,
      irqchip: false,
      workload: "uniform",
      write_per_1024: 512,
      working_set_bytes: 0,
      rate_pages_per_s: 0,
      seed: "1",
    },
    bandwidth_bytes_per_s: 0,
    prefetch: true,
    prefetch_connections: 1,
  });
  await assert.rejects(peer.expect("accepted", 5_000), { name: "HandshakeError", message: /RAM/ });
  await destination.process.endedWith(3);
  host.assertEmpty();
});

kvmTest("a guest larger than the host is refused with 3", async (host) => {
  const error = errorOf(await host.start(["vm", "start", "src", "--ram", "256G"]).endedWith(3));
  assert.equal(error.check, "memory");
  host.assertEmpty();
});

kvmTest("a destination that accepts and then says nothing can be cancelled at once", async (host) => {
  const source = await startGuest(host, "src");
  const reached = Promise.withResolvers<void>();
  await using fake = await FakeDestination.open(async (peer) => {
    const hello = await welcome(peer);
    if (hello.type !== "hello" || hello.role !== "control") return;
    await peer.expect("offer", 5_000);
    reached.resolve();
    await pause(60_000);
  });
  const migrate = startMove(host, source, fake.ticket);
  await reached.promise;
  const before = performance.now();
  await host.start(["cancel", "src"]).endedWith(0);
  await migrate.endedWith(130);
  assert.ok(performance.now() - before < 3_000, `cancel took ${performance.now() - before} ms`);
  await proveStays(host, source);
  host.assertEmpty();
});

for (const after of ["welcome", "accepted"] as const) {
  kvmTest(`a destination that hangs up after "${after}" ends migrate with 10`, async (host) => {
    const source = await startGuest(host, "src");
    await using fake = await FakeDestination.open(async (peer) => {
      const hello = await welcome(peer);
      if (hello.type !== "hello" || hello.role !== "control") return;
      if (after === "accepted") {
        await peer.expect("offer", 5_000);
        await peer.send({ type: "accepted", pager: "user", transport: "tcp", why: "a test" });
      }
      peer[Symbol.dispose]();
    });
    const error = errorOf(await startMove(host, source, fake.ticket).endedWith(10));
    assert.equal(error.guest_location, "source");
    await proveStays(host, source);
    host.assertEmpty();
  });
}

kvmTest("nobody at the ticket's address ends migrate with 10", async (host) => {
  const source = await startGuest(host, "src");
  const destination = await prepare(host, "dst");
  destination.process.signal("SIGINT");
  await destination.process.endedWith(130);
  const error = errorOf(await startMove(host, source, destination.ticket).endedWith(10));
  assert.match(error.message, new RegExp(`${parseTicket(destination.ticket).port}.*is the destination up`));
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("a name in use is refused with 2, and its owner is not disturbed", async (host) => {
  const source = await startGuest(host, "src");
  await host.start(["vm", "start", "src", "--ram", "64M"]).endedWith(2);
  await host.start(["prepare", "src", "--micro"]).endedWith(2);
  await proveStays(host, source);
  host.assertEmpty();
});

kvmTest("a guest that is being verified or stopped is not moved in the middle of it", async (host) => {
  const source = await startGuest(host, "src", ["--ram", "512M", "--vcpus", "2"]);
  const destination = await prepare(host, "dst");
  using client = await ControlClient.connect("src", { base: host.runtimeDir });
  const { ticket } = destination;
  const verified = client.call("status", { verify: true });
  const moved = client.call("migrate", { ticket, ...MIGRATE_DEFAULTS, mode: "full", bandwidthBytesPerSecond: 2e8 });
  // Until it is awaited, a failure is nobody's.
  moved.catch(() => {});
  await verified;
  await host.sampleUntil("src", ({ state }) => state === "serving");
  const { guest } = await host.sample("src");
  await pause(200);
  const later = await host.sample("src");
  assert.equal(later.state, "serving");
  assert.equal(later.guest?.verified_pages, guest?.verified_pages, "the guest runs in two places");
  await moved;
  await source.process.endedWith(0);
  await destination.process.waitFor("summary");
  await proveGuest(host, destination);
  host.assertEmpty();
});

kvmTest("Ctrl-C while the guest is being stopped ends in order", async (host) => {
  const source = await startGuest(host, "src", ["--ram", "512M", "--write-ratio", "1"]);
  using client = await ControlClient.connect("src", { base: host.runtimeDir });
  const stopped = client.call("stop").then(
    (event) => proveReport(v.parse(guestSchema, event)),
    // The signal may be heeded first: then it is the request that comes too late.
    (error) => assert.match(String(error), /"src" is ending/),
  );
  source.process.signal("SIGINT");
  await stopped;
  await source.process.endedWith(0);
  host.assertEmpty();
});
