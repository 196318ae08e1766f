/** Debian packages for the lab's hosts: fetched by apt and unpacked into the cache, never installed. */
import { join } from "node:path";
import { cached, tool } from "./cache.ts";

export type KernelVersion = "6.1" | "6.12";

/** A mirror that hiccups is asked again after so long. */
const RETRY_MS = 5_000;

/** The newest kernel package of `version`, from Debian's own name: linux-image-6.1.0-56-amd64, linux-image-6.12.117+... */
async function kernelPackage(version: KernelVersion): Promise<string> {
  const pattern = `^linux-image-${version.replace(".", "\\.")}\\.[0-9]+[^-]*(-[0-9]+)?-amd64$`;
  const names = (await tool("apt-cache", ["search", "--names-only", pattern])).match(/^linux-image-\S+/gm) ?? [];
  const newest = names.sort((a, b) => a.localeCompare(b, "en", { numeric: true })).at(-1);
  if (newest === undefined) {
    throw new Error(
      `Cannot find a kernel ${version}: apt knows no package ${pattern}; add a Debian suite that has one`,
    );
  }
  return newest;
}

/** Where the newest kernel package of `version` is unpacked. What the cache has is used, without asking the mirror. */
export function kernelTree(version: KernelVersion): Promise<string> {
  return cached(`kernel-${version}`, async (into) => {
    const name = await patiently(() => kernelPackage(version));
    await unpack(name, into);
    await tool("depmod", ["-b", into, name.replace("linux-image-", "")]);
  });
}

/** The path of a busybox that needs no library. */
export async function busybox(): Promise<string> {
  return join(await cached("busybox", (into) => unpack("busybox-static", into)), "bin/busybox");
}

async function unpack(name: string, into: string): Promise<void> {
  await Deno.mkdir(into);
  await patiently(() => tool("apt-get", ["download", name], { cwd: join(into, "..") }));
  for await (const { name: file } of Deno.readDir(join(into, ".."))) {
    if (file.endsWith(".deb")) await tool("dpkg", ["-x", join(into, "..", file), into]);
  }
}

/** Tries `fetch`, again with fresh lists, and once more after a pause. */
async function patiently<T>(fetch: () => Promise<T>): Promise<T> {
  try {
    return await fetch();
  } catch (first) {
    console.log(`lab: ${first instanceof Error ? first.message.trim() : first}; asking again`);
  }
  try {
    await tool("apt-get", ["update"]);
    return await fetch();
  } catch (second) {
    console.log(`lab: ${second instanceof Error ? second.message.trim() : second}; asking again`);
  }
  await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  return await fetch();
}
