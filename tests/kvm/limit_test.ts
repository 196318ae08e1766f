/** Hybrid mode's promise: pre-copy ends by its limit however fast the guest writes, and then nothing is copied. */
import assert from "node:assert/strict";
import { kvmTest } from "../helpers/kvm.ts";
import { move, prepare, startGuest } from "../helpers/pair.ts";
import { proveGuest, proveSummary } from "../helpers/proof.ts";

/** One scheduling delay and one round's final request, on a machine that has other things to do. */
const SLACK_MS = 60;

for (const limitMs of [300, 1000, 2000]) {
  kvmTest(
    `hybrid pre-copy of a write-heavy guest keeps to a limit of ${limitMs} ms, without stop-and-copy`,
    async (host) => {
      const source = await startGuest(host, "src", ["--ram", "128M", "--write-ratio", "1"]);
      const destination = await prepare(host, "dst");
      const options = ["--mode", "hybrid", "--precopy-timeout", `${limitMs}ms`, "--bandwidth", "1Gbit"];
      const moved = await move(host, source, destination, options);
      proveSummary(moved);
      const { precopy_ns, downtime_ns, precopy_rounds, postcopy_pages, page_bytes } = moved.summary;
      const restMs = postcopy_pages * page_bytes / 125_000_000 * 1000;
      console.log(
        `limit ${limitMs} ms: pre-copy ${(precopy_ns / 1e6).toFixed(1)} ms in ${precopy_rounds} rounds, downtime ` +
          `${(downtime_ns / 1e6).toFixed(1)} ms, and the rest took ${restMs.toFixed(0)} ms of the link`,
      );
      assert.ok(precopy_ns / 1e6 <= limitMs + SLACK_MS, `${precopy_ns / 1e6} ms`);
      assert.ok(restMs > 100, `a guest that writes so fast leaves more than ${postcopy_pages} pages`);
      assert.ok(downtime_ns / 1e6 < restMs / 4, `${downtime_ns / 1e6} ms of downtime, ${restMs} ms of pages`);
      await proveGuest(host, destination);
      host.assertEmpty();
    },
  );
}

kvmTest("a limit of nothing at all still moves the guest", async (host) => {
  const source = await startGuest(host, "src");
  const destination = await prepare(host, "dst");
  const moved = await move(host, source, destination, ["--precopy-timeout", "1ms", "--bandwidth", "1Gbit"]);
  proveSummary(moved);
  assert.ok(moved.summary.precopy_ns / 1e6 <= 1 + SLACK_MS);
  await proveGuest(host, destination);
  host.assertEmpty();
});
