/** The kernel module as it is on this host, beside the one that this program carries. */
import { type HostView, isThere, lineOf, THIS_HOST } from "./host_view.ts";
import { defaultHeaders } from "./module_build.ts";
import { moduleSource } from "./module_source.ts";

export const MODULE = "gyges";

/** What `gyges module status` tells. */
export interface ModuleStatus {
  /** What uname -r says. */
  kernel: string;
  loaded: boolean;
  /** Of the loaded module; null where none is. */
  version: string | null;
  /** Hash of the loaded module's source; null also for one that does not tell. */
  source: string | null;
  /** Version of the loaded module's interface. */
  abi: number | null;
  /** What this program carries. */
  carried: { version: string; source: string; abi: number };
  /** The loaded module was built from what this program carries. */
  source_matches: boolean | null;
  /** The program can speak to it. */
  abi_matches: boolean | null;
  /** Where gygesfs is mounted. */
  mounts: string[];
  /** References that the kernel counts: mounts, and what is open or mapped. */
  references: number | null;
  /** The headers of the running kernel are here, so that it could be built. */
  headers: boolean;
  rdma_devices: string[];
}

export function moduleStatus(host: HostView = THIS_HOST, kernel: string = Deno.osRelease()): ModuleStatus {
  const { version, hash, abi } = moduleSource();
  const at = (name: string) => lineOf(host, `/sys/module/${MODULE}/${name}`);
  const loaded = at("initstate") === "live" || isThere(host, `/sys/module/${MODULE}`);
  const source = loaded ? at("parameters/source") : null;
  const theirs = loaded ? numberOf(at("parameters/abi")) : null;
  return {
    kernel,
    loaded,
    version: loaded ? at("version") : null,
    source,
    abi: theirs,
    carried: { version, source: hash, abi },
    source_matches: loaded ? source === hash : null,
    abi_matches: loaded ? theirs === abi : null,
    mounts: mountsOf(host.read("/proc/self/mounts") ?? ""),
    references: loaded ? numberOf(at("refcnt")) : null,
    headers: isThere(host, `${defaultHeaders(kernel)}/Makefile`),
    rdma_devices: host.list("/sys/class/infiniband"),
  };
}

function numberOf(text: string | null): number | null {
  return text === null ? null : Number(text);
}

/** Where gygesfs is mounted, of what /proc/self/mounts says. */
export function mountsOf(mounts: string): string[] {
  return mounts.split("\n").flatMap((line) => {
    const [, folder, type] = line.split(" ");
    return type === "gygesfs" && folder !== undefined ? [unescaped(folder)] : [];
  });
}

/** Blanks and the like are octal there. */
function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 8)));
}
