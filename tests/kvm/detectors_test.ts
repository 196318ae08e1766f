/** Positive controls: each kind of damage, made on purpose, is seen by the guest and by the check of all RAM. */
import assert from "node:assert/strict";
import type { GuestEvent } from "../../lib/events.ts";
import type { Host } from "../helpers/host.ts";
import { kvmTest } from "../helpers/kvm.ts";
import { prepare, startGuest, startMove, stopGuest } from "../helpers/pair.ts";
import { proveReport } from "../helpers/proof.ts";

/** A page of the working set of a guest with 64 MiB, clear of its first. */
const PAGE = 200;
const CORRUPT = 12;

interface Damage {
  fault: "zero-page" | "swap-pages" | "stale-page" | "skip-dirty";
  side: "source" | "destination";
  vm: string[];
  migrate: string[];
}

const FULL = ["--mode", "full"];
const HYBRID = ["--mode", "hybrid", "--precopy-timeout", "300ms", "--bandwidth", "1Gbit"];
const CONVERGING = ["--mode", "hybrid", "--bandwidth", "1Gbit"];

const FAST = ["--write-ratio", "1"];
/** Writes some pages during pre-copy, and comes by each once in seconds: pre-copy converges. */
const STEADY = ["--rate", "5000", "--write-ratio", "1"];
/** Comes by too late to see, or to mend, anything. */
const SLOW = ["--rate", "200", "--write-ratio", "1"];
const SLOWEST = ["--rate", "1"];

/** Damage to what the guest has written since it was pre-copied needs pre-copy and a guest that writes. */
const BY_GUEST: Damage[] = [
  { fault: "zero-page", side: "destination", vm: FAST, migrate: FULL },
  { fault: "swap-pages", side: "destination", vm: FAST, migrate: FULL },
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

interface Run {
  vm: string[];
  damage: Damage | null;
  migrate: string[];
  /** The guest goes on until it has seen something wrong. */
  untilSeen?: boolean;
}

/** Moves a guest and stops it; what it and its RAM say in the end. */
async function outcome(host: Host, { vm, damage, migrate, untilSeen }: Run): Promise<GuestEvent> {
  const env = damage ? { env: { GYGES_INJECT: `${damage.fault}@${PAGE}` } } : {};
  const source = await startGuest(host, "src", vm, damage?.side === "source" ? env : {});
  const destination = await prepare(host, "dst", [], damage?.side === "destination" ? env : {});
  const moving = startMove(host, source, destination.ticket, migrate);
  // Damage that the guest sees before the last page has come is told by the code.
  const { code } = await moving.ended();
  assert.ok(code === 0 || (damage && code === CORRUPT), `migrate ended with ${code}`);
  await destination.process.waitFor("summary");
  if (untilSeen) await host.guestUntil("dst", ({ corrupt }) => corrupt > 0);
  const event = await stopGuest(host, destination, damage ? CORRUPT : 0);
  host.assertEmpty();
  return event;
}

for (const damage of BY_GUEST) {
  const { fault, vm, migrate } = damage;
  kvmTest(`the guest notices ${fault} after a move in mode ${migrate[1]}`, async (host) => {
    const { guest } = await outcome(host, { vm, damage, migrate, untilSeen: true });
    assert.ok(guest.first_corrupt_page !== null && guest.first_corrupt_page >= PAGE, `${guest.first_corrupt_page}`);
  });
}

for (const damage of BY_HOST) {
  const { fault, vm, migrate } = damage;
  kvmTest(`the check of all RAM notices ${fault} after a move in mode ${migrate[1]}`, async (host) => {
    const { ram_check } = await outcome(host, { vm, damage, migrate });
    assert.ok(ram_check && ram_check.bad_pages > 0, "no page is bad");
    assert.ok(ram_check.first_bad_page !== null && ram_check.first_bad_page >= PAGE, `${ram_check.first_bad_page}`);
  });
}

for (const migrate of [FULL, HYBRID]) {
  kvmTest(`nothing is noticed where nothing was damaged, in mode ${migrate[1]}`, async (host) => {
    proveReport(await outcome(host, { vm: SLOW, damage: null, migrate }));
  });
}
