/** After the commit point the destination's gyges dies, and another goes on with its guest; with a control. */
import assert from "node:assert/strict";
import { pause } from "../helpers/host.ts";
import type { GygesProcess } from "../helpers/gyges_process.ts";
import { type Held, QemuPair, type Waiting } from "./pair.ts";
import { stampedRun } from "./stamps.ts";

const SHAPE = { rate: 8000, workingSet: "32M", withDisk: true } as const;
const FULL = ["--mode", "full"];
/** So that there is something left when it dies. */
const SLOW = ["--bandwidth", "20MiB/s"];
const LOST = 12;
const USAGE = 2;

interface Orphaned {
  home: Held;
  to: Waiting;
  migrate: GygesProcess;
}

/** A move whose destination is killed once `when` holds. */
async function orphan(
  pair: QemuPair,
  args: readonly string[],
  when: (to: Waiting) => Promise<unknown>,
  home?: Held,
): Promise<Orphaned> {
  home ??= await pair.start();
  const to = await pair.prepare();
  const migrate = pair.host.start(["migrate", to.ticket, "--vm", home.name, ...SLOW, ...args]);
  await when(to);
  to.process.signal("SIGKILL");
  await to.process.ended();
  return { home, to, migrate };
}

const justCommitted = (to: Waiting) => to.process.reached("running");

function halfWay(pair: QemuPair) {
  return (to: Waiting) =>
    pair.host.sampleUntil(
      to.name,
      ({ state, present_pages, total_pages, pulled_pages }) =>
        state === "running" && pulled_pages > 4000 && present_pages < total_pages,
    );
}

/** What the native pager has pulled only its source knows. */
const soonAfter = async (to: Waiting) => {
  await justCommitted(to);
  await pause(500);
};

for (
  const [what, args, when, shape, pager] of [
    ["full, just after the commit point", FULL, () => justCommitted, SHAPE, "user"],
    ["full, half way, a QEMU without privilege", FULL, halfWay, { ...SHAPE, asNobody: "changes" }, "user"],
    ["hybrid, just after the commit point", ["--precopy-timeout", "500ms"], () => justCommitted, SHAPE, "user"],
    ["native pager, half way", FULL, () => soonAfter, { ...SHAPE, qemu: "10.0" }, "native"],
  ] as const
) {
  Deno.test(`gyges attach goes on with a guest whose gyges was killed: ${what}`, async () => {
    await using pair = await QemuPair.open(shape);
    const { home, to, migrate } = await orphan(pair, args, when(pair), await pair.start(["--pager", pager]));
    await migrate.reached("paused");
    // The guest waits, and is not given up.
    await migrate.waitFor("note", ({ detail }) => detail.includes(`gyges attach ${to.name}`));
    const attach = pair.host.start(["attach", to.name]);
    await Promise.all([migrate.endedWith(0), home.process.endedWith(0)]);
    pair.console.moveTo(to.log);
    const summary = await attach.waitFor("summary");
    assert.ok(attach.states.includes("completed") && summary.postcopy_pages > 1000, JSON.stringify(summary));
    assert.deepEqual([summary.pager, summary.duplicate_pages], [pager, pager === "native" ? null : 0]);
    assert.deepEqual(summary, await migrate.waitFor("summary"));
    await pair.proved();
    // It holds the guest like any other, which can move on.
    await pair.move({ ...to, process: attach }, await pair.prepare(), FULL);
    await pair.proved();
  });
}

Deno.test("gyges attach goes on with a guest whose source had given the link up, and told so", async () => {
  await using pair = await QemuPair.open(SHAPE);
  const home = await pair.start([], { env: { GYGES_RECONNECT_S: "2" } });
  const { to, migrate } = await orphan(pair, FULL, justCommitted, home);
  await migrate.endedWith(11);
  const { message } = await migrate.waitFor("error");
  assert.match(message, new RegExp(`keep it alive.* gyges attach ${to.name}$`));
  await pause(1000);
  const attach = pair.host.start(["attach", to.name]);
  await home.process.endedWith(0);
  pair.console.moveTo(to.log);
  assert.deepEqual(await attach.waitFor("summary"), await home.process.waitFor("summary"));
  await pair.proved();
});

Deno.test("control: a page that is taken for present and is not is found by the guest", async () => {
  // No disk: its buffers look like stamped pages, and are none that the guest keeps.
  await using pair = await QemuPair.open({ rate: 8000 });
  const home = await pair.start();
  const { first } = stampedRun(pair.qemuOf(home.name));
  const { to, migrate } = await orphan(pair, FULL, justCommitted, home);
  pair.host.start(["attach", to.name], { env: { GYGES_INJECT: `absent-page@${first}` } });
  await migrate.endedWith(0);
  pair.console.moveTo(to.log);
  await pair.console.untilCorrupt();
  assert.match(pair.console.corruptions[0] ?? "", /zero$/);
});

Deno.test("gyges attach is refused where nobody died, or nothing is left; the orphan is pointed out until then", async () => {
  await using pair = await QemuPair.open(SHAPE);
  const words = async (args: readonly string[], code: number) => {
    const { events } = await pair.host.start(args).endedWith(code);
    return events.map((event) => event.type === "error" ? event.message : event.type === "note" ? event.detail : "")
      .join();
  };
  const home = await pair.start();
  assert.match(await words(["attach", home.name], USAGE), /process \d+ has it, which lives/);
  assert.match(await words(["attach", "nobody"], USAGE), /no process of that name has died here/);
  let qemu = 0;
  const { to, migrate } = await orphan(pair, FULL, async (to) => {
    qemu = pair.qemuOf(to.name);
    await justCommitted(to);
    assert.match(await words(["attach", to.name], USAGE), /which lives/);
  }, home);
  const how = new RegExp(`gyges attach ${to.name}`);
  for (const [args, code] of [[["vm", "list"], 0], [["monitor", to.name], USAGE]] as const) {
    assert.match(await words(args, code), how);
  }
  assert.match(await words(["run", to.name, "--", "qemu-system-x86_64"], USAGE), how);
  Deno.kill(qemu, "SIGKILL");
  assert.match(await words(["attach", to.name], LOST), /guest of ".*" is lost: its QEMU has ended/);
  assert.match(await words(["attach", to.name], USAGE), /no process of that name has died here/);
  // Its source is told, and can be ended.
  await migrate.endedWith(LOST);
  await pair.host.start(["vm", "stop", home.name]).endedWith(0);
  await home.process.endedWith(0);
});
