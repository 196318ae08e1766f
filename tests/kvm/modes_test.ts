/** Every mode, with every option that changes how it works: the guest arrives whole and works on. */
import assert from "node:assert/strict";
import type { Summary } from "../../lib/events.ts";
import { kvmTest } from "../helpers/kvm.ts";
import { move, type Moved, prepare, startGuest } from "../helpers/pair.ts";
import { proveGuest, proveSourceStill, proveSummary } from "../helpers/proof.ts";

interface Case {
  vm: string;
  migrate: string;
  /** @default "" */
  prepare?: string;
  /** Why pre-copy must have ended. */
  ends?: "threshold" | "limit" | "no progress";
  check?: (summary: Summary) => void;
}

const GIGABIT = "--bandwidth 1Gbit";
const TLS_OFF = "--tls off";

const onTls = (transport: "tls" | "tcp") => (summary: Summary) => assert.equal(summary.transport, transport);

const CASES: Case[] = [
  { vm: "--vcpus 1", migrate: "--mode full", check: onTls("tls") },
  { vm: "--vcpus 2", migrate: `--mode full ${TLS_OFF}`, prepare: TLS_OFF, check: onTls("tcp") },
  { vm: "--vcpus 4 --workload sequential", migrate: `--mode full ${GIGABIT}` },
  { vm: "--vcpus 4 --workload zipf", migrate: `--mode full --prefetch-connections 4 ${TLS_OFF}`, prepare: TLS_OFF },
  { vm: "--vcpus 2 --irqchip", migrate: "--mode full --prefetch-connections 1" },
  { vm: "--vcpus 4 --irqchip --workload zipf", migrate: `--mode full ${GIGABIT} ${TLS_OFF}`, prepare: TLS_OFF },

  // A guest that writes faster than the link is ended by the limit, or by rounds that do not shrink.
  { vm: "--vcpus 1 --write-ratio 1", migrate: `--mode hybrid --precopy-timeout 200ms ${GIGABIT}`, ends: "limit" },
  {
    vm: "--vcpus 2 --write-ratio 1",
    migrate: `--mode hybrid --precopy-timeout 200ms ${GIGABIT} ${TLS_OFF}`,
    prepare: TLS_OFF,
    ends: "limit",
  },
  {
    vm: "--vcpus 4 --workload zipf --write-ratio 1 --irqchip",
    migrate: `--mode hybrid --precopy-timeout 200ms --prefetch-connections 1 ${GIGABIT}`,
    ends: "limit",
  },
  // A slow one converges.
  { vm: "--vcpus 1 --rate 500", migrate: `--mode hybrid --precopy-timeout 20s ${GIGABIT}`, ends: "threshold" },
  {
    vm: "--vcpus 2 --rate 500 --workload sequential",
    migrate: `--mode hybrid --precopy-timeout 20s ${GIGABIT} ${TLS_OFF}`,
    prepare: TLS_OFF,
    ends: "threshold",
  },
  {
    vm: "--vcpus 4 --rate 500",
    migrate: "--mode hybrid --precopy-timeout 20s --prefetch-connections 4",
    ends: "threshold",
  },

  { vm: "--vcpus 1 --rate 2000", migrate: `--mode precopy ${GIGABIT}` },
  { vm: "--vcpus 2 --workload sequential", migrate: `--mode precopy ${TLS_OFF}`, prepare: TLS_OFF },
  { vm: "--vcpus 4 --irqchip --rate 2000 --workload zipf", migrate: "--mode precopy --prefetch-connections 4" },
];

function reasonOf({ migrate }: Moved): string | undefined {
  const note = migrate.events.find((event) => event.type === "note" && event.detail.startsWith("Pre-copy ends"));
  return note?.type === "note" ? note.detail : undefined;
}

const WORDS = { threshold: /dirty pages take/, limit: /limit of \d+ ms is up/, "no progress": /stay dirty/ };

for (const { vm, migrate, prepare: prepareArgs = "", ends, check } of CASES) {
  kvmTest(`migrate ${migrate} moves a guest of ${vm} whole`, async (host) => {
    const source = await startGuest(host, "src", words(vm));
    const destination = await prepare(host, "dst", words(prepareArgs));
    const moved = await move(host, source, destination, words(migrate));
    proveSummary(moved);
    proveSourceStill(moved);
    if (ends) assert.match(reasonOf(moved) ?? "no reason was given", WORDS[ends]);
    check?.(moved.summary);
    await proveGuest(host, destination);
    host.assertEmpty();
  });
}

kvmTest("migrate --no-prefetch moves what a sequential guest touches by faults, then the rest", async (host) => {
  const source = await startGuest(host, "src", words("--workload sequential --working-set 8M"));
  const destination = await prepare(host, "dst");
  const { summary } = await move(host, source, destination, words("--mode full --no-prefetch"));
  // What only the boot touched, tables of RAM outside the working set, comes once the guest has touched all its own.
  assert.ok(summary.demand_faults > 1900, `${summary.demand_faults} faults for 2048 pages`);
  assert.ok((summary.prefetched_pages ?? 0) < 100, `${summary.prefetched_pages} pages that no fault asked for`);
  await proveGuest(host, destination);
});

function words(text: string): string[] {
  return text.split(" ").filter((word) => word !== "");
}
