/** What a lab host boots: a kernel as ELF, which QEMU enters directly (PVH), and an archive with modules and the agent. */
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { cached, digest, tool } from "./cache.ts";
import { cpio, type CpioEntry } from "./cpio.ts";
import { busybox, kernelTree, type KernelVersion } from "./packages.ts";

export interface Image {
  kernel: string;
  initramfs: string;
}

/** Loaded at boot, with what they depend on. Nothing pulls in crc32_generic, which rxe needs. */
const MODULES = [
  ...["virtio_pci", "virtio_net", "virtio_console", "virtio_rng", "9pnet_virtio", "9p", "overlay"],
  ...["crc32_generic", "ib_core", "ib_uverbs", "rdma_cm", "rdma_ucm", "rdma_rxe"],
  ...["kvm", "kvm_amd"],
  "null_blk",
];

/** How Debian compresses kernels: the first bytes, and what undoes it. */
const COMPRESSIONS: [magic: number[], program: string, args: string[]][] = [
  [[0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00], "xz", ["-dc", "--single-stream"]],
  [[0x28, 0xb5, 0x2f, 0xfd], "zstd", ["-qdc"]],
];
const ELF = [0x7f, 0x45, 0x4c, 0x46];

/** The image of `version`; made on first use, some ten seconds. */
export async function image(version: KernelVersion): Promise<Image> {
  return { kernel: await vmlinux(version), initramfs: await initramfs(version) };
}

/** The path of the kernel of `version` as ELF. */
export async function vmlinux(version: KernelVersion): Promise<string> {
  const { path: tree, release } = await kernelTree(version);
  return await cached(`vmlinux-${release}`, async (into) => {
    await Deno.writeFile(into, await extractKernel(join(tree, "boot", `vmlinuz-${release}`)));
  });
}

/** The ELF file inside a bzImage. */
async function extractKernel(path: string): Promise<Uint8Array> {
  const packed = await Deno.readFile(path);
  for (const [magic, program, args] of COMPRESSIONS) {
    for (let at = find(packed, magic, 0); at >= 0; at = find(packed, magic, at + 1)) {
      // What follows the payload makes the program complain, after it has done its work.
      const bytes = await filter(program, args, packed.subarray(at));
      if (find(bytes.subarray(0, 4), ELF, 0) === 0) return bytes;
    }
  }
  throw new Error(`Cannot find a kernel in ${path}: neither xz nor zstd`);
}

function find(bytes: Uint8Array, what: readonly number[], from: number): number {
  const [first = 0] = what;
  for (let at = bytes.indexOf(first, from); at >= 0; at = bytes.indexOf(first, at + 1)) {
    if (what.every((byte, index) => bytes[at + index] === byte)) return at;
  }
  return -1;
}

async function filter(program: string, args: readonly string[], input: Uint8Array): Promise<Uint8Array> {
  const path = await Deno.makeTempFile({ prefix: "gyges-unpack-" });
  try {
    await Deno.writeFile(path, input);
    const command = new Deno.Command(program, { args: [...args, path], stdin: "null", stderr: "null" });
    return (await command.output()).stdout;
  } finally {
    await Deno.remove(path);
  }
}

async function initramfs(version: KernelVersion): Promise<string> {
  const { release } = await kernelTree(version);
  const files = [
    { path: "init", data: await Deno.readFile(ours("init.sh")) },
    { path: "agent", data: await Deno.readFile(await agent()) },
    { path: "bin/busybox", data: await Deno.readFile(await busybox()) },
  ];
  const content = JSON.stringify([release, MODULES]);
  const key = digest(new TextEncoder().encode(content), ...files.map((file) => file.data));
  return await cached(`initramfs-${release}-${key}`, async (into) => {
    const modules = await moduleEntries(version, MODULES);
    await Deno.writeFile(into, cpio([{ path: "bin" }, { path: "dev" }, ...files, ...modules]));
  });
}

/** For an archive: the directory modules with `names` and all that they depend on, and with their load order in order. */
export async function moduleEntries(version: KernelVersion, names: readonly string[]): Promise<CpioEntry[]> {
  const { path: tree, release } = await kernelTree(version);
  const entries: CpioEntry[] = [{ path: "modules" }];
  const order: string[] = [];
  for (const path of await moduleFiles(tree, release, names)) {
    const name = basename(path).replace(/\.xz$/, "");
    const packed = await Deno.readFile(path);
    order.push(name);
    entries.push({
      path: `modules/${name}`,
      data: path.endsWith(".xz") ? await filter("xz", ["-dc"], packed) : packed,
    });
  }
  entries.push({ path: "modules/order", data: new TextEncoder().encode(`${order.join("\n")}\n`) });
  return entries;
}

/** Files of modules with what they depend on, in load order. */
async function moduleFiles(tree: string, release: string, names: readonly string[]): Promise<string[]> {
  const paths: string[] = [];
  for (const name of names) {
    const shown = await tool("modprobe", ["-d", tree, "-S", release, "--show-depends", name]);
    for (const [, path] of shown.matchAll(/^insmod (\S+)/gm)) if (path !== undefined) paths.push(path);
  }
  return [...new Set(paths)];
}

/** The compiled agent; it needs nothing from the host that it runs in. */
async function agent(): Promise<string> {
  const source = ours("agent.c");
  const key = digest(await Deno.readFile(source));
  return await cached(`agent-${key}`, async (into) => {
    await tool("cc", ["-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", into, source]);
  });
}

function ours(name: string): string {
  return fileURLToPath(new URL(name, import.meta.url));
}
