/** What an operator may choose, with every default in one place. */

export type Mode = "hybrid" | "full" | "precopy";
/**
 * What catches a guest's page faults: userfaultfd in this process, gygesfs in the kernel, or QEMU itself, which then
 * moves its RAM by its own post-copy.
 */
export type PagerKind = "user" | "kernel" | "native";
export type PagerChoice = "auto" | PagerKind;
/** How pages cross: over TCP connections (with TLS or without), or by one-sided RDMA READs of the destination. */
export type Transport = "tcp" | "rdma";
export type TransportChoice = "auto" | Transport;
export type WorkloadPattern = "uniform" | "sequential" | "zipf";

/** A micro-VM's size and the work its guest program does. */
export interface MicroVmOptions {
  /** Bytes of guest RAM: a multiple of 2 MiB, at least 16 MiB. */
  ramBytes: number;
  /** 1 to 8. @default {1} */
  vcpus: number;
  /** @default {"uniform"} */
  workload: WorkloadPattern;
  /** Bytes that the guest keeps touching; 0 means three quarters of its RAM. @default {0} */
  workingSetBytes: number;
  /** Share of touches that rewrite the page, 0 to 1. @default {0.5} */
  writeRatio: number;
  /** Touches per second over all vCPUs; 0 means as many as it can. @default {0} */
  ratePagesPerSecond: number;
  /** In-kernel interrupt controller; KVM's asynchronous page faults need it. @default {false} */
  irqchip: boolean;
  /** Where RAM lives, and so what can move it. @default {"auto"} */
  pager: PagerChoice;
}

export const MICRO_VM_DEFAULTS = {
  vcpus: 1,
  workload: "uniform",
  workingSetBytes: 0,
  writeRatio: 0.5,
  ratePagesPerSecond: 0,
  irqchip: false,
  pager: "auto",
} as const satisfies Omit<MicroVmOptions, "ramBytes">;

/** How a guest is to be moved. */
export interface MigrateOptions {
  /** @default {"hybrid"} */
  mode: Mode;
  /** Promise on the length of pre-copy in hybrid mode. @default {10_000} */
  precopyTimeoutMs: number;
  /** Hybrid switches when what is dirty can be pulled within this. @default {50} */
  switchThresholdMs: number;
  /** Bytes per second over the whole link; 0 means unlimited. @default {0} */
  bandwidthBytesPerSecond: number;
  /** Pre-copy mode stops the guest when the rest fits in this. @default {300} */
  downtimeLimitMs: number;
  /** Page connections for prefetch and pre-copy, 1 to 16. @default {2} */
  prefetchConnections: number;
  /** Pull pages in the background after the switch; false: only once no fault has come for a second. @default {true} */
  prefetch: boolean;
  /** TLS 1.3 on every connection; must be the same on both sides. @default {true} */
  tls: boolean;
  /** What must move the guest; "auto": what its RAM was made for. @default {"auto"} */
  pager: PagerChoice;
  /** "auto": RDMA where the destination can connect by it, else TCP. @default {"auto"} */
  transport: TransportChoice;
  /** Where to await the destination's RDMA connections; null: an RDMA address of this host. @default {null} */
  rdmaListen: HostPort | null;
}

export interface HostPort {
  host: string;
  /** 0 lets the kernel choose. */
  port: number;
}

export const MIGRATE_DEFAULTS: MigrateOptions = {
  mode: "hybrid",
  precopyTimeoutMs: 10_000,
  switchThresholdMs: 50,
  bandwidthBytesPerSecond: 0,
  downtimeLimitMs: 300,
  prefetchConnections: 2,
  prefetch: true,
  tls: true,
  pager: "auto",
  transport: "auto",
  rdmaListen: null,
};

export interface PrepareOptions {
  /** Host or address to listen on and to name in the ticket. @default {"127.0.0.1"} */
  host: string;
  /** 0 lets the kernel choose. @default {0} */
  port: number;
  /** @default {true} */
  tls: boolean;
  /** The ticket is void after this. @default {600_000} */
  ticketTtlMs: number;
  /** What is to catch the guest's page faults here. @default {"auto"} */
  pager: PagerChoice;
}

export const PREPARE_DEFAULTS: PrepareOptions = {
  host: "127.0.0.1",
  port: 0,
  tls: true,
  ticketTtlMs: 600_000,
  pager: "auto",
};
