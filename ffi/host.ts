/**
 * c-shim/host.h: what only system calls can tell about this host. The library is opened by the first call, for these
 * functions only: `gyges doctor` must have its say also with a library that is of no use for anything else.
 */
import { libraryPath } from "./library.ts";

/** Bits of `kvmCaps`, enum gy_host_kvm_cap. */
export const KVM_CAP = {
  userMemory: 1n << 0n,
  immediateExit: 1n << 1n,
  manualProtect: 1n << 2n,
  xsave2: 1n << 3n,
  xcrs: 1n << 4n,
  vcpuEvents: 1n << 5n,
  asyncPf: 1n << 6n,
  asyncPfInt: 1n << 7n,
  irqchip: 1n << 8n,
} as const;

/** struct gy_host_facts. Errors are 0 or a negative errno. */
export interface HostFacts {
  kvmError: number;
  kvmApi: number;
  kvmCaps: bigint;
  kvmMaxVcpus: number;
  uffdError: number;
  uffdFeatures: bigint;
  /** 0 none, 1 the system call, 2 /dev/userfaultfd. */
  uffdWay: number;
  /** vm.unprivileged_userfaultfd, or a negative errno. */
  unprivilegedUffd: number;
  memfdError: number;
  tls13: boolean;
  /** As OpenSSL counts: 0xMNN00PP0. */
  opensslVersion: bigint;
  /** 2^64 - 1: no limit. */
  memlockSoftBytes: bigint;
  memlockHardBytes: bigint;
}

const FACTS_BYTES = 72;

const SYMBOLS = {
  // int gy_host_facts(struct gy_host_facts *facts)
  gy_host_facts: { parameters: ["buffer"], result: "i32" },
  // int gy_host_takes_output(int fd)
  gy_host_takes_output: { parameters: ["i32"], result: "i32" },
  // int gy_host_redirect_output(const char *path)
  gy_host_redirect_output: { parameters: ["buffer"], result: "i32" },
  // int64_t gy_host_read(const char *path, void *buf, uint64_t cap)
  gy_host_read: { parameters: ["buffer", "buffer", "u64"], result: "i64" },
  // int64_t gy_host_list(const char *path, char *names, uint64_t cap)
  gy_host_list: { parameters: ["buffer", "buffer", "u64"], result: "i64" },
} as const satisfies Deno.ForeignLibraryInterface;

let opened: Deno.DynamicLibrary<typeof SYMBOLS> | undefined;

/** Throws what Deno.dlopen throws when the library, or one that it needs, cannot be opened. */
function library(): Deno.DynamicLibrary<typeof SYMBOLS> {
  return opened ??= Deno.dlopen(libraryPath(), SYMBOLS);
}

/** Looks at this host. */
export function hostFacts(): HostFacts {
  const buffer = new Uint8Array(FACTS_BYTES);
  library().symbols.gy_host_facts(buffer);
  const view = new DataView(buffer.buffer);
  return {
    kvmError: view.getInt32(0, true),
    kvmApi: view.getUint32(4, true),
    kvmCaps: view.getBigUint64(8, true),
    kvmMaxVcpus: view.getUint32(16, true),
    uffdError: view.getInt32(20, true),
    uffdFeatures: view.getBigUint64(24, true),
    uffdWay: view.getUint32(32, true),
    unprivilegedUffd: view.getInt32(36, true),
    memfdError: view.getInt32(40, true),
    tls13: view.getUint32(44, true) === 1,
    opensslVersion: view.getBigUint64(48, true),
    memlockSoftBytes: view.getBigUint64(56, true),
    memlockHardBytes: view.getBigUint64(64, true),
  };
}

/** Whether some bytes written to `fd` now, a page to a pipe, hold nobody up: they are taken, or refused at once. */
export function takesOutput(fd: number): boolean {
  return library().symbols.gy_host_takes_output(fd) !== 0;
}

/** Sends everything that this process, its native code included, writes to stdout and stderr to the end of `path`; -errno. */
export function redirectOutput(path: string): number {
  return library().symbols.gy_host_redirect_output(new TextEncoder().encode(`${path}\0`));
}

const MAX_READ_BYTES = 256 << 10;

/** The file `path`, also of /proc, /sys and /dev, which Deno keeps closed; null where there is none or it cannot be read. */
export function readHostFile(path: string): string | null {
  return answerOf((buffer, cap) => library().symbols.gy_host_read(cPath(path), buffer, cap));
}

/** The names in the directory `path`, sorted; none where there is no such directory. */
export function listHostFolder(path: string): string[] {
  const names = answerOf((buffer, cap) => library().symbols.gy_host_list(cPath(path), buffer, cap));
  return names === null ? [] : names.split("\0").slice(0, -1).sort();
}

function cPath(path: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(`${path}\0`);
}

function answerOf(ask: (buffer: Uint8Array<ArrayBuffer>, cap: bigint) => bigint): string | null {
  const buffer = new Uint8Array(MAX_READ_BYTES);
  const bytes = Number(ask(buffer, BigInt(buffer.length)));
  return bytes < 0 ? null : new TextDecoder().decode(buffer.subarray(0, bytes));
}
