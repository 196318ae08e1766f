/**
 * gygesfs as a file system. tmpfs in the same host is the control: the same programs work in a folder of either, and all comes to the same but for what a table here says, with the reason.
 */
import assert from "node:assert/strict";
import type { LabHost } from "./host.ts";
import { KERNELS, type KernelVersion, type Lab, labTest } from "./lab.ts";

type Facts = ReadonlyMap<string, string>;

interface Difference {
  tmpfs: string;
  gygesfs: string;
}

const FLAT = "a flat folder of RAM files: what is not needed is not there";
const NO_WRITE = "every write comes by a mapping, so that tracking sees it";
const WHOLE_PAGES = "a RAM file has whole pages";
const IN_USE = "bitmaps, exports and the guest's view are of one size";
const BY_SIZE = "the size is paid for when it is set, so a guest never dies of a full mount";
const STAYS = "a page is never given to swap, written back or dropped";
const CREATOR_PAYS = "the creator's group pays, whoever touches: prefetch, KVM's workers, an agent";

/** Where the two differ, by reason. */
function differences(kernel: KernelVersion): Map<string, Difference> {
  const direct = kernel === "6.1" ? "EINVAL" : "ok";
  const byReason: Record<string, Record<string, [tmpfs: string, gygesfs: string]>> = {
    [FLAT]: {
      "rename-other": ["ok", "EPERM"],
      mkdir: ["ok", "EPERM"],
      symlink: ["ok", "EPERM"],
      splice: ["ok", "EINVAL"],
      allocate: ["ok", "EOPNOTSUPP"],
    },
    [NO_WRITE]: { write: ["ok", "EINVAL"], "open-direct": [direct, "EINVAL"] },
    [WHOLE_PAGES]: { "size-unaligned": ["ok", "EINVAL"], "punch-unaligned": ["ok", "EINVAL"] },
    [IN_USE]: { "grow-mapped": ["ok", "EBUSY"], "shrink-mapped": ["ok", "EBUSY"] },
    [BY_SIZE]: {
      "room-taken-by-size": ["0", "8388608"],
      "room-taken-by-touch": ["1048576", "8388608"],
      "larger-than-the-mount": ["ok", "ENOSPC"],
    },
    [STAYS]: { unevictable: ["none", "all"], "pages-after-drop-caches": ["1024", "2048"] },
    [CREATOR_PAYS]: {
      "charged-to": ["toucher", "creator"],
      "touch-beyond-the-creators-limit": ["done", "waits"],
      "killed-beyond-the-limit": ["gone", "killed"],
      "touch-again": ["done", "waits"],
      "touch-after-the-limit-was-raised": ["gone", "done"],
    },
  };
  const all = Object.values(byReason).flatMap((facts) => Object.entries(facts));
  return new Map(all.map(([name, [tmpfs, gygesfs]]) => [name, { tmpfs, gygesfs }]));
}

/** Mounts what disks and groups are made in. */
const PREPARE = `mount -t configfs none /sys/kernel/config && mount -t cgroup2 none /sys/fs/cgroup &&
  echo +memory >/sys/fs/cgroup/cgroup.subtree_control`;

/** A disk in memory: its device. With a bandwidth it is slow, and a page arrives long after it was asked for. */
async function makeDisk(host: LabHost, name: string, mibPerS = 0): Promise<string> {
  await host.ask(
    `mkdir /sys/kernel/config/nullb/${name} && cd /sys/kernel/config/nullb/${name} && echo 1 >memory_backed &&
    echo 4096 >blocksize && echo 64 >size && echo ${mibPerS} >mbps && echo 1 >power && test -b /dev/${name}`,
  );
  return `/dev/${name}`;
}

/** What each of `commands`, with a folder of `type` for FOLDER, says. */
async function factsOf(host: LabHost, commands: readonly string[], type: string): Promise<Facts> {
  const facts = new Map<string, string>();
  for (const command of commands) {
    const at = `/run/${type}`;
    await host.ask(`mkdir ${at} && mount -t ${type} -o size=64M none ${at}`);
    const words = await host.ask(command.replace("FOLDER", at), { timeoutMs: 120_000 });
    await host.ask(`umount ${at} && rmdir ${at}`);
    for (const [, name = "", outcome = ""] of words.matchAll(/^(.+?)=(.*)$/gm)) facts.set(name, outcome);
  }
  return facts;
}

/** What `tmpfs` and `gygesfs` differ in without the table's leave, or do not differ in though it says so. */
function surprises(tmpfs: Facts, gygesfs: Facts, table: ReadonlyMap<string, Difference>): string[] {
  return [...new Set([...tmpfs.keys(), ...gygesfs.keys(), ...table.keys()])].flatMap((name) => {
    const [one, other] = [tmpfs.get(name), gygesfs.get(name)];
    const wanted = table.get(name) ?? { tmpfs: one, gygesfs: one };
    if (one === wanted.tmpfs && other === wanted.gygesfs) return [];
    return [`${name}: tmpfs ${one}, gygesfs ${other}, expected ${wanted.tmpfs}, ${wanted.gygesfs}`];
  });
}

async function behavesAsTmpfs(lab: Lab, kernel: KernelVersion): Promise<void> {
  const host = lab.host(1);
  const disk = await makeDisk(host, "fast");
  const commands = [
    `${await lab.program("filesystem")} FOLDER ${disk}`,
    `${await lab.program("room")} FOLDER /sys/fs/cgroup`,
  ];
  const tmpfs = await factsOf(host, commands, "tmpfs");
  const gygesfs = await factsOf(host, commands, "gygesfs");
  const table = differences(kernel);
  assert.deepEqual([tmpfs.get("broken"), surprises(tmpfs, gygesfs, table)], [undefined, []]);
  console.log(`lab: ${kernel}: ${tmpfs.size} facts, ${table.size} of them differ from tmpfs`);
  // The control: one outcome that is another is seen.
  const spoiled = new Map([...gygesfs, ["after-private-remove", "00"]]);
  assert.equal(surprises(tmpfs, spoiled, table).length, 1);
}

