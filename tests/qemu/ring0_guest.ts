/**
 * A guest that is one program, for stock QEMU with KVM, also with one that emulates ring 0 and runs no Linux
 * (programs/ring0.c).
 */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { cached, digest, tool } from "../lab/cache.ts";
import { bytesOf, type Guest, type LinuxGuestOptions } from "./guest.ts";

export interface Ring0GuestOptions
  extends Pick<LinuxGuestOptions, "memory" | "workingSet" | "rate" | "vcpus" | "machine"> {
  /** Where its workers are: in 3 memory is touched by the CPU itself, and `rate` must be 0. @default 0 */
  ring?: 0 | 3;
}

const PROGRAMS = fileURLToPath(new URL("programs", import.meta.url));
const FLAGS = [
  ...["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-mno-red-zone", "-mgeneral-regs-only"],
  ...["-fno-pie", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"],
  ...["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,--no-warn-rwx-segments"],
];

/** Smaller and slower by default than Linux: a KVM that emulates ring 0 rewrites some 1500 pages a second and vCPU. */
export async function ring0Guest(options: Ring0GuestOptions = {}): Promise<Guest> {
  const { memory = "128M", workingSet = "4M", rate = 600, vcpus = 1, machine = "pc", ring = 0 } = options;
  const words = [`gyges.ws=${workingSet}`, `gyges.rate=${rate}`, `gyges.cpus=${vcpus}`, `gyges.ring=${ring}`];
  return {
    args: [
      ...["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"],
      ...["-machine", machine, "-accel", "kvm", "-cpu", "qemu64", "-smp", `${vcpus}`, "-m", memory],
      ...["-kernel", await kernel(), "-append", words.join(" ")],
    ],
    memoryBytes: bytesOf(memory),
  };
}

/** The same as a kind of its own: fast, with a larger working set. */
export function ring3Guest(options: LinuxGuestOptions = {}): Promise<Guest> {
  return ring0Guest({ workingSet: "32M", ...options, rate: 0, ring: 3 });
}

/** What a multiboot loader loads: only 32-bit files, whatever is in them. */
async function kernel(): Promise<string> {
  const names = [...Deno.readDirSync(PROGRAMS)].map(({ name }) => name).filter((name) =>
    /^ring0|^guest\.h$/.test(name)
  );
  const parts = names.sort().flatMap((
    name,
  ) => [new TextEncoder().encode(name), Deno.readFileSync(join(PROGRAMS, name))]);
  return await cached(`ring0-${digest(...parts, new TextEncoder().encode(FLAGS.join(" ")))}`, async (into) => {
    const paths = names.filter((name) => /\.[cS]$/.test(name)).map((name) => join(PROGRAMS, name));
    await tool("cc", [...FLAGS, "-T", join(PROGRAMS, "ring0.ld"), "-o", `${into}.64`, ...paths]);
    await tool("objcopy", ["-O", "elf32-i386", `${into}.64`, into]);
  });
}
