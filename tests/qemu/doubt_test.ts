/** A destination is in doubt, and its move is given up: it hears that the guest runs at the source, or an operator does. */
import assert from "node:assert/strict";
import { until } from "../helpers/host.ts";
import { CUT, Hold, once, ROLES, Wiretap } from "../helpers/wiretap.ts";
import { type Held, QemuPair } from "./pair.ts";

const PLAIN = ["--tls", "off"];
const FULL = ["--mode", "full", ...PLAIN];

/** Where a move of it may begin: at the process that holds it, or, which is killed then, at its monitor. */
async function begins(pair: QemuPair, home: Held, by: "process" | "monitor"): Promise<string[]> {
  if (by === "process") return ["--vm", home.name];
  home.process.signal("SIGKILL");
  await home.process.ended();
  return ["--qmp", pair.host.monitorOf(home.name)];
}

for (const by of ["monitor", "process"] as const) {
  Deno.test(`a destination in doubt is told that a migrate by ${by} was interrupted`, async () => {
    await using pair = await QemuPair.open({ rate: 8000, withDisk: true });
    const home = await pair.start();
    const from = await begins(pair, home, by);
    const to = await pair.prepare({ args: PLAIN });
    const hold = new Hold("loaded");
    await using tap = new Wiretap(to.ticket, hold);
    const migrate = pair.host.start(["migrate", tap.ticket, ...from, ...FULL]);
    await hold.reached();
    migrate.signal("SIGINT");
    await migrate.endedWith(130);
    hold.release();
    await to.process.endedWith(10);
    await pair.proved();
    await until(() => !pair.hasQemu(to.name), () => "the QEMU that waited has ended");
    assert.ok(pair.hasQemu(home.name));
  });
}

Deno.test("a migrate that cannot tell a destination in doubt says so, and what to do there", async () => {
  await using pair = await QemuPair.open({ rate: 8000, withDisk: true });
  const home = await pair.start();
  const from = await begins(pair, home, "monitor");
  const to = await pair.prepare({ args: PLAIN });
  const cutLong = () => {
    tap.cut(ROLES, 60_000);
    return CUT;
  };
  await using tap: Wiretap = new Wiretap(to.ticket, once("loaded", cutLong));
  const migrate = pair.host.start(["migrate", tap.ticket, ...from, ...FULL], { env: { GYGES_RECONNECT_S: "2" } });
  const { events } = await migrate.endedWith(10);
  const notes = events.flatMap((event) => event.type === "note" ? [event.detail] : []);
  assert.match(notes.join("\n"), /for 2 s this tries to tell it.*\n.*end the gyges that waits by SIGKILL/);
  await pair.proved();
  to.process.signal("SIGKILL");
  await until(() => !pair.hasQemu(to.name), () => "the QEMU that waited has ended");
});
