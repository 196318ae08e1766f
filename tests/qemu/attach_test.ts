/** After the commit point a gyges dies, at either end, and another goes on with its part; with a control. */
import assert from "node:assert/strict";
import { pause, until } from "../helpers/host.ts";
import type { GygesProcess } from "../helpers/gyges_process.ts";
import { CUT, once, Wiretap, type WiretapOptions } from "../helpers/wiretap.ts";
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
  await killed(to.process);
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

/** A move whose source is killed just after the commit point: `name` is to be attached. */
async function widowed(pair: QemuPair, how: "run" | "monitor"): Promise<{ name: string; home: Held; to: Waiting }> {
  const home = await pair.start();
  const to = await pair.prepare();
  const from = how === "run" ? ["--vm", home.name] : ["--qmp", pair.host.monitorOf(home.name)];
  if (how === "monitor") await killed(home.process);
  const name = how === "run" ? home.name : `qemu-${pair.qemuOf(home.name)}`;
  const migrate = pair.host.start(["migrate", to.ticket, ...from, ...FULL, ...SLOW]);
  await justCommitted(to);
  await killed(how === "run" ? home.process : migrate);
  if (how === "run") {
    await migrate.endedWith(11);
    assert.match((await migrate.waitFor("error")).message, new RegExp(`its guest waits: run gyges attach ${name}$`));
  }
  await to.process.reached("paused");
  return { name, home, to };
}

/** Kills `victim` as the first control message of `type` comes by, which goes no further. */
function deathAt(type: string, victim: GygesProcess): WiretapOptions {
  return once(type, async () => {
    await killed(victim);
    return CUT;
  });
}

async function killed(process: GygesProcess): Promise<void> {
  process.signal("SIGKILL");
  await process.ended();
}

for (const [what, how] of [["gyges run", "run"], ["gyges migrate --qmp", "monitor"]] as const) {
  Deno.test(`gyges attach goes on serving a guest's pages where the source's ${what} was killed`, async () => {
    await using pair = await QemuPair.open(SHAPE);
    const { name, home, to } = await widowed(pair, how);
    const advice = new RegExp(`gyges attach ${name}`);
    assert.match(await wordsOf(pair, ["vm", "list"], 0), advice);
    // The first is killed too.
    const first = pair.host.start(["attach", name]);
    await first.reached("serving");
    await killed(first);
    const attach = pair.host.start(["attach", name]);
    await attach.endedWith(0);
    pair.console.moveTo(to.log);
    const summary = await to.process.waitFor("summary");
    assert.deepEqual(await attach.waitFor("summary"), summary);
    assert.ok(summary.postcopy_pages > 1000 && summary.duplicate_pages === 0, JSON.stringify(summary));
    await pair.proved();
    await until(() => !pair.hasQemu(home.name), () => "the source's QEMU has ended");
    await pair.move(to, await pair.prepare(), FULL);
    await pair.proved();
  });
}

Deno.test("gyges attach at the source gives the word to run that its process could give no more", async () => {
  await using pair = await QemuPair.open(SHAPE);
  const home = await pair.start();
  const to = await pair.prepare({ args: ["--tls", "off"] });
  await using tap = new Wiretap(to.ticket, deathAt("run", home.process));
  const { events } = await pair.host.start(["migrate", tap.ticket, "--vm", home.name, "--tls", "off", ...FULL]).ended();
  assert.ok(tap.seen.includes("run"), `it ended before the word was given: ${JSON.stringify(events.at(-1))}`);
  assert.equal((await pair.host.sample(to.name)).state, "loading");
  await pair.host.start(["attach", home.name]).endedWith(0);
  pair.console.moveTo(to.log);
  await pair.proved();
});

Deno.test("gyges attach at the source hears, however late, that the destination had every page when its process died", async () => {
  await using pair = await QemuPair.open(SHAPE);
  const home = await pair.start();
  const to = await pair.prepare({ args: ["--tls", "off"], env: { GYGES_RECONNECT_S: "1" } });
  await using tap = new Wiretap(to.ticket, deathAt("complete", home.process));
  await pair.host.start(["migrate", tap.ticket, "--vm", home.name, "--tls", "off", ...FULL]).ended();
  const alone = await to.process.waitFor("summary");
  const attach = pair.host.start(["attach", home.name]);
  await attach.endedWith(0);
  const { postcopy_pages, duplicate_pages } = await attach.waitFor("summary");
  assert.deepEqual([postcopy_pages, duplicate_pages], [alone.postcopy_pages, 0]);
  pair.console.moveTo(to.log);
  await pair.proved();
  await until(() => !pair.hasQemu(home.name), () => "the source's QEMU has ended");
});

Deno.test("gyges attach at the source is interrupted while the destination stays away, and tried again", async () => {
  await using pair = await QemuPair.open(SHAPE);
  const { name, home, to } = await widowed(pair, "run");
  await killed(to.process);
  const attach = pair.host.start(["attach", name]);
  const isThere = () => pair.host.sample(name).then(({ state }) => state === "paused", () => false);
  await until(isThere, () => `nobody answers for "${name}"`);
  attach.signal("SIGINT");
  await attach.endedWith(11);
  const error = await attach.waitFor("error");
  assert.match(error.message, new RegExp(`The guest waits there.*gyges attach ${name} goes on`));
  assert.equal(error.guest_location, "destination-incomplete");
  // Both ends are attached.
  const [there, here] = [to.name, name].map((one) => pair.host.start(["attach", one]));
  await here?.endedWith(0);
  pair.console.moveTo(to.log);
  await pair.proved();
  await until(() => !pair.hasQemu(home.name), () => "the source's QEMU has ended");
  assert.ok(there?.running);
});

Deno.test("gyges attach at the source says so where the guest runs there, or QEMU has ended with the pages", async () => {
  // No disk: its lock would keep the guest from running in two places.
  await using pair = await QemuPair.open({ ...SHAPE, withDisk: false });
  const { name, home } = await widowed(pair, "run");
  await pair.order(home.name, "cont");
  assert.match(await wordsOf(pair, ["attach", name], USAGE), /its guest runs here/);
  Deno.kill(pair.qemuOf(home.name), "SIGKILL");
  assert.match(await wordsOf(pair, ["attach", name], LOST), /can never be whole.*which had the rest of its pages/);
  assert.match(await wordsOf(pair, ["attach", name], USAGE), /no process of that name has died here/);
});

async function wordsOf(pair: QemuPair, args: readonly string[], code: number): Promise<string> {
  const { events } = await pair.host.start(args).endedWith(code);
  return events.map((event) => event.type === "error" ? event.message : event.type === "note" ? event.detail : "")
    .join();
}

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
  const words = (args: readonly string[], code: number) => wordsOf(pair, args, code);
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
