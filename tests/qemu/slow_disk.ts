/** A disk that is slow for one process: requests lie in the kernel, guest memory pinned, long enough for a test to meet them. */
import { basename, dirname, join } from "node:path";
import { exists } from "../lab/cache.ts";

const V1 = "/sys/fs/cgroup/blkio";
const V2 = "/sys/fs/cgroup";

interface Controller {
  folder: string;
  file: string;
  line: (device: string, reads: number) => string;
}

/** Why this host cannot slow a disk; null: it can. */
export function noSlowDisk(): string | null {
  return controller() ? null : "no cgroup here limits a disk's requests (blkio of version 1, io of version 2)";
}

function controller(): Controller | null {
  if (exists(`${V1}/blkio.throttle.read_iops_device`)) {
    return { folder: V1, file: "blkio.throttle.read_iops_device", line: (device, reads) => `${device} ${reads}` };
  }
  const enabled = exists(`${V2}/cgroup.subtree_control`) && Deno.readTextFileSync(`${V2}/cgroup.subtree_control`);
  if (!enabled || !enabled.split(/\s/).includes("io")) return null;
  return { folder: V2, file: "io.max", line: (device, reads) => `${device} riops=${reads}` };
}

export class SlowDisk implements Disposable {
  readonly #folder: string;

  /** From here on process `pid` reads `readsPerSecond` times a second at most from the disk that `path` is on. */
  constructor(pid: number, path: string, readsPerSecond: number) {
    const found = controller();
    if (!found) throw new Error("There is no controller");
    this.#folder = Deno.makeTempDirSync({ dir: found.folder, prefix: "gyges-test-" });
    Deno.writeTextFileSync(join(this.#folder, found.file), found.line(diskOf(path), readsPerSecond));
    Deno.writeTextFileSync(join(this.#folder, "cgroup.procs"), `${pid}`);
  }

  /** The process must have ended. */
  [Symbol.dispose](): void {
    Deno.removeSync(this.#folder);
  }
}

/** "254:0": limits are of whole disks, not of partitions. */
function diskOf(path: string): string {
  const { dev } = Deno.statSync(path);
  const device = `${dev >> 8 & 0xfff}:${dev & 0xff | dev >> 12 & 0xfff00}`;
  const real = Deno.realPathSync(`/sys/dev/block/${device}`);
  if (!exists(`${real}/partition`)) return device;
  return Deno.readTextFileSync(`/sys/block/${basename(dirname(real))}/dev`).trim();
}
