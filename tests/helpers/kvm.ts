/** Tests that need KVM and userfaultfd: run where there are both, skipped with the reason elsewhere. */
import { hostFacts } from "../../ffi/host.ts";
import { runsEmulated } from "./emulated.ts";
import { Host } from "./host.ts";

/** Where tests/run.ts wants reasons for skips; a quiet `deno test` shows nothing that tests print. */
const SKIPS = "GYGES_TEST_SKIPS";
/** -ENOENT */
const NO_DEVICE = -2;

function whatIsMissing(): string | null {
  const { kvmError, uffdError } = hostFacts();
  if (kvmError === NO_DEVICE) return "needs /dev/kvm natively, too slow in an emulated host";
  if (kvmError !== 0) return `/dev/kvm cannot be used (errno ${-kvmError})`;
  if (uffdError !== 0) return `userfaultfd cannot be used (errno ${-uffdError})`;
  return null;
}

const missing = whatIsMissing();

/** A test that starts a guest. */
export function needsKvm(name: string, fn: () => Promise<void>): void {
  // The part "emulated" has it.
  if (missing && runsEmulated(name)) return;
  if (missing) {
    const report = Deno.env.get(SKIPS);
    const line = `skip: ${name}: ${missing}\n`;
    if (report) Deno.writeTextFileSync(report, line, { append: true });
    else console.log(line.trimEnd());
  }
  Deno.test({ name, ignore: missing !== null, fn });
}

/** A test with a host of its own. Everything that `body` started is ended with it. */
export function kvmTest(name: string, body: (host: Host) => Promise<void>): void {
  needsKvm(name, async () => {
    await using host = await Host.open();
    await body(host);
  });
}
