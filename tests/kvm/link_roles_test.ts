/** A link lost for a while after the commit point, by the kind of its connections: it heals, and the stall is told. */
import assert from "node:assert/strict";
import type { Host } from "../helpers/host.ts";
import { kvmTest } from "../helpers/kvm.ts";
import { finished, prepare, startGuest, startMove } from "../helpers/pair.ts";
import { proveGuest, proveSummary } from "../helpers/proof.ts";
import { Wiretap } from "../helpers/wiretap.ts";

type Role = "control" | "demand" | "prefetch";

const ALL: Role[] = ["control", "demand", "prefetch"];

async function proveHeals(host: Host, id: string, roles: readonly Role[], forMs: number): Promise<void> {
  const source = await startGuest(host, `src-${id}`, ["--ram", "48M", "--vcpus", "2"]);
  const destination = await prepare(host, `dst-${id}`, ["--tls", "off"]);
  await using tap = new Wiretap(destination.ticket, {});
  const migrate = startMove(host, source, tap.ticket, ["--mode", "full", "--bandwidth", "150Mbit", "--tls", "off"]);
  await migrate.reached("serving");
  await host.sampleUntil(destination.name, ({ pulled_pages }) => pulled_pages > 1_000);
  tap.cut(roles, forMs);
  await migrate.reached("paused");
  await destination.process.reached("paused");
  const moved = await finished(source, destination, await migrate.endedWith(0, forMs + 30_000));
  proveSummary(moved);
  for (const { states } of [migrate, destination.process]) {
    assert.equal(states.filter((state) => state === "paused").length, 1, states.join(" "));
  }
  // A guest whose pages are missing at random stands still soon after the cut, and says for how long.
  const stallMs = (moved.summary.guest.largest_stall_ns ?? NaN) / 1e6;
  assert.ok(stallMs > forMs * 0.8 && stallMs < forMs + 5_000, `a stall of ${stallMs} ms`);
  assert.ok(moved.summary.blocktime_ns / 1e6 > forMs * 0.8, `a blocktime of ${moved.summary.blocktime_ns / 1e6} ms`);
  await proveGuest(host, destination);
}

for (const roles of [["demand"], ["prefetch"], ["control"], ALL] satisfies Role[][]) {
  kvmTest(`${roles.join(" and ")} lost for 0.5 s heal, and the guest arrives whole`, async (host) => {
    await proveHeals(host, "1", roles, 500);
    host.assertEmpty();
  });
}

kvmTest(
  "20 s without demand, without prefetch, or without any connection heal, and the guests arrive whole",
  async (host) => {
    await Promise.all([
      proveHeals(host, "demand", ["demand"], 20_000),
      proveHeals(host, "prefetch", ["prefetch"], 20_000),
      proveHeals(host, "all", ALL, 20_000),
    ]);
    host.assertEmpty();
  },
);
