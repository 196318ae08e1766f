/**
 * `deno task bench`: figures with n, percentiles and the ratio to a baseline of the same run. These machines are
 * shared: compare ratios, not absolutes. Names of benches as arguments run only those.
 */
import { benchLab } from "./lab.ts";
import { benchDowntime, benchTotal, benchTracking } from "./move.ts";
import { benchPager } from "./pager.ts";
import { benchMemory, benchStart } from "./process.ts";
import { benchQemu } from "./qemu/bench.ts";

/** Bytes a second, null: no limit. */
const QEMU_BANDWIDTHS = [null, 100 * 1024 ** 2];

const BENCHES: Readonly<Record<string, () => Promise<void>>> = {
  pager: benchPager,
  downtime: () => benchDowntime(["256M", "1G", "4G", "8G"], 10),
  total: () => benchTotal("1G", 5),
  tracking: () => benchTracking(5),
  start: () => benchStart(10),
  memory: () => benchMemory(["256M", "1G", "4G"]),
  lab: () => benchLab(5),
  qemu: async () => {
    for (const bandwidth of QEMU_BANDWIDTHS) await benchQemu(bandwidth, 5);
  },
};

await new Deno.Command("make", { args: ["-s", "-C", new URL("../../c-shim", import.meta.url).pathname, "bench"] })
  .spawn().status;
const cpu = /model name\s*: (.*)/.exec(Deno.readTextFileSync("/proc/cpuinfo"))?.[1] ?? "unknown CPU";
console.log(`${cpu}, ${navigator.hardwareConcurrency} CPUs, Linux ${Deno.osRelease()}`);
for (const [name, bench] of Object.entries(BENCHES)) {
  if (Deno.args.length === 0 || Deno.args.includes(name)) await bench();
}
