/** A guest of a QEMU without privilege where this host cannot make a userfaultfd for it: the control of moves_test.ts. */
import assert from "node:assert/strict";
import { testOrSkip } from "../helpers/skips.ts";
import { until } from "../helpers/host.ts";
import { qemuBinary } from "./binaries.ts";
import { QemuPair } from "./pair.ts";

/** With the device hidden; what is there in its place is none. */
const NO_DEVICE = ["unshare", "--mount", "sh", "-ec", 'mount --bind /dev/null /dev/userfaultfd; exec "$@"', "sh"];
const SETTING = "/proc/sys/vm/unprivileged_userfaultfd";

function why(): string | null {
  if (Deno.readTextFileSync(SETTING).trim() === "0") return null;
  return "vm.unprivileged_userfaultfd lets every process have one";
}

testOrSkip(
  "a QEMU without privilege is refused where there is no /dev/userfaultfd, with the remedy",
  why(),
  async () => {
    await using pair = await QemuPair.open({ asNobody: "changes", rate: 8000, workingSet: "32M" });
    const home = await pair.start([], { under: NO_DEVICE });
    const prepare = await pair.startPrepare({ under: NO_DEVICE });
    await prepare.process.endedWith(3);
    const refusal = await prepare.process.waitFor("error");
    assert.equal(refusal.check, "userfaultfd");
    assert.match(
      refusal.message,
      /\/dev\/userfaultfd: .*sysctl -w vm\.unprivileged_userfaultfd=1, or start QEMU as root/,
    );
    assert.ok(!pair.hasQemu(prepare.name));

    const migrate = pair.host.start(["migrate", (await pair.prepare()).ticket, "--vm", home.name]);
    await migrate.endedWith(3);
    assert.match((await migrate.waitFor("error")).message, /\/dev\/userfaultfd.*--mode full/);
    await pair.console.untilBeats(5);
    // That tracks no writes.
    await pair.move(home, await pair.prepare(), ["--mode", "full"]);
    await pair.proved();
  },
);

Deno.test("a QEMU without privilege whose RAM is its own is refused, with what would make it move", async () => {
  await using pair = await QemuPair.open({ asNobody: "changes" });
  const { name, process } = await pair.startPrepare({ args: ["--pager", "native"] });
  await process.endedWith(3);
  const { message } = await process.waitFor("error");
  assert.match(
    message,
    /native pager cannot move this guest: .* of user 0, and process \d+ runs as user 65534: have its RAM/,
  );
  assert.ok(!pair.hasQemu(name));
});

Deno.test("what keeps QEMU as a child is refused as its start, and QEMU ended", async () => {
  await using pair = await QemuPair.open({});
  const { program } = await qemuBinary("7.2");
  const command = ["runuser", "-u", "nobody", "--", program, "-nodefaults", "-display", "none", "-accel", "tcg"];
  const { events } = await pair.host.start(["run", "child", "--", ...command]).endedWith(3);
  assert.match(JSON.stringify(events), /runuser to start QEMU as it is process \d+ and QEMU its child: use .*setpriv/);
  await until(() => !pair.hasQemu("child"), () => "QEMU still runs");
});
