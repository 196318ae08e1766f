/**
 * A Linux guest that proves its own memory, for stock QEMU under TCG: Debian's kernel and one program, which stamps,
 * checks and rewrites pages and says on its console how that goes (programs/guest_init.c).
 */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { cached, digest, tool } from "../lab/cache.ts";
import { cpio } from "../lab/cpio.ts";
import { moduleEntries, vmlinux } from "../lab/image.ts";
import { kernelTree, type KernelVersion } from "../lab/packages.ts";

export interface LinuxGuestOptions {
  /** Of its kernel. @default "6.1" */
  version?: KernelVersion;
  /** @default "192M" */
  memory?: string;
  /** What it stamps and checks. @default "64M" */
  workingSet?: string;
  /** Pages that it rewrites a second, 0: as many as it can. @default 5000 */
  rate?: number;
  /** A raw file to have as virtio disk, written and read with O_DIRECT. @default none */
  disk?: string;
  /** How many requests to the disk may be under way at once. @default 1 */
  diskWorkers?: number;
  /** QEMU's back end of its virtio network card, without an id; 10.0.2.2 answers pings there. @default no card */
  network?: string;
  /** One worker each. @default 1 */
  vcpus?: number;
  /** @default "pc" */
  machine?: "pc" | "q35";
  /** QEMU's virtio balloon with these properties; the guest takes and gives back memory all the time. @default none */
  balloon?: string;
  /** Seconds after its start it powers itself off, 0: never. @default 0 */
  exitAfter?: number;
  /** Milliseconds between its heartbeats. @default 50 */
  beatMs?: number;
}

export interface Guest {
  /** All arguments of QEMU but those of RAM, console, monitors and `-incoming`. */
  args: readonly string[];
  /** Bytes of RAM. */
  memoryBytes: number;
}

const PROGRAMS = fileURLToPath(new URL("programs", import.meta.url));
/** The power button is an input device that needs both. */
const MODULES = ["button", "evdev"];
const DISK_MODULES = ["virtio_pci", "virtio_blk"];
const NETWORK_MODULES = ["virtio_pci", "virtio_net"];
const BALLOON_MODULES = ["virtio_pci", "virtio_balloon"];
/** What it takes for a while. */
const VISIT = "24M";
/** How many pings it has under way at once at most. */
export const PINGS_AT_ONCE = 4;
/**
 * Not by the TSC: the kernel measures its frequency against a timer, and on a busy machine, where it is kept from running
 * meanwhile, so wrongly that one guest's clock went thirty times too fast.
 */
const KERNEL_WORDS =
  "console=ttyS0 quiet panic=-1 nokaslr mitigations=off audit=0 apparmor=0 tsc=unstable clocksource=hpet " +
  "cryptomgr.notests";

/** Makes what the guest boots, on first use some seconds. */
export async function linuxGuest(options: LinuxGuestOptions = {}): Promise<Guest> {
  const { version = "6.1", memory = "192M", workingSet = "64M", rate = 5000, vcpus = 1, machine = "pc" } = options;
  const { disk, diskWorkers = 1, network, balloon, exitAfter = 0, beatMs } = options;
  const modules = [
    ...MODULES,
    ...disk === undefined ? [] : DISK_MODULES,
    ...network === undefined ? [] : NETWORK_MODULES,
    ...balloon === undefined ? [] : BALLOON_MODULES,
  ];
  const words = [KERNEL_WORDS, `gyges.ws=${workingSet}`, `gyges.rate=${rate}`];
  if (disk !== undefined) words.push(`gyges.blk=${diskWorkers}`);
  if (network !== undefined) words.push(`gyges.net=${PINGS_AT_ONCE}`);
  if (balloon !== undefined) words.push(`gyges.visit=${VISIT}`);
  if (exitAfter > 0) words.push(`gyges.exit_after=${exitAfter}`);
  if (beatMs !== undefined) words.push(`gyges.beat=${beatMs}`);
  const args = [
    ...["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"],
    ...["-machine", machine, "-accel", "tcg", "-cpu", "qemu64", "-smp", `${vcpus}`, "-m", memory],
    ...["-kernel", await vmlinux(version), "-initrd", await initramfs(version, modules)],
    ...["-append", words.join(" ")],
  ];
  if (disk !== undefined) {
    args.push("-drive", `if=none,id=disk0,file=${disk},format=raw,cache=none,aio=native`);
    args.push("-device", "virtio-blk-pci,drive=disk0");
  }
  if (network !== undefined) {
    // No boot ROM: not every QEMU's is there.
    args.push("-netdev", `${network},id=net0`, "-device", "virtio-net-pci,netdev=net0,mac=52:54:00:47:59:47,romfile=");
  }
  if (balloon !== undefined) args.push("-device", `virtio-balloon-pci,${balloon}`);
  return { args, memoryBytes: bytesOf(memory) };
}

/** Arguments that send the guest's console to `path`, behind what is there. */
export function consoleArguments(path: string): string[] {
  return ["-chardev", `file,id=console,path=${path},append=on`, "-serial", "chardev:console"];
}

/** Arguments that have the guest's RAM in the shared file `path`, which QEMU makes; its block is called ram0. */
export function ramArguments(guest: Guest, path: string): string[] {
  const backend = `memory-backend-file,id=ram0,size=${guest.memoryBytes},mem-path=${path},share=on`;
  return ["-object", backend, "-machine", "memory-backend=ram0"];
}

export function bytesOf(size: string): number {
  const match = /^(\d+)([KMG])$/.exec(size);
  if (!match) throw new Error(`Cannot read the size "${size}": want a number and K, M or G`);
  return Number(match[1]) * 1024 ** (1 + "KMG".indexOf(match[2] ?? ""));
}

async function initramfs(version: KernelVersion, names: readonly string[]): Promise<string> {
  const { release } = await kernelTree(version);
  const program = await Deno.readFile(await init());
  const key = digest(new TextEncoder().encode(JSON.stringify(names)), program);
  return await cached(`guest-${release}-${key}`, async (into) => {
    await Deno.writeFile(into, cpio([{ path: "init", data: program }, ...await moduleEntries(version, names)]));
  });
}

/** The guest's program, which needs nothing but the kernel. */
async function init(): Promise<string> {
  const files = [...Deno.readDirSync(PROGRAMS)].map(({ name }) => name).filter((name) => /^guest.*\.[ch]$/.test(name));
  const sources = files.sort().map((name) => ({ name, data: Deno.readFileSync(join(PROGRAMS, name)) }));
  const key = digest(...sources.flatMap(({ name, data }) => [new TextEncoder().encode(name), data]));
  return await cached(`guest-init-${key}`, async (into) => {
    const inputs = sources.filter(({ name }) => name.endsWith(".c")).map(({ name }) => join(PROGRAMS, name));
    const flags = ["-std=gnu11", "-static", "-pthread", "-O2", "-Wall", "-Wextra", "-Werror"];
    await tool("cc", [...flags, "-o", into, ...inputs]);
  });
}
