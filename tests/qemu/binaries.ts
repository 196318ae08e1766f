/** The QEMUs that tests run: the system's own, and Debian's backport of a newer one, unpacked beside it. */
import { join } from "node:path";
import { cached, tool } from "../lab/cache.ts";
import { unpack } from "../lab/packages.ts";

export type QemuVersion = "7.2" | "10.0";

export interface QemuBinary {
  version: QemuVersion;
  /** The program, a path. */
  program: string;
  /** To stand before all other arguments: where its firmware is. */
  args: readonly string[];
}

const RELEASE = "bookworm";
const KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg";
/** What they depend on is there, for the QEMU of the system has the same needs. */
const BACKPORTS = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

/** The QEMU of `version`. Throws where the one that is found is of another. */
export async function qemuBinary(version: QemuVersion): Promise<QemuBinary> {
  const binary = version === "7.2" ? { version, program: "/usr/bin/qemu-system-x86_64", args: [] } : await backport();
  const words = await tool(binary.program, ["--version"]);
  if (!words.startsWith(`QEMU emulator version ${version}.`)) {
    throw new Error(`${binary.program} is not QEMU ${version} but ${words.split("\n")[0]}`);
  }
  return binary;
}

async function backport(): Promise<QemuBinary> {
  const root = await cached("qemu-10.0", async (into) => {
    const apt = await backportsOnly(join(into, "..", "apt"));
    await tool("apt-get", [...apt, "update"]);
    await unpack(BACKPORTS.map((name) => `${name}/${RELEASE}-backports`), into, apt);
  });
  // It looks for its firmware where the system's is.
  const firmware = ["qemu", "seabios"].flatMap((name) => ["-L", join(root, "usr/share", name)]);
  return { version: "10.0", program: join(root, "usr/bin/qemu-system-x86_64"), args: firmware };
}

/** Options for an apt that knows the backports alone, from the mirror that it has Debian from; its lists are in `folder`. */
async function backportsOnly(folder: string): Promise<string[]> {
  const targets = await tool("apt-get", ["indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)"]);
  const mirror = new RegExp(`^${RELEASE} main (\\S+)$`, "m").exec(targets)?.[1];
  if (mirror === undefined) throw new Error(`Cannot find a mirror with ${RELEASE}: apt has none, ${targets}`);
  const lists = join(folder, "lists");
  await Deno.mkdir(join(lists, "partial"), { recursive: true });
  const sources = join(folder, "backports.list");
  await Deno.writeTextFile(sources, `deb [signed-by=${KEYRING}] ${mirror} ${RELEASE}-backports main\n`);
  const settings = {
    "Dir::Etc::sourcelist": sources,
    "Dir::Etc::sourceparts": "-",
    "Dir::State::lists": lists,
    "Dir::Cache::pkgcache": "",
    "Dir::Cache::srcpkgcache": "",
  };
  return Object.entries(settings).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
}
