/** What the shim finds on a host that has all a migration needs. */
import { type HostFacts, KVM_CAP } from "../../ffi/host.ts";

export const GOOD: HostFacts = {
  kvmError: 0,
  kvmApi: 12,
  kvmCaps: Object.values(KVM_CAP).reduce((all, bit) => all | bit, 0n),
  kvmMaxVcpus: 1024,
  uffdError: 0,
  uffdFeatures: 0x1ffffn,
  uffdWay: 1,
  unprivilegedUffd: 0,
  memfdError: 0,
  tls13: true,
  opensslVersion: 0x30000130n,
  memlockSoftBytes: 8n << 20n,
  memlockHardBytes: (1n << 64n) - 1n,
};
