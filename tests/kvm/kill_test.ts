/**
 * Death in every state: a message is held on its way, which stops both ends in a known state, and then one of the
 * three processes gets a signal.
 */
import assert from "node:assert/strict";
import type { GygesProcess } from "../helpers/gyges_process.ts";
import { type Host, pause } from "../helpers/host.ts";
import { kvmTest } from "../helpers/kvm.ts";
import { errorOf, proveStays } from "../helpers/outcome.ts";
import { type Destination, finished, type Holder, prepare, startGuest, startMove } from "../helpers/pair.ts";
import { proveGuest, proveReport, proveSummary } from "../helpers/proof.ts";
import { Hold, Wiretap } from "../helpers/wiretap.ts";

const VM = ["--ram", "32M", "--rate", "20000"];
const PLAIN = ["--tls", "off"];
const HYBRID = ["--mode", "hybrid", "--precopy-timeout", "200ms", ...PLAIN];
const SIGNALS = ["SIGKILL", "SIGTERM", "SIGINT"] as const;
/** Both ends ask the operator after so long. */
const SOON = { env: { GYGES_RECONNECT_S: "1" } };

interface Held {
  source: Holder;
  destination: Destination;
  migrate: GygesProcess;
  hold: Hold;
}

type Signal = typeof SIGNALS[number];

/** The message that is held, and the states that source and destination are in then. */
const BEFORE_LOADED = [
  ["offer", "setup", "preparing"],
  ["accepted", "setup", "preparing"],
  ["round", "precopy", "preparing"],
  ["round_done", "precopy", "precopy"],
  ["discarded", "precopy", "precopy"],
  ["handover", "handover", "precopy"],
] as const;

async function heldAt(
  host: Host,
  message: string,
  body: (held: Held) => Promise<void>,
): Promise<void> {
  const source = await startGuest(host, "src", VM, SOON);
  const destination = await prepare(host, "dst", PLAIN, SOON);
  const hold = new Hold(message);
  await using tap = new Wiretap(destination.ticket, hold);
  const migrate = startMove(host, source, tap.ticket, HYBRID);
  try {
    await hold.reached();
    await body({ source, destination, migrate, hold });
  } finally {
    hold.release();
  }
}

/** The directory of a process that was killed; the next of its name would clear it. */
async function clear(host: Host, name: string): Promise<void> {
  await Deno.remove(`${host.runtimeDir}/${name}`, { recursive: true });
}

async function kill(process: GygesProcess, signal: Signal): Promise<void> {
  process.signal(signal);
  if (signal === "SIGKILL") assert.equal((await process.ended(5_000)).code, 137);
}

async function destinationDies(host: Host, held: Held, signal: Signal): Promise<void> {
  await kill(held.destination.process, signal);
  if (signal === "SIGKILL") await clear(host, "dst");
  else assert.equal(errorOf(await held.destination.process.endedWith(130)).guest_location, "source");
  const error = errorOf(await held.migrate.endedWith(10));
  assert.equal(error.guest_location, "source");
  assert.match(error.message, /guest runs at the source/);
  await proveStays(host, held.source);
}

async function migrateDies(host: Host, held: Held, signal: Signal): Promise<void> {
  await kill(held.migrate, signal);
  if (signal !== "SIGKILL") assert.equal(errorOf(await held.migrate.endedWith(130)).guest_location, "source");
  assert.equal(errorOf(await held.destination.process.endedWith(10)).guest_location, "source");
  await proveStays(host, held.source);
}

async function sourceDies(host: Host, held: Held, signal: Signal): Promise<void> {
  await kill(held.source.process, signal);
  if (signal === "SIGKILL") {
    await clear(host, "src");
    const error = errorOf(await held.migrate.endedWith(12));
    assert.match(error.message, /guest .*lost/);
    assert.equal(error.guest_location, "lost");
  } else {
    // Whoever ends the process that holds a guest ends the guest; in order, so it is whole to the last.
    await held.migrate.endedWith(130);
    const report = (await held.source.process.endedWith(0)).events.findLast((event) => event.type === "guest");
    assert.ok(report);
    proveReport(report);
  }
  await held.destination.process.endedWith(10);
}

const VICTIMS = { destination: destinationDies, migrate: migrateDies, source: sourceDies };

for (const [message, source, destination] of BEFORE_LOADED) {
  for (const [victim, dies] of Object.entries(VICTIMS)) {
    kvmTest(
      `${victim} dies by any signal at "${message}": source in ${source}, destination in ${destination}`,
      async (host) => {
        for (const signal of SIGNALS) {
          await heldAt(host, message, async (held) => {
            assert.equal((await host.sample("src")).state, source);
            assert.equal((await host.sample("dst")).state, destination);
            await dies(host, held, signal);
          });
          host.assertEmpty();
        }
      },
    );
  }
}

