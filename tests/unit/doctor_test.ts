import assert from "node:assert/strict";
import { type HostFacts, KVM_CAP } from "../../ffi/host.ts";
import { checksOf } from "../../lib/host/doctor.ts";
import { GOOD } from "./doctor_facts.ts";

function statuses(facts: Partial<HostFacts>): Record<string, string> {
  return Object.fromEntries(checksOf({ ...GOOD, ...facts }).map((check) => [check.name, check.status]));
}

Deno.test("checksOf() finds nothing to mend on a good host", () => {
  for (const check of checksOf(GOOD)) assert.deepEqual([check.status, check.remedy], ["ok", null], check.name);
});

Deno.test("checksOf() fails what the main job needs and only warns of the rest", () => {
  const cases: [Partial<HostFacts>, string, string][] = [
    [{ kvmError: -13 }, "kvm", "fail"],
    [{ kvmError: -2 }, "kvm", "fail"],
    [{ kvmApi: 11 }, "kvm", "fail"],
    [{ kvmCaps: GOOD.kvmCaps & ~KVM_CAP.immediateExit }, "kvm-capabilities", "fail"],
    [{ kvmCaps: GOOD.kvmCaps & ~KVM_CAP.manualProtect }, "kvm-capabilities", "fail"],
    [{ kvmCaps: GOOD.kvmCaps & ~KVM_CAP.asyncPf }, "kvm-extras", "warn"],
    [{ memfdError: -38 }, "memfd", "fail"],
    [{ uffdError: -1, uffdWay: 0 }, "userfaultfd", "fail"],
    [{ uffdError: -38, uffdWay: 0 }, "userfaultfd", "fail"],
    [{ tls13: false }, "tls", "fail"],
    [{ opensslVersion: 0x1010113fn }, "tls", "fail"],
  ];
  for (const [facts, name, status] of cases) {
    assert.deepEqual(statuses(facts), { ...statuses({}), [name]: status });
    const lack = checksOf({ ...GOOD, ...facts }).find((check) => check.name === name);
    assert.ok(lack?.remedy, `${name} has a remedy`);
  }
});

Deno.test("checksOf() names what it found", () => {
  const found = (facts: Partial<HostFacts>, name: string) =>
    checksOf({ ...GOOD, ...facts }).find((check) => check.name === name)?.found;
  assert.equal(found({}, "tls"), "OpenSSL 3.0.19 with TLS 1.3");
  assert.equal(found({}, "locked-memory"), "limit 8 MiB, at most unlimited");
  assert.equal(found({ kvmError: -13 }, "kvm"), "cannot make a machine with /dev/kvm: EACCES");
  assert.equal(found({ uffdError: -1 }, "userfaultfd"), "EPERM, vm.unprivileged_userfaultfd is 0");
});
