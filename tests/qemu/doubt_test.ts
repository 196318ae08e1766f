/** A destination that is in doubt hears that the guest runs at the source. */
import assert from "node:assert/strict";
import { Hold, Wiretap } from "../helpers/wiretap.ts";
import { until } from "../helpers/host.ts";
import { QemuPair } from "./pair.ts";

for (const by of ["monitor", "process"] as const) {
  Deno.test(`a destination in doubt is told that the move was given up: by ${by}`, async () => {
    await using pair = await QemuPair.open({ rate: 8000, withDisk: true });
    const home = await pair.start();
    if (by === "monitor") {
      home.process.signal("SIGKILL");
      await home.process.ended();
    }
    const to = await pair.prepare({ args: ["--tls", "off"] });
    const hold = new Hold("loaded");
    await using tap = new Wiretap(to.ticket, hold);
    const from = by === "monitor" ? ["--qmp", `${pair.host.runtimeDir}/${home.name}/qmp.sock`] : ["--vm", home.name];
    const migrate = pair.host.start(["migrate", tap.ticket, ...from, "--tls", "off", "--mode", "full"]);
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
