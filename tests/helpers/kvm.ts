/** Tests that need KVM and userfaultfd: run where there are both, skipped with the reason elsewhere. */
import { hostFacts } from "../../ffi/host.ts";
import { runsEmulated } from "./emulated.ts";
import { Host } from "./host.ts";
import { testOrSkip } from "./skips.ts";

/** -ENOENT */
const NO_DEVICE = -2;

function whatIsMissing(): string | null {
  const { kvmError, uffdError } = hostFacts();
  if (kvmError === NO_DEVICE) return "needs /dev/kvm natively, too slow in an emulated host";
  if (kvmError !== 0) return `/dev/kvm cannot be used (errno ${-kvmError})`;
  if (uffdError !== 0) return `userfaultfd cannot be used (errno ${-uffdError})`;
  return null;
}

/** What a guest under KVM cannot be without, in words; null: all is there. */
export const missing = whatIsMissing();

/** A test that starts a guest. */
export function needsKvm(name: string, fn: () => Promise<void>): void {
  // The part "emulated" has it.
  if (missing && runsEmulated(name)) return;
  testOrSkip(name, missing, fn);
}

/** A test with a host of its own. Everything that `body` started is ended with it. */
export function kvmTest(name: string, body: (host: Host) => Promise<void>): void {
  needsKvm(name, async () => {
    await using host = await Host.open();
    await body(host);
  });
}
