/** Tests that need KVM and userfaultfd: run where there are both, skipped with the reason elsewhere. */
import { hostFacts } from "../../ffi/host.ts";
import { Host } from "./host.ts";

function whatIsMissing(): string | null {
  const { kvmError, uffdError } = hostFacts();
  if (kvmError !== 0) return `/dev/kvm cannot be used (errno ${-kvmError})`;
  if (uffdError !== 0) return `userfaultfd cannot be used (errno ${-uffdError})`;
  return null;
}

const missing = whatIsMissing();

/** A test with a host of its own. Everything that `body` started is ended with it. */
export function kvmTest(name: string, body: (host: Host) => Promise<void>): void {
  if (missing) console.log(`skip: ${name}: ${missing}`);
  Deno.test({
    name,
    ignore: missing !== null,
    async fn() {
      await using host = await Host.open();
      await body(host);
    },
  });
}