// ---- "loaded": the destination has the machine and cannot know whether the source has said "run" ----

for (const signal of SIGNALS) {
  kvmTest(`migrate dies by ${signal} while the destination is in doubt: the guest runs at the source`, async (host) => {
    await heldAt(host, "loaded", async (held) => {
      assert.equal((await host.sample("dst")).state, "loading");
      await migrateDies(host, held, signal);
    });
    host.assertEmpty();
  });
}

kvmTest("the source is ended in order while the destination is in doubt, which hears of it", async (host) => {
  await heldAt(host, "loaded", (held) => sourceDies(host, held, "SIGTERM"));
  host.assertEmpty();
});

kvmTest("the destination is killed while it is in doubt: the guest runs at the source", async (host) => {
  await heldAt(host, "loaded", (held) => destinationDies(host, held, "SIGKILL"));
  host.assertEmpty();
});

for (const message of ["loaded", "run"]) {
  kvmTest(
    `a destination in doubt at "${message}" explains SIGTERM and goes on, and the guest arrives`,
    async (host) => {
      await heldAt(host, message, async ({ source, destination, migrate, hold }) => {
        for (const signal of ["SIGTERM", "SIGINT"] as const) destination.process.signal(signal);
        await pause(200);
        assert.equal((await host.sample("dst")).state, "loading");
        hold.release();
        const moved = await finished(source, destination, await migrate.endedWith(0));
        proveSummary(moved);
        await proveGuest(host, destination);
      });
      host.assertEmpty();
    },
  );

  kvmTest(
    `the source is killed at "${message}": the destination says 11, never runs the guest, and can be killed`,
    async (host) => {
      await heldAt(host, message, async ({ source, destination, migrate }) => {
        await kill(source.process, "SIGKILL");
        await clear(host, "src");
        await migrate.endedWith(message === "loaded" ? 12 : 11);
        const error = await destination.process.waitFor("error");
        assert.deepEqual([error.code, error.guest_location], [11, "unknown"]);
        assert.equal((await host.sample("dst")).state, "loading");
        await kill(destination.process, "SIGKILL");
        await clear(host, "dst");
      });
      host.assertEmpty();
    },
  );
}

// ---- after the commit point ----

/** Post-copy that lasts longer than any test needs. */
const SLOW_FULL = ["--mode", "full", "--bandwidth", "20Mbit"];

async function inPostcopy(host: Host): Promise<Omit<Held, "hold">> {
  const source = await startGuest(host, "src", VM);
  const destination = await prepare(host, "dst");
  const migrate = startMove(host, source, destination.ticket, SLOW_FULL);
  await migrate.reached("serving");
  await host.sampleUntil("dst", ({ pulled_pages }) => pulled_pages > 100);
  return { source, destination, migrate };
}

for (const end of ["vm stop", "SIGTERM"] as const) {
  kvmTest(
    `the destination is killed after the commit point: migrate says 12, and ${end} ends the source`,
    async (host) => {
      const { source, destination, migrate } = await inPostcopy(host);
      await kill(destination.process, "SIGKILL");
      await clear(host, "dst");
      const began = performance.now();
      const error = errorOf(await migrate.endedWith(12));
      assert.ok(performance.now() - began < 10_000, "it took long to find out");
      assert.equal(error.guest_location, "lost");
      assert.match(error.message, /guest is lost: nobody listens at 127\.0\.0\.1:\d+ any more/);
      assert.equal((await source.process.waitFor("error")).code, 12);
      const guest = await host.guest("src");
      assert.deepEqual([guest.location, guest.running], ["lost", false]);
      if (end === "SIGTERM") source.process.signal(end);
      else await host.start(["vm", "stop", "src"]).endedWith(0);
      await source.process.endedWith(0);
      host.assertEmpty();
    },
  );
}

kvmTest("the source is killed after the commit point: migrate says 11 and where to look", async (host) => {
  const { source, destination, migrate } = await inPostcopy(host);
  await kill(source.process, "SIGKILL");
  await clear(host, "src");
  const error = errorOf(await migrate.endedWith(11));
  assert.match(error.message, /died after the commit point/);
  await destination.process.reached("paused");
  await kill(destination.process, "SIGKILL");
});

kvmTest("migrate is killed after the commit point: the guest arrives all the same", async (host) => {
  const source = await startGuest(host, "src", VM);
  const destination = await prepare(host, "dst");
  const migrate = startMove(host, source, destination.ticket, ["--mode", "full", "--bandwidth", "200Mbit"]);
  await migrate.reached("serving");
  await kill(migrate, "SIGKILL");
  await destination.process.waitFor("summary");
  await source.process.endedWith(0);
  await proveGuest(host, destination);
  host.assertEmpty();
});
