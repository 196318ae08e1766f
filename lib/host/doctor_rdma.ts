/** What RDMA and the kernel pager need on a host. None of it is needed to move a guest over TCP, so all lacks are limits. */
import type { Check } from "./check.ts";
import { type HostView, lineOf } from "./host_view.ts";
import { headersRemedy } from "./module_build.ts";
import { type ModuleStatus, moduleStatus } from "./module_status.ts";
import { installRemedy, type PackageNames } from "./packages.ts";
import { RAM_FOLDER } from "./ram_folder.ts";

/** RoCE packs a page into one packet where its path MTU is 4096, and that needs so much of the Ethernet link. */
const PAGE_MTU = 4200;

const LIBRARIES: readonly (readonly [string, PackageNames])[] = [
  ["libibverbs.so.1", {
    debian: "libibverbs1 ibverbs-providers",
    fedora: "libibverbs",
    suse: "libibverbs1",
    arch: "rdma-core",
  }],
  ["librdmacm.so.1", { debian: "librdmacm1", fedora: "librdmacm", suse: "librdmacm1", arch: "rdma-core" }],
];

export interface RdmaHost extends HostView {
  /** Whether a shared library is there. */
  hasLibrary(name: string): boolean;
  /** What uname -r says. */
  kernel: string;
}

/** The checks, in the order in which an operator would mend. */
export function rdmaChecks(host: RdmaHost): Check[] {
  const status = moduleStatus(host, host.kernel);
  return [
    libraries(host),
    devices(host, status.rdma_devices),
    ...status.rdma_devices.flatMap((device) => linkMtu(host, device)),
    headers(host, status),
    module(status),
  ];
}

function libraries(host: RdmaHost): Check {
  const missing = LIBRARIES.filter(([name]) => !host.hasLibrary(name));
  const [first] = missing;
  return {
    name: "rdma-libraries",
    status: first ? "warn" : "ok",
    found: first ? `without ${missing.map(([name]) => name).join(", ")}` : LIBRARIES.map(([name]) => name).join(", "),
    needed: "libibverbs and librdmacm, for the user pager over RDMA",
    remedy: first ? installRemedy(first[1], host) : null,
  };
}

function devices(host: HostView, names: readonly string[]): Check {
  const states = names.map((name) => [name, lineOf(host, `${portOf(name)}/state`)?.replace(/^\d+: /, "")] as const);
  const active = states.some(([, state]) => state === "ACTIVE");
  const down = "run: ip link set dev DEVICE up, or plug the cable in; see rdma link";
  const none = "for soft-RoCE run: modprobe rdma_rxe && rdma link add rxe0 type rxe netdev DEVICE";
  return {
    name: "rdma-device",
    status: active ? "ok" : "warn",
    found: states.length === 0 ? "none" : states.map(([name, state]) => `${name} ${state ?? "unknown"}`).join(", "),
    needed: "an active RDMA device, for the kernel pager and for RDMA by the user pager",
    remedy: active ? null : names.length > 0 ? down : none,
  };
}

function portOf(device: string): string {
  return `/sys/class/infiniband/${device}/ports/1`;
}

/** Nothing for a device that is not on Ethernet. */
function linkMtu(host: HostView, device: string): Check[] {
  const port = portOf(device);
  const netdev = lineOf(host, `${port}/gid_attrs/ndevs/0`);
  const mtu = Number(lineOf(host, `/sys/class/net/${netdev}/mtu`) ?? NaN);
  if (lineOf(host, `${port}/link_layer`) !== "Ethernet" || netdev === null || Number.isNaN(mtu)) return [];
  const enough = mtu >= PAGE_MTU;
  return [{
    name: "rdma-mtu",
    status: enough ? "ok" : "warn",
    found: `${device} is on ${netdev}, MTU ${mtu}`,
    needed: `an MTU of ${PAGE_MTU} or more on both hosts and in between, so that a page is one packet`,
    remedy: enough ? null : `run: ip link set dev ${netdev} mtu 9000`,
  }];
}

function headers(host: HostView, { loaded, headers, kernel }: ModuleStatus): Check {
  const fine = loaded || headers;
  return {
    name: "kernel-headers",
    status: fine ? "ok" : "warn",
    found: headers
      ? `those of Linux ${kernel}`
      : `none of Linux ${kernel}${loaded ? ", and the module is loaded" : ""}`,
    needed: "the running kernel's headers, to build the kernel pager's module",
    remedy: fine ? null : headersRemedy(kernel, host),
  };
}

function module(status: ModuleStatus): Check {
  const { loaded, mounts, carried } = status;
  const mounted = mounts.includes(RAM_FOLDER);
  const fine = loaded && status.source_matches === true && status.abi_matches === true && mounted;
  return {
    name: "module",
    status: fine ? "ok" : "warn",
    found: moduleText(status, mounted),
    needed: `gyges ${carried.version} of source ${carried.source}, interface ${carried.abi}, for the kernel pager`,
    remedy: fine ? null : `as root run: ${loaded && mounted ? "gyges module unload && " : ""}gyges module load`,
  };
}

function moduleText({ loaded, version, source, abi, ...status }: ModuleStatus, mounted: boolean): string {
  if (!loaded) return "not loaded";
  const build = `gyges ${version ?? "unknown"} of source ${source ?? "unknown"}`;
  if (!status.abi_matches) return `${build}, interface ${abi ?? "unknown"}, which this program does not speak`;
  if (!status.source_matches) return `${build}, which is not the one that this program carries`;
  return mounted ? `${build}, gygesfs at ${RAM_FOLDER}` : `${build}, gygesfs not mounted at ${RAM_FOLDER}`;
}
