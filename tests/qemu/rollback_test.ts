/**
 * Whatever dies before the commit point, the guest of a stock QEMU runs on at the source with its disk, and moves when it
 * is tried again; after it the source's guest never runs again.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { pause, until } from "../helpers/host.ts";
import { qemuBinary } from "./binaries.ts";
import { type Held, QemuPair, type Waiting } from "./pair.ts";
import { QemuProcess } from "./qemu_process.ts";
import { differingPages, ramFileOf } from "./stamps.ts";
import type { GygesProcess } from "../helpers/gyges_process.ts";

const SHAPE = { rate: 8000, workingSet: "32M", withDisk: true } as const;
/** Long enough to be met in pre-copy. */
const SLOW = ["--bandwidth", "40MiB/s", "--precopy-timeout", "10s"];

/** One that is never zero, nor written: 17 MiB into RAM, one into where the guest's kernel was linked to be. */
const KERNEL_TEXT_PAGE = 17 * 256;

interface Move {
  pair: QemuPair;
  home: Held;
  to: Waiting;
  migrate: GygesProcess;
}

interface Failure {
  what: string;
  /** @default SLOW */
  args?: readonly string[];
  happen: (move: Move) => Promise<void>;
  /** What `migrate` ends with. */
  code: number;
}

const FAILURES: Failure[] = [
  {
    what: "SIGKILL of the destination's gyges in pre-copy",
    code: 10,
    async happen({ to }) {
      await to.process.reached("precopy");
      to.process.signal("SIGKILL");
    },
  },
  {
    what: "SIGKILL of the destination's QEMU in pre-copy",
    code: 10,
    async happen({ pair, to }) {
      await to.process.reached("precopy");
      Deno.kill(pair.qemuOf(to.name), "SIGKILL");
    },
  },
  {
    what: "SIGKILL of the destination's gyges while the state is loaded",
    code: 10,
    args: ["--mode", "full"],
    async happen({ to }) {
      await to.process.reached("loading");
      to.process.signal("SIGKILL");
    },
  },
  {
    what: "SIGKILL of the destination's QEMU while the state is loaded",
    code: 10,
    args: ["--mode", "full"],
    async happen({ pair, to }) {
      const qemu = pair.qemuOf(to.name);
      await to.process.reached("loading");
      Deno.kill(qemu, "SIGKILL");
    },
  },
  {
    what: "cancel in pre-copy",
    code: 130,
    async happen({ pair, home, to, migrate }) {
      await to.process.reached("precopy");
      // A round may take minutes, and its progress is seen.
      await migrate.waitFor("sample", ({ precopy_round, pulled_pages }) => precopy_round === 0 && pulled_pages > 0);
      await (await pair.host.run(["cancel", home.name]));
    },
  },
];

Deno.test("before the commit point the guest stays, and moves at last", async (t) => {
  await using pair = await QemuPair.open(SHAPE);
  const home = await pair.start();
  for (const { what, args = SLOW, happen, code } of FAILURES) {
    await t.step(what, async () => {
      const to = await pair.prepare();
      const migrate = pair.host.start(["migrate", to.ticket, "--vm", home.name, ...args]);
      await happen({ pair, home, to, migrate });
      await migrate.endedWith(code);
      const error = await migrate.waitFor("error");
      assert.equal(error.guest_location, "source");
      // It lives, is whole, and what was prepared for it is gone.
      await pair.console.untilBeats(10);
      await pair.proved();
      await to.process.ended();
      // Whoever started it was perhaps killed; it waits for a guest that does not come.
      await until(() => !pair.hasQemu(to.name), () => "the QEMU that waited has ended");
    });
  }
  const qmp = pair.host.monitorOf(home.name);
  await t.step("SIGKILL of the source's gyges in pre-copy: the guest runs on", async () => {
    const to = await pair.prepare();
    const migrate = pair.host.start(["migrate", to.ticket, "--vm", home.name, ...SLOW]);
    await to.process.reached("precopy");
    home.process.signal("SIGKILL");
    await migrate.endedWith(10);
    const error = await migrate.waitFor("error");
    const remedy = new RegExp(
      `has died, and its QEMU is still there: gyges describe .* gyges migrate TICKET --qmp ${qmp}`,
    );
    assert.match(error.message, remedy);
    assert.equal(error.guest_location, "source");
    await to.process.ended();
    await pair.console.untilBeats(10);
    // It is not cleared away, nor forgotten.
    const list = await pair.host.start(["vm", "list"]).endedWith(0);
    assert.match(JSON.stringify(list.events), remedy);
    for (const args of [["vm", "status", home.name], ["run", home.name, "--", "qemu-system-x86_64"]]) {
      assert.match(JSON.stringify((await pair.host.start(args).endedWith(2)).events), remedy);
    }
  });
  await t.step("SIGKILL of the source's gyges while the guest is stopped: it is let run on", async () => {
    const to = await pair.prepare();
    const migrate = pair.host.start(["migrate", to.ticket, "--qmp", qmp, "--mode", "full"]);
    await migrate.reached("handover");
    migrate.signal("SIGKILL");
    await migrate.ended();
    // In doubt, it waits for a source that may come back; it never got the guest.
    to.process.signal("SIGKILL");
    await pair.console.untilBeats(10);
    await pair.proved();
  });
  await t.step("another gyges moves it", async () => {
    const to = await pair.prepare();
    await pair.host.start(["migrate", to.ticket, "--qmp", qmp, "--precopy-timeout", "2s"]).endedWith(0);
    pair.console.moveTo(to.log);
    await pair.proved();
    await until(() => !pair.hasQemu(home.name), () => "the source's QEMU has ended");
  });
});

