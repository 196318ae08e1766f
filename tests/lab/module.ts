/** What is built here for the hosts of a lab: gyges.ko, and C programs that test it. */
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { cached, digest, tool } from "./cache.ts";
import type { LabHost } from "./host.ts";
import { kernelTree, type KernelVersion } from "./packages.ts";

const KERNEL = fileURLToPath(new URL("../../kernel", import.meta.url));
const UAPI = join(KERNEL, "include/uapi");
const PROGRAMS = fileURLToPath(new URL("programs", import.meta.url));
/** What the Linux guests run, which a program may share. */
const GUEST = fileURLToPath(new URL("../qemu/programs", import.meta.url));
/** What a developer's own `make` leaves beside them is none of the sources. */
const SOURCES = /(?:^|\/)(?:Kbuild|Makefile|(?!.*\.mod\.c$)[^/]+\.[ch])$/;

interface Source {
  /** From its folder. */
  path: string;
  data: Uint8Array<ArrayBuffer>;
}

/** The path of a gyges.ko for the lab's kernel of `version`, built from kernel/ as it is now. */
export async function gygesModule(version: KernelVersion): Promise<string> {
  const { release, headers } = await kernelTree(version);
  const sources = await sourcesIn(KERNEL);
  const folder = await cached(`gyges-${release}-${digestOf(sources)}`, async (into) => {
    const work = `${into}.build`;
    await copySources(sources, work);
    await tool("make", ["-C", work, `KDIR=${headers}`, `-j${navigator.hardwareConcurrency}`]);
    await Deno.mkdir(into);
    await Deno.copyFile(join(work, "gyges.ko"), join(into, "gyges.ko"));
  });
  return join(folder, "gyges.ko");
}

/**
 * Builds the module for the lab's kernel of `version` in `work`, a new folder, with the compiler's extra warnings and
 * sparse; `spoil` may change main.c first. Resolves with the exit code and with all that make and its tools said.
 */
export async function strictBuild(
  version: KernelVersion,
  work: string,
  spoil: (source: string) => string = (source) => source,
): Promise<{ code: number; output: string }> {
  const { headers } = await kernelTree(version);
  await copySources(await sourcesIn(KERNEL), work);
  const main = join(work, "main.c");
  await Deno.writeTextFile(main, spoil(await Deno.readTextFile(main)));
  const args = ["-C", work, `KDIR=${headers}`, "W=1", "C=2", `-j${navigator.hardwareConcurrency}`];
  const { code, stdout, stderr } = await new Deno.Command("make", { args }).output();
  return { code, output: [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("") };
}

/** Of programs that cannot do without: a host's root is this machine's, so it has the same. */
const LIBRARIES: Readonly<Record<string, readonly string[]>> = {
  false_source: ["-lrdmacm", "-libverbs"],
  stranger: ["-lrdmacm", "-libverbs"],
};

/** What a program shares with the guests, from GUEST. */
const SHARED: Readonly<Record<string, readonly string[]>> = { mapper: ["guest_stamp.c"] };

/**
 * The path of tests/lab/programs/NAME.c, compiled so that it needs nothing from the host that it runs in but LIBRARIES.
 * It may include <linux/gyges.h> of the module, and headers beside it.
 */
export async function hostProgram(name: string): Promise<string> {
  const all = [...await sourcesIn(PROGRAMS), ...await sourcesIn(UAPI), ...await sourcesIn(GUEST)];
  const shared = SHARED[name] ?? [];
  const used = all.filter(({ path }) => path.endsWith(".h") || path === `${name}.c` || shared.includes(path));
  const key = digestOf(used);
  const folder = await cached(`program-${name}-${key}`, async (into) => {
    await Deno.mkdir(into);
    const flags = ["-std=gnu11", "-pthread", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-isystem", UAPI];
    const sources = [join(PROGRAMS, `${name}.c`), ...shared.map((file) => join(GUEST, file))];
    await tool("cc", [...flags, "-I", GUEST, "-o", join(into, name), ...sources, ...LIBRARIES[name] ?? ["-static"]]);
  });
  return join(folder, name);
}

async function sourcesIn(folder: string, prefix = ""): Promise<Source[]> {
  const found: Source[] = [];
  let entries: Deno.DirEntry[];
  try {
    entries = [...Deno.readDirSync(join(folder, prefix))];
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return [];
    throw cause;
  }
  for (const { name, isDirectory } of entries.sort((a, b) => a.name < b.name ? -1 : 1)) {
    const path = join(prefix, name);
    if (isDirectory) found.push(...await sourcesIn(folder, path));
    else if (SOURCES.test(path)) found.push({ path, data: await Deno.readFile(join(folder, path)) });
  }
  return found;
}

async function copySources(sources: readonly Source[], into: string): Promise<void> {
  for (const { path, data } of sources) {
    await Deno.mkdir(join(into, path, ".."), { recursive: true });
    await Deno.writeFile(join(into, path), data);
  }
}

function digestOf(sources: readonly Source[]): string {
  return digest(...sources.flatMap(({ path, data }) => [new TextEncoder().encode(`${path}\0${data.length}\0`), data]));
}

/** Loads `module`, a gyges.ko, into `host`; its file system is at /run/gyges/ram then. */
export async function loadGyges(host: LabHost, module: string): Promise<void> {
  await host.ask(`insmod /run/lab/share/${basename(module)}`);
  // One without a file system is on its way to have one.
  await host.ask(
    `grep -qw gygesfs /proc/filesystems || exit 0
    mkdir -p -m 0700 /run/gyges && mkdir -p -m 0700 /run/gyges/ram &&
    mount -t gygesfs -o mode=0700 gyges /run/gyges/ram`,
  );
}

/** Unloads it, unless a test has. What is in the way, in words: a reference that was leaked keeps it busy for ever. */
export async function unloadGyges(host: LabHost): Promise<string[]> {
  const { code, stdout, stderr } = await host.run(
    `grep -q '^gyges ' /proc/modules || exit 0
    for try in $(seq 50); do
      complaint=$(umount -a -t gygesfs 2>&1 && rmmod gyges 2>&1) && exit 0
      sleep 0.1
    done
    echo "$complaint"; grep -w gygesfs /proc/mounts; grep '^gyges ' /proc/modules; exit 1`,
  );
  return code === 0 ? [] : [`${host.name}: gyges.ko cannot be unloaded: ${stdout}${stderr}`.trim()];
}
