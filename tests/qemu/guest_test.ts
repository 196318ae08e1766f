/** The Linux guest finds what is done to its memory and to its disk, and nothing where nothing was done. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { qemuBinary, type QemuVersion } from "./binaries.ts";
import { GuestConsole } from "./console.ts";
import { consoleArguments, linuxGuest, type LinuxGuestOptions, ramArguments } from "./guest.ts";
import { Network } from "./network.ts";
import { pause, QemuProcess } from "./qemu_process.ts";
import { readPage, type StampedPage, stampedPages, writePage } from "./stamps.ts";

const DISK_BYTES = 64 << 20;
const STOP_MS = 400;

interface Running {
  qemu: QemuProcess;
  console: GuestConsole;
  ram: string;
  /** Of a guest that has one. */
  disk: string;
  network: Network;
}

type Options = Omit<LinuxGuestOptions, "disk" | "network"> & { disk?: boolean; network?: boolean };

/** Boots a guest, alone, for `body`; nothing of it is left then. */
async function withGuest(qemuVersion: QemuVersion, options: Options, body: (guest: Running) => Promise<void>) {
  const folder = await Deno.makeTempDir({ dir: "/dev/shm", prefix: "gyges-guest-" });
  try {
    const [ram, disk, log] = ["ram", "disk", "console"].map((name) => join(folder, name));
    assert.ok(ram && disk && log);
    const { disk: hasDisk, network: hasNetwork, ...others } = options;
    if (hasDisk) {
      await Deno.writeFile(disk, new Uint8Array());
      await Deno.truncate(disk, DISK_BYTES);
    }
    await using network = new Network(folder);
    const guest = await linuxGuest({
      ...others,
      ...hasDisk ? { disk } : {},
      ...hasNetwork ? { network: network.port("guest") } : {},
    });
    const args = [...guest.args, ...ramArguments(guest, ram), ...consoleArguments(log)];
    using console = new GuestConsole(log);
    await using qemu = await QemuProcess.start(await qemuBinary(qemuVersion), args, folder);
    await console.untilStarted();
    await body({ qemu, console, ram, disk, network });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** Does `harm` while the guest is stopped, and waits until it says so; what it said. */
async function harmed({ qemu, console }: Running, harm: () => void): Promise<string> {
  const before = console.corruptions.length;
  await qemu.qmp.call("stop");
  harm();
  await qemu.qmp.call("cont");
  await console.untilAllChecked();
  const words = console.corruptions.slice(before);
  assert.equal(words.length, 1, `one page was damaged: ${words.join("; ")}`);
  return words[0] ?? "";
}

function aPage(path: string): StampedPage {
  const pages = stampedPages(path);
  const page = pages[Math.floor(pages.length / 3)];
  assert.ok(page, `${path} has stamped pages`);
  return page;
}

Deno.test("guest: a zeroed page and a stale one are found: pc, QEMU 7.2", async () => {
  // No disk: its buffers are memory with the same stamps, and numbers of their own.
  await withGuest("7.2", { workingSet: "32M", rate: 0 }, async (guest) => {
    const { console, qemu, ram } = guest;
    await console.untilBeats(20);
    await console.untilAllChecked();
    console.failIfCorrupt();

    let page: StampedPage | undefined;
    const zeroed = await harmed(guest, () => writePage(ram, (page = aPage(ram)).offset));
    assert.equal(zeroed, `CORRUPT page=${page?.page} want=${page?.version} got=0 zero`);

    await qemu.qmp.call("stop");
    const old = aPage(ram);
    const copy = readPage(ram, old.offset);
    await qemu.qmp.call("cont");
    await console.untilAllChecked();
    const stale = await harmed(guest, () => writePage(ram, old.offset, copy));
    assert.match(stale, new RegExp(`^CORRUPT page=${old.page} want=\\d+ got=${old.version} stale$`));
    assert.equal(console.last?.corrupt, 2);
    assert.throws(() => console.failIfCorrupt(), /found damage/);
  });
});

Deno.test("guest: pings that are not answered are counted, and answers with other content are damage: QEMU 7.2", async () => {
  await withGuest("7.2", { workingSet: "16M", network: true }, async ({ console, network }) => {
    await console.untilBeat("pings are answered", ({ net }) => net > 100);
    console.failIfCorrupt();
    const lost = console.last?.netLost ?? 0;
    network.drop(3);
    await console.untilBeat("their loss is seen", ({ netLost }) => netLost === lost + 3);
    console.failIfCorrupt();
    network.damage(1);
    await console.untilCorrupt();
    assert.match(console.corruptions[0] ?? "", /^CORRUPT net=\d+ torn$/);
    await console.untilBeats(1);
    assert.deepEqual([console.last?.netBad, console.last?.corrupt], [1, 0], "counted by the network alone");
    assert.throws(() => console.failIfCorrupt(), /found damage/);
  });
});

Deno.test("guest: a stop is seen, lost writes to the disk are found, the button ends it: q35, two CPUs, QEMU 10.0", async () => {
  await withGuest("10.0", { version: "6.12", machine: "q35", vcpus: 2, rate: 20_000, disk: true }, async (guest) => {
    const { console, qemu, disk } = guest;
    await console.untilBeats(20);
    console.failIfCorrupt();
    assert.ok((console.last?.disk ?? 0) > 20, "the disk is used");

    const before = console.largestGapMs;
    await qemu.qmp.call("stop");
    await pause(STOP_MS);
    await qemu.qmp.call("cont");
    await console.untilBeats(10);
    assert.ok(console.largestSeenGapMs >= STOP_MS, `of ${STOP_MS} ms ${console.largestSeenGapMs} were seen`);
    assert.ok(console.largestGapMs - before < STOP_MS, "the guest's clock stands still with it");
    console.failIfCorrupt();

    // All of it, for a part may be written anew before it is read.
    await qemu.qmp.call("stop");
    for (const { offset } of stampedPages(disk)) writePage(disk, offset);
    await qemu.qmp.call("cont");
    await qemu.qmp.call("system_powerdown");
    await console.untilEnded();
    await qemu.ended();
    assert.match(console.corruptions[0] ?? "", /^CORRUPT blk=\d+ want=\d+ got=0 zero read$/);
    assert.deepEqual([console.last?.corrupt, (console.last?.diskBad ?? 0) > 0], [0, true], "counted by the disk alone");
  });
});
