/** What a host needs for the main job and for RDMA, each need with what was found and the one command that mends a lack. */
import { type HostFacts, KVM_CAP } from "../../ffi/host.ts";
import { runtimeBase, RuntimeDir } from "../control/runtime_dir.ts";
import { ControlServer } from "../control/server.ts";
import { PreflightError } from "../errors.ts";
import { formatBytes } from "../units.ts";
import type { Check } from "./check.ts";
import { THIS_HOST } from "./host_view.ts";
import { hasLibrary, hostFacts } from "./native.ts";

export type { Check } from "./check.ts";

const ERRNO: Record<number, string> = {
  1: "EPERM",
  2: "ENOENT",
  5: "EIO",
  6: "ENXIO",
  12: "ENOMEM",
  13: "EACCES",
  16: "EBUSY",
  19: "ENODEV",
  22: "EINVAL",
  24: "EMFILE",
  38: "ENOSYS",
  95: "EOPNOTSUPP",
};

function errnoName(error: number): string {
  return ERRNO[-error] ?? `errno ${-error}`;
}

/** All checks, in the order in which an operator would mend. */
export async function examineHost(): Promise<Check[]> {
  const before = [kernel(Deno.osRelease())];
  const after = [memory(Deno.systemMemoryInfo().available), await runtimeDirectory()];
  // It brings the module's source and what hashes it, which the checks before each move have no use for.
  const { rdmaChecks } = await import("./doctor_rdma.ts");
  try {
    const rdma = rdmaChecks({ ...THIS_HOST, hasLibrary, kernel: Deno.osRelease() });
    const pinned = rdma.some(({ name, status }) => name === "rdma-device" && status === "ok") && Deno.uid() !== 0;
    return [...before, ...checksOf(hostFacts(), { pinned }), ...after, ...rdma];
  } catch (error) {
    if (!(error instanceof PreflightError)) throw error;
    const needed = "libgyges.so and OpenSSL 3; KVM, userfaultfd and TLS cannot be checked without it";
    const lack: Check = { name: error.check, status: "fail", found: error.message, needed, remedy: error.remedy };
    return [...before, lack, ...after];
  }
}

export interface FactsOptions {
  /** RDMA would pin guest RAM, and the limit on that holds for this user. @default {false} */
  pinned?: boolean;
}

/** The checks that rest on the shim's facts; pure. */
export function checksOf(facts: HostFacts, { pinned = false }: FactsOptions = {}): Check[] {
  return [
    kvm(facts),
    kvmCapabilities(facts),
    kvmExtras(facts),
    memfd(facts),
    userfaultfd(facts),
    tls(facts),
    lockedMemory(facts, pinned),
  ];
}

function kernel(release: string): Check {
  const [major = 0, minor = 0] = release.split(".").map((part) => parseInt(part, 10));
  const enough = major > 5 || (major === 5 && minor >= 11);
  return {
    name: "kernel",
    status: enough ? "ok" : "fail",
    found: `Linux ${release}`,
    needed: "Linux 5.11 or later",
    remedy: enough ? null : "run: apt-get install -y linux-image-amd64 && reboot",
  };
}

const KVM_REMEDY: Record<string, string> = {
  ENOENT: "run: modprobe -a kvm_intel kvm_amd; if that fails, turn virtualisation on in the firmware",
  ENODEV: "turn virtualisation (VT-x or AMD-V) on in the firmware, or nested virtualisation in the hypervisor around",
  ENXIO: "turn virtualisation (VT-x or AMD-V) on in the firmware, or nested virtualisation in the hypervisor around",
  EACCES: 'run: sudo usermod -aG kvm "$USER", and log in again',
  EPERM: 'run: sudo usermod -aG kvm "$USER", and log in again',
  EBUSY: "end the other hypervisor that holds the CPU's virtualisation, as VirtualBox does",
};

function kvm({ kvmError, kvmApi, kvmMaxVcpus }: HostFacts): Check {
  const needed = "/dev/kvm with API version 12, free to use";
  if (kvmError === 0 && kvmApi === 12) {
    const found = `API version 12, up to ${kvmMaxVcpus} vCPUs a machine`;
    return { name: "kvm", status: "ok", found, needed, remedy: null };
  }
  if (kvmError === 0) {
    return {
      name: "kvm",
      status: "fail",
      found: `API version ${kvmApi}`,
      needed,
      remedy: "run a current Linux kernel",
    };
  }
  const name = errnoName(kvmError);
  const remedy = KVM_REMEDY[name] ?? "run: dmesg | grep -i kvm, and mend what it names";
  return { name: "kvm", status: "fail", found: `cannot make a machine with /dev/kvm: ${name}`, needed, remedy };
}

/** Names of the capabilities of `wanted` that `caps` lacks. */
function lacking(caps: bigint, wanted: readonly (keyof typeof KVM_CAP)[]): string[] {
  return wanted.filter((name) => (caps & KVM_CAP[name]) === 0n);
}

function kvmCapabilities({ kvmCaps }: HostFacts): Check {
  const wanted = ["userMemory", "immediateExit", "manualProtect", "xcrs", "vcpuEvents"] as const;
  const lacks = lacking(kvmCaps, wanted);
  return {
    name: "kvm-capabilities",
    status: lacks.length === 0 ? "ok" : "fail",
    found: lacks.length === 0 ? wanted.join(", ") : `without ${lacks.join(", ")}`,
    needed: wanted.join(", "),
    remedy: lacks.length === 0 ? null : "run Linux 5.11 or later with KVM of its own",
  };
}

