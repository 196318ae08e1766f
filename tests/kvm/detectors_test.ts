/** Positive controls: each kind of damage, made on purpose, is seen by the guest and by the check of all RAM. */
import assert from "node:assert/strict";
import type { GuestEvent } from "../../lib/events.ts";
import { type Host, pause } from "../helpers/host.ts";
import { kvmTest } from "../helpers/kvm.ts";
import { prepare, startGuest, startMove } from "../helpers/pair.ts";
import { proveReport } from "../helpers/proof.ts";

/** A page of the working set of a guest with 64 MiB, clear of its first. */
const PAGE = 100;
const CORRUPT = 12;

interface Damage {
  fault: "zero-page" | "swap-pages" | "stale-page" | "skip-dirty";
  side: "source" | "destination";
  vm: string[];
  migrate: string[];
}

interface Undamaged {
  fault: null;
  side: null;
  vm: string[];
  migrate: string[];
}

const FULL = ["--mode", "full"];
const HYBRID = ["--mode", "hybrid", "--precopy-timeout", "300ms", "--bandwidth", "1Gbit"];
const CONVERGING = ["--mode", "hybrid", "--bandwidth", "1Gbit"];

/**
 * It only reads: the page that it is about to rewrite when it is stopped is the first that it waits for at the
 * destination, and damage to that one would be written over unseen.
 */
const READER = ["--write-ratio", "0"];
/** Writes some pages during pre-copy, and comes by each once in two seconds: hardly before the stop, but soon after. */
const STEADY = ["--working-set", "24M", "--rate", "3000", "--write-ratio", "1"];
/** Comes by too late to see, or to mend, anything. */
const SLOW = ["--rate", "200", "--write-ratio", "1"];
const SLOWEST = ["--rate", "1"];
/** The guest may by chance write the damaged page again before anybody looks, and so mend it. */
const TRIES = 3;
const SEEN_WITHIN_MS = 12_000;

/** Damage to what the guest has written since it was pre-copied needs pre-copy and a guest that writes. */
const BY_GUEST: Damage[] = [
  { fault: "zero-page", side: "destination", vm: READER, migrate: FULL },
  { fault: "swap-pages", side: "destination", vm: READER, migrate: FULL },
  { fault: "stale-page", side: "destination", vm: STEADY, migrate: CONVERGING },
  { fault: "skip-dirty", side: "source", vm: STEADY, migrate: CONVERGING },
];

const BY_HOST: Damage[] = [
  { fault: "zero-page", side: "destination", vm: SLOWEST, migrate: FULL },
  { fault: "swap-pages", side: "destination", vm: SLOWEST, migrate: FULL },
  { fault: "stale-page", side: "destination", vm: SLOW, migrate: HYBRID },
  { fault: "skip-dirty", side: "source", vm: SLOWEST, migrate: FULL },
  { fault: "skip-dirty", side: "source", vm: SLOW, migrate: CONVERGING },
];

/** Moves a guest and stops it once `enough` of it was seen; what it and its RAM say in the end. */
async function outcome(
  host: Host,
  { fault, side, vm, migrate }: Damage | Undamaged,
  enough: () => Promise<void>,
): Promise<GuestEvent> {
  const env = fault ? { env: { GYGES_INJECT: `${fault}@${PAGE}` } } : {};
  const source = await startGuest(host, "src", vm, side === "source" ? env : {});
  const destination = await prepare(host, "dst", [], side === "destination" ? env : {});
  const moving = startMove(host, source, destination.ticket, migrate);
  // Damage that the guest sees before the last page has come is told by the code.
  const { code } = await moving.ended();
  assert.ok(code === 0 || (fault && code === CORRUPT), `migrate ended with ${code}`);
  await destination.process.waitFor("summary");
  await enough();
  const stopped = await host.start(["vm", "stop", "dst"]).ended();
  await destination.process.endedWith(0);
  const [event] = stopped.events;
  assert.ok(event?.type === "guest");
  assert.equal(stopped.code, (event.guest.corrupt ?? 0) + (event.ram_check?.bad_pages ?? 0) > 0 ? CORRUPT : 0);
  host.assertEmpty();
  return event;
}

async function atOnce(): Promise<void> {}

for (const damage of BY_GUEST) {
  kvmTest(`the guest notices ${damage.fault} after a move in mode ${damage.migrate[1]}`, async (host) => {
    for (let tries = 1; tries <= TRIES; tries++) {
      const { guest } = await outcome(host, damage, async () => {
        const deadline = performance.now() + SEEN_WITHIN_MS;
        while ((await host.guest("dst")).corrupt === 0 && performance.now() < deadline) await pause(50);
      });
      if (guest.corrupt === 0) continue;
      assert.ok(guest.first_corrupt_page !== null && guest.first_corrupt_page >= PAGE, `${guest.first_corrupt_page}`);
      return;
    }
    assert.fail(`not noticed in ${TRIES} tries`);
  });
}

for (const damage of BY_HOST) {
  kvmTest(`the check of all RAM notices ${damage.fault} after a move in mode ${damage.migrate[1]}`, async (host) => {
    for (let tries = 1; tries <= TRIES; tries++) {
      const { ram_check } = await outcome(host, damage, atOnce);
      assert.ok(ram_check);
      if (ram_check.bad_pages === 0) continue;
      assert.ok(ram_check.first_bad_page !== null && ram_check.first_bad_page >= PAGE, `${ram_check.first_bad_page}`);
      return;
    }
    assert.fail(`not noticed in ${TRIES} tries`);
  });
}

for (const migrate of [FULL, HYBRID]) {
  kvmTest(`nothing is noticed where nothing was damaged, in mode ${migrate[1]}`, async (host) => {
    proveReport(await outcome(host, { fault: null, side: null, vm: SLOW, migrate }, atOnce));
  });
}
