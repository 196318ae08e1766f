/** Once is no proof: back and forth, and again and again, without damage and without growth. */
import assert from "node:assert/strict";
import { touchesOf } from "../../lib/events.ts";
import { kvmTest } from "../helpers/kvm.ts";
import { type Holder, move, prepare, startGuest, startMove } from "../helpers/pair.ts";
import { type Held, heldBy } from "../helpers/proc.ts";
import { proveGuest, proveSourceStill, proveSummary } from "../helpers/proof.ts";

const MODES = [
  ["--mode", "full"],
  ["--mode", "hybrid", "--precopy-timeout", "200ms"],
  ["--mode", "precopy"],
  ["--mode", "hybrid", "--precopy-timeout", "200ms", "--bandwidth", "1Gbit"],
  ["--mode", "full", "--prefetch-connections", "4"],
];

/** A runtime's own pools come and go a little. */
const GROWTH: Held = { fds: 4, threads: 4, privateMib: 48 };

function proveNoGrowth(first: Held, last: Held): void {
  const words = `${JSON.stringify(first)} -> ${JSON.stringify(last)}`;
  assert.ok(last.fds - first.fds <= GROWTH.fds, `fds: ${words}`);
  assert.ok(last.threads - first.threads <= GROWTH.threads, `threads: ${words}`);
  assert.ok(last.privateMib - first.privateMib <= GROWTH.privateMib, `memory: ${words}`);
}

for (const [vcpus, tls] of [["2", "on"], ["4", "off"]] as const) {
  kvmTest(`a guest of ${vcpus} vCPUs moves back and forth ten times with TLS ${tls}`, async (host) => {
    // Write-heavy, but no faster than pre-copy mode can follow.
    const vm = ["--vcpus", vcpus, "--rate", "20000", "--write-ratio", "1", "--workload", "zipf"];
    let holder: Holder = await startGuest(host, "a", vm);
    let passed = 0;
    const held: Held[] = [];
    for (let times = 1; times <= 10; times++) {
      const next = await prepare(host, times % 2 === 1 ? "b" : "a", ["--tls", tls]);
      const mode = MODES[times % MODES.length] ?? [];
      const moved = await move(host, holder, next, [...mode, "--tls", tls]);
      proveSummary(moved);
      proveSourceStill(moved);
      assert.ok(touchesOf(moved.summary.guest) >= passed, "the guest's account goes on where it was");
      passed = touchesOf(moved.summary.guest);
      holder = next;
      held.push(heldBy(holder.process.pid));
    }
    const [first, last] = [held[0], held.at(-1)];
    assert.ok(first && last);
    // Each is a process of its own, but what one hands to the next must not grow either.
    proveNoGrowth(first, last);
    await proveGuest(host, holder);
    host.assertEmpty();
  });
}

kvmTest("migrations that are cancelled leave nothing behind in the source", async (host) => {
  const source = await startGuest(host, "src", ["--vcpus", "2"]);
  const held: Held[] = [];
  for (let times = 1; times <= 8; times++) {
    const destination = await prepare(host, "dst");
    const options = ["--precopy-timeout", "60s", "--bandwidth", "50Mbit"];
    const migrate = startMove(host, source, destination.ticket, options);
    // In every state before the commit point that lasts long enough to be met.
    if (times % 2 === 0) await migrate.reached("precopy");
    else await migrate.waitFor("promise");
    await host.start(["cancel", "src"]).endedWith(0);
    await migrate.endedWith(130);
    await destination.process.endedWith(10);
    held.push(heldBy(source.process.pid));
  }
  const [first, last] = [held[1], held.at(-1)];
  assert.ok(first && last);
  proveNoGrowth(first, last);
  await proveGuest(host, source);
  host.assertEmpty();
});