/** A destination whose QEMU will not run a guest, as another QEMU has its disk; until disposed of. */
async function unable(pair: QemuPair, env?: Record<string, string>): Promise<Waiting & AsyncDisposable> {
  const folder = await Deno.makeTempDir({ dir: pair.folder });
  const disk = join(folder, "disk");
  await Deno.copyFile(join(pair.folder, "disk"), disk);
  const holder = await QemuProcess.start(await qemuBinary("10.0"), [
    ...["-S", "-nodefaults", "-display", "none", "-drive", `if=none,id=held,file=${disk},format=raw`],
    ...["-device", "virtio-blk-pci,drive=held"],
  ], folder);
  const to = await pair.prepare({ disk, ...(env && { env }) });
  return { ...to, [Symbol.asyncDispose]: () => holder[Symbol.asyncDispose]() };
}

Deno.test("a guest whose disk somebody has at the destination is given back, whole, and moves at last", async () => {
  await using pair = await QemuPair.open({ ...SHAPE, qemu: "10.0" });
  const home = await pair.start();
  await using to = await unable(pair);
  const migrate = pair.host.start(["migrate", to.ticket, "--vm", home.name, "--mode", "full"]);
  await migrate.endedWith(10);
  const error = await migrate.waitFor("error");
  assert.equal(error.guest_location, "source");
  assert.match(error.message, /cannot run at the destination: QEMU refuses "cont": .*lock/);
  await to.process.endedWith(10);
  assert.ok(!pair.hasQemu(to.name), "what could have run it is ended");
  await pair.console.untilBeats(10);
  await pair.move(home, await pair.prepare(), ["--mode", "full"]);
  await pair.proved();
});

/** A state that is too large to be on its way at once, and in which the last device is the source's alone. */
const DEVICES = ["-device", "VGA,vgamem_mb=32,romfile=", "-device", "virtio-rng-pci"];

for (const qemu of ["7.2", "10.0"] as const) {
  Deno.test(`a state that QEMU ${qemu} cannot load is told in its words, and the guest stays and moves at last`, async () => {
    await using pair = await QemuPair.open({ ...SHAPE, qemu, extra: DEVICES });
    const home = await pair.start();
    const to = await pair.prepare({ extra: DEVICES.slice(0, 2) });
    const migrate = pair.host.start(["migrate", to.ticket, "--vm", home.name, "--mode", "full"]);
    await migrate.endedWith(10);
    const { message } = await migrate.waitFor("error");
    assert.match(message, /The destination's QEMU cannot load.*virtio-rng.*The guest runs at the source/s);
    await to.process.ended();
    await pair.console.untilBeats(5);
    await pair.move(home, await pair.prepare(), ["--mode", "full"]);
    await pair.proved();
  });
}

Deno.test("RAM that was pre-copied to a QEMU which has not run is the source's, byte by byte; with a control", async () => {
  await using pair = await QemuPair.open({ ...SHAPE, qemu: "10.0" });
  const home = await pair.start();
  assert.deepEqual(await differences(pair, home), []);
  assert.deepEqual(await differences(pair, home, { GYGES_INJECT: `zero-page@${KERNEL_TEXT_PAGE}` }), [
    KERNEL_TEXT_PAGE,
  ]);
});

/** Pages that differ between the source, when it has sent all of RAM, and a destination that cannot run the guest. */
async function differences(pair: QemuPair, home: Held, env?: Record<string, string>): Promise<number[]> {
  await using to = await unable(pair, env);
  const [here, there] = [home.name, to.name].map((name) => ramFileOf(pair.qemuOf(name)));
  assert.ok(here && there);
  const migrate = pair.host.start(["migrate", to.ticket, "--vm", home.name, "--mode", "precopy"]);
  await migrate.reached("serving");
  // Not to be given back while this looks.
  to.process.signal("SIGSTOP");
  const found = differingPages(here, there);
  to.process.signal("SIGCONT");
  await migrate.endedWith(10);
  await to.process.endedWith(10);
  await pair.console.untilBeats(5);
  return found;
}

Deno.test("with --keep-source the source's QEMU stays, stopped, and its guest never runs again", async () => {
  await using pair = await QemuPair.open(SHAPE);
  const home = await pair.start();
  const to = await pair.prepare();
  const qmp = pair.host.monitorOf(home.name);
  // One monitor client at a time: the one that holds it has to go first.
  home.process.signal("SIGKILL");
  await home.process.ended();
  await pair.host.start(["migrate", to.ticket, "--qmp", qmp, "--mode", "full", "--keep-source"]).endedWith(0);
  pair.console.moveTo(to.log);
  await pair.proved();
  assert.ok(pair.hasQemu(home.name));
  await pause(500);
  // Says so too if the guest wrote on to the console that it has left.
  pair.console.failIfCorrupt();
});

Deno.test("a QEMU whose monitor somebody has is explained, and one that is no monitor", async () => {
  await using pair = await QemuPair.open(SHAPE);
  const home = await pair.start();
  const to = await pair.prepare();
  const qmp = pair.host.monitorOf(home.name);
  const busy = await pair.host.start(["migrate", to.ticket, "--qmp", qmp]).endedWith(3);
  assert.match(JSON.stringify(busy.events), /one monitor client at a time/);
  const nobody = await pair.host.start(["migrate", to.ticket, "--qmp", "/nowhere/qmp.sock"]).endedWith(3);
  assert.match(JSON.stringify(nobody.events), /-qmp unix:PATH/);
  // The ticket is not used up.
  await pair.move(home, to, ["--mode", "full"]);
  await pair.proved();
});
