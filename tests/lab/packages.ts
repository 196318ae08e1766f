/** Debian packages for the lab's hosts: fetched by apt and unpacked into the cache, never installed. */
import { join } from "node:path";
import { cached, tool } from "./cache.ts";

export type KernelVersion = "6.1" | "6.12";

/** A mirror that hiccups is asked again after so long. */
const RETRY_MS = 5_000;

/** A kernel of Debian's, unpacked, with all that it takes to build modules for it. */
export interface KernelTree {
  /** What uname -r says of it. */
  release: string;
  /** A root with its boot, lib/modules and usr. */
  path: string;
  /** What `make -C` wants for a module of this kernel. */
  headers: string;
}

interface KernelPackages {
  release: string;
  names: readonly string[];
}

/** The newest kernel of `version` that apt knows whole: its image, its headers and the programs that build with them. */
async function kernelPackages(version: KernelVersion): Promise<KernelPackages> {
  const pattern = `^linux-(image|headers|kbuild)-${version.replace(".", "\\.")}(\\.|$)`;
  const listed = await tool("apt-cache", ["search", "--names-only", pattern]);
  const known = new Set(listed.match(/^linux-\S+/gm) ?? []);
  // 6.1.0-56 or 6.12.117+deb12; kbuild's package of 6.1 is one for all.
  const whole = [...known].flatMap((image) => {
    const number = /^linux-image-([\d.]+(?:-\d+|\+deb\d+)?)-amd64$/.exec(image)?.[1];
    if (number === undefined) return [];
    const kbuild = [number, version].map((of) => `linux-kbuild-${of}`).find((name) => known.has(name));
    const release = `${number}-amd64`;
    const headers = [`linux-headers-${release}`, `linux-headers-${number}-common`];
    if (kbuild === undefined || !headers.every((name) => known.has(name))) return [];
    return [{ release, names: [image, ...headers, kbuild] }];
  });
  const newest = whole.sort((a, b) => a.release.localeCompare(b.release, "en", { numeric: true })).at(-1);
  if (newest === undefined) {
    throw new Error(
      `Cannot find a kernel ${version}: apt knows no image, headers and kbuild of one version; ` +
        "add a Debian suite that has them",
    );
  }
  return newest;
}

/** The newest kernel of `version`. What the cache has is used, without asking the mirror. */
export async function kernelTree(version: KernelVersion): Promise<KernelTree> {
  const path = await cached(`kernel-and-headers-${version}`, async (into) => {
    const { release, names } = await patiently(() => kernelPackages(version));
    await unpack(names, into);
    await tool("depmod", ["-b", into, release]);
    await relocate(into, release);
  });
  const [release] = [...Deno.readDirSync(join(path, "lib/modules"))].map((entry) => entry.name);
  if (release === undefined) throw new Error(`There are no modules in ${path}`);
  return { release, path, headers: headersIn(path, release) };
}

function headersIn(tree: string, release: string): string {
  return join(tree, "usr/src", `linux-headers-${release}`);
}

/** Makes headers that are made for /usr/src serve where they are. */
async function relocate(tree: string, release: string): Promise<void> {
  const makefile = join(headersIn(tree, release), "Makefile");
  const text = await Deno.readTextFile(makefile);
  const here = text.replace("include /usr/src/", "include $(dir $(lastword $(MAKEFILE_LIST)))../");
  if (here === text) throw new Error(`${makefile} does not include /usr/src/...: ${text}`);
  await Deno.writeTextFile(makefile, here);
  const build = join(tree, "lib/modules", release, "build");
  await Deno.remove(build);
  await Deno.symlink(`../../../usr/src/linux-headers-${release}`, build);
}

/** The path of a busybox that needs no library. */
export async function busybox(): Promise<string> {
  return join(await cached("busybox", (into) => unpack(["busybox-static"], into)), "bin/busybox");
}

/** Fetches `names` by apt, with `options` of apt's, and unpacks them into the new folder `into`. */
export async function unpack(names: readonly string[], into: string, options: readonly string[] = []): Promise<void> {
  await Deno.mkdir(into);
  const download = () => tool("apt-get", [...options, "download", ...names], { cwd: join(into, "..") });
  await patiently(download, options);
  for await (const { name: file } of Deno.readDir(join(into, ".."))) {
    if (file.endsWith(".deb")) await tool("dpkg", ["-x", join(into, "..", file), into]);
  }
}

/** Tries `fetch`, again with fresh lists, and once more after a pause. */
async function patiently<T>(fetch: () => Promise<T>, options: readonly string[] = []): Promise<T> {
  try {
    return await fetch();
  } catch (first) {
    console.log(`lab: ${first instanceof Error ? first.message.trim() : first}; asking again`);
  }
  try {
    await tool("apt-get", [...options, "update"]);
    return await fetch();
  } catch (second) {
    console.log(`lab: ${second instanceof Error ? second.message.trim() : second}; asking again`);
  }
  await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  return await fetch();
}