/** Options of mount, and what comes of them: owner, group, mode and bytes of the mount, or nothing. */
const ACCEPTED: Record<string, string> = {
  "uid=1000,gid=1001,mode=0750": "1000 1001 750 0",
  "mode=1777,size=1M": "0 0 1777 1048576",
  "size=5000": "0 0 700 4096",
  "size=4G": "0 0 700 4294967296",
  "size=7E": "0 0 700 8070450532247928832",
};
const REFUSED: Record<string, RegExp> = {
  "size=8E": /size=8E is more than 9223372036854775807 bytes/,
  "size=16E": /size=16E is more than/,
  "size=17E": /size=17E is more than/,
  "size=18446744073709551616": /size=18446744073709551616 is more than/,
  "size=101%": /size=101% is more than all memory/,
  "size=1X": /size=1X is no size/,
  "size=1MM": /size=1MM is no size/,
  "size=-1": /size=-1 is no size/,
  "size=K": /size=K is no size/,
  "mode=9": /mode/,
  "uid=many": /uid/,
  "uid=4294967295": /no such uid 4294967295/,
  "gid=4294967295": /no such gid 4294967295/,
  "colour=red": /colour/,
};

async function takesOptions(host: LabHost): Promise<void> {
  await host.ask("mkdir /run/options");
  const mount = (options: string) => host.run(`mount -t gygesfs -o ${options} none /run/options`);
  for (const [options, wanted] of Object.entries(ACCEPTED)) {
    assert.equal((await mount(options)).code, 0, options);
    const look = `stat -c '%u %g %a' /run/options; stat -f -c '%b %S' /run/options; grep /run/options /proc/mounts`;
    const [owner, blocks = "", line] = (await host.ask(`${look}; umount /run/options`)).trim().split("\n");
    const [count = "", bytes = ""] = blocks.split(" ");
    assert.equal(`${owner} ${BigInt(count) * BigInt(bytes)}`, wanted, `${options}: ${line}`);
  }
  for (const [options, words] of Object.entries(REFUSED)) {
    await host.ask("dmesg -C");
    assert.notEqual((await mount(options)).code, 0, options);
    assert.match(await host.dmesg(), words, options);
  }
}

/** Bits of GYGES_INJECT_* in kernel/gyges_internal.h. */
const INJECT = { nothing: 0, forgetPinned: 1, skipWriteProtection: 2, keepRound: 8 } as const;

/** What tests/lab/programs/rounds.c says of itself, with a rule of the module's broken. */
async function roundsWith(host: LabHost, command: string, inject: number): Promise<Record<string, number>> {
  await host.ask(`echo ${inject} >/sys/module/gyges/parameters/inject`);
  const words = await host.ask(command);
  await host.ask("echo 0 >/sys/module/gyges/parameters/inject");
  console.log(`lab: inject ${inject}: ${words.trim()}`);
  return Object.fromEntries([...words.matchAll(/(\w+)=(\d+)/g)].map(([, name, value]) => [name, Number(value)]));
}

async function losesNothing(host: LabHost, command: string): Promise<void> {
  const right = await roundsWith(host, `${command} rounds`, INJECT.nothing);
  assert.deepEqual([right.lost_read, right.lost_written], [0, 0]);
  assert.ok((right.under_way ?? 0) > 100 && (right.pinned ?? 0) > 100, "no page was held while a round was taken");
  const { us_per_gib } = await roundsWith(host, `${command} present 256`, INJECT.nothing);
  assert.ok(us_per_gib !== undefined);
}

/** The same rounds with rules broken, rounds that nobody gets, and I/O that outlives what it was for. */
async function seesWhatIsLost(host: LabHost, command: string): Promise<void> {
  const pinned = await roundsWith(host, `${command} rounds`, INJECT.forgetPinned);
  assert.ok((pinned.lost_read ?? 0) > 0 && pinned.lost_written === 0, "the comparison does not see a lost page");
  const unprotected = await roundsWith(host, `${command} rounds`, INJECT.skipWriteProtection);
  assert.ok((unprotected.lost_written ?? 0) > 0, "the comparison does not see a stale page");
  const given = await roundsWith(host, `${command} given-back`, INJECT.nothing);
  assert.deepEqual([given.lost_fault, given.lost_killed], [0, 0]);
  assert.ok((given.halfway ?? 0) > 0, "no round was ended half way");
  const kept = await roundsWith(host, `${command} given-back`, INJECT.keepRound);
  assert.ok((kept.lost_fault ?? 0) > 0 && (kept.lost_killed ?? 0) > 0, "rounds that are lost are not seen");
  assert.match(await host.ask(`${command} resize 8`), /resized/);
}

for (const kernel of KERNELS) {
  labTest("gygesfs behaves as tmpfs does, and its rounds lose nothing", {
    kernel,
    hosts: 1,
    gyges: true,
  }, async (lab) => {
    await lab.host(1).ask(PREPARE);
    await takesOptions(lab.host(1));
    await behavesAsTmpfs(lab, kernel);
    const command = `${await lab.program("rounds")} /run/gyges/ram ${await makeDisk(lab.host(1), "slow", 1)}`;
    await losesNothing(lab.host(1), command);
    if (kernel === "6.12") await seesWhatIsLost(lab.host(1), command);
  });
}