function kvmExtras({ kvmCaps }: HostFacts): Check {
  const wanted = ["xsave2", "irqchip", "asyncPf", "asyncPfInt"] as const;
  const lacks = lacking(kvmCaps, wanted);
  return {
    name: "kvm-extras",
    status: lacks.length === 0 ? "ok" : "warn",
    found: lacks.length === 0 ? wanted.join(", ") : `without ${lacks.join(", ")}`,
    needed: "xsave2 for CPUs with large state (AMX); irqchip and asyncPf for asynchronous page faults",
    remedy: lacks.length === 0 ? null : "run Linux 5.17 or later, if the guests need it",
  };
}

function memfd({ memfdError }: HostFacts): Check {
  const fine = memfdError === 0;
  return {
    name: "memfd",
    status: fine ? "ok" : "fail",
    found: fine ? "works" : errnoName(memfdError),
    needed: "memfd_create(2), for RAM files",
    remedy: fine ? null : "allow memfd_create in the sandbox or container around this",
  };
}

function userfaultfd({ uffdError, uffdFeatures, uffdWay, unprivilegedUffd }: HostFacts): Check {
  const needed = "userfaultfd that sees KVM's faults and places pages in shared memory";
  const features = `features 0x${uffdFeatures.toString(16)}`;
  if (uffdError === 0) {
    const way = uffdWay === 1 ? "system call" : "/dev/userfaultfd";
    return { name: "userfaultfd", status: "ok", found: `${way}, ${features}`, needed, remedy: null };
  }
  const name = errnoName(uffdError);
  const setting = unprivilegedUffd >= 0 ? `, vm.unprivileged_userfaultfd is ${unprivilegedUffd}` : "";
  const remedy = name === "ENOSYS"
    ? "run a kernel built with CONFIG_USERFAULTFD"
    : "run as root: sysctl -w vm.unprivileged_userfaultfd=1, or: setfacl -m u:USER:rw /dev/userfaultfd";
  return { name: "userfaultfd", status: "fail", found: `${name}${setting}`, needed, remedy };
}

function tls({ tls13, opensslVersion }: HostFacts): Check {
  const part = (shift: bigint, bits: bigint) => Number((opensslVersion >> shift) & ((1n << bits) - 1n));
  const version = `OpenSSL ${part(28n, 4n)}.${part(20n, 8n)}.${part(4n, 8n)}`;
  const fine = tls13 && part(28n, 4n) >= 3;
  return {
    name: "tls",
    status: fine ? "ok" : "fail",
    found: tls13 ? `${version} with TLS 1.3` : `${version} without TLS 1.3`,
    needed: "OpenSSL 3 with TLS 1.3, unless both sides ask for --tls off",
    remedy: fine ? null : "run: apt-get install -y libssl3, and allow TLS 1.3 in /etc/ssl/openssl.cnf",
  };
}

const UNLIMITED = (1n << 64n) - 1n;

function lockedMemory({ memlockSoftBytes, memlockHardBytes }: HostFacts, pinned: boolean): Check {
  const text = (bytes: bigint) => bytes === UNLIMITED ? "unlimited" : formatBytes(Number(bytes));
  const short = pinned && memlockSoftBytes !== UNLIMITED;
  return {
    name: "locked-memory",
    status: short ? "warn" : "ok",
    found: `limit ${text(memlockSoftBytes)}, at most ${text(memlockHardBytes)}`,
    needed: pinned ? "all of a guest's RAM, for the user pager over RDMA" : "nothing: guest RAM is not locked",
    remedy: short ? "run as root: prlimit --pid $$ --memlock=unlimited, or set memlock in limits.conf(5)" : null,
  };
}

const LEAST_FREE_BYTES = 64 * 2 ** 20;
/** What `gyges demo` takes with its default RAM: a guest on each side, and the processes. */
const DEMO_BYTES = 768 * 2 ** 20;

function memory(availableBytes: number): Check {
  const found = `${formatBytes(availableBytes)} available`;
  const needed = `the guest's RAM, once on each host; ${formatBytes(DEMO_BYTES)} for gyges demo`;
  const status = availableBytes < LEAST_FREE_BYTES ? "fail" : availableBytes < DEMO_BYTES ? "warn" : "ok";
  const remedy = status === "ok" ? null : "end what takes the memory: ps -eo rss,pid,comm --sort=-rss | head";
  return { name: "memory", status, found, needed, remedy };
}

/** Proves the runtime directory by using it as a process would, and leaves no trace. */
async function runtimeDirectory(): Promise<Check> {
  const needed = "a private directory (mode 0700) for control sockets";
  let base = "";
  try {
    base = runtimeBase();
    const existed = exists(base);
    {
      using directory = await RuntimeDir.claim(`doctor-${Deno.pid}`, base);
      await using _server = new ControlServer(directory.socketPath, new Map());
    }
    if (!existed) Deno.removeSync(base);
    return { name: "runtime-directory", status: "ok", found: `${base} works`, needed, remedy: null };
  } catch (error) {
    const found = error instanceof Error ? error.message : String(error);
    const remedy = error instanceof PreflightError
      ? error.remedy
      : `run: df ${base}; ls -ld ${base}, and mend what is off`;
    return { name: "runtime-directory", status: "fail", found, needed, remedy };
  }
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}
