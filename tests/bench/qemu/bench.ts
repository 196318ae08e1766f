/**
 * Gyges against QEMU's own post-copy: the same guest between two QEMU 10.0 of one machine, all ways in turn. QEMU has
 * its strong form (preempt, a unix socket) as well as what one gets over plain TCP.
 */
import { median, printTable } from "../table.ts";
import { moveByGyges } from "./gyges.ts";
import { moveNatively } from "./native.ts";
import type { Load, Outcome } from "./stage.ts";

export interface Way {
  name: string;
  move: (load: Load) => Promise<Outcome>;
}

const PRECOPY_MS = 1_500;

export const WAYS: readonly Way[] = [
  native("QEMU preempt, unix", "unix", true, 0),
  native("QEMU preempt, TCP", "tcp", true, 0),
  native("QEMU, unix", "unix", false, 0),
  native("QEMU, TCP", "tcp", false, 0),
  { name: "Gyges full", move: (load) => moveByGyges(load, { mode: "full", precopyMs: 0, tls: "off" }) },
  { name: "Gyges full, TLS", move: (load) => moveByGyges(load, { mode: "full", precopyMs: 0, tls: "on" }) },
  native("QEMU hybrid preempt, unix", "unix", true, PRECOPY_MS),
  { name: "Gyges hybrid", move: (load) => moveByGyges(load, { mode: "hybrid", precopyMs: PRECOPY_MS, tls: "off" }) },
];

function native(name: string, link: "tcp" | "unix", preempt: boolean, precopyMs: number): Way {
  return { name, move: (load) => moveNatively(load, { link, preempt, precopyMs }) };
}

/** `n` moves each way at `bandwidth` bytes a second (null: no limit), and one before them that does not count. */
export async function benchQemu(bandwidth: number | null, n: number): Promise<void> {
  const load: Load = { rate: 0, bandwidth };
  const outcomes = WAYS.map((): Outcome[] => []);
  for (let round = 0; round <= n; round++) {
    for (const [index, way] of WAYS.entries()) {
      const outcome = await way.move(load);
      if (round > 0) outcomes[index]?.push(outcome);
    }
  }
  const limit = bandwidth === null ? "no limit" : `${bandwidth / 1024 ** 2} MiB/s`;
  printTable(
    `QEMU 10.0 under TCG, 512 MiB, of which the guest writes 256 MiB as fast as it can, ${limit}, medians of n = ${n}, ` +
      "(ratio to the first without pre-copy, or with it)",
    tableOf(outcomes),
  );
}

const COLUMNS: readonly [heading: string, of: (outcome: Outcome) => number, digits: number][] = [
  ["fault p50 us", ({ faultP50Us }) => faultP50Us, 0],
  ["p99 us", ({ faultP99Us }) => faultP99Us, 0],
  ["faults", ({ faults }) => faults, 0],
  ["blocktime ms", ({ blocktimeMs }) => blocktimeMs, 0],
  ["largest gap ms", ({ gapMs }) => gapMs, 0],
  ["STOP-RESUME ms", ({ stopToResumeMs }) => stopToResumeMs, 1],
  ["total ms", ({ totalMs }) => totalMs, 0],
  ["MB", ({ bytes }) => bytes / 1e6, 1],
  ["work lost ms", ({ lostMs }) => lostMs, 0],
];

/** A way without pre-copy is held against the first of these, one with it likewise. */
function tableOf(outcomes: readonly (readonly Outcome[])[]): string[][] {
  const isHybrid = (way: Way) => way.name.includes("hybrid");
  const rows = WAYS.map((way, index) => {
    const first = WAYS.findIndex((other) => isHybrid(other) === isHybrid(way));
    return [
      way.name,
      ...COLUMNS.map(([, of, digits]) => {
        const [value, baseline] = [index, first].map((at) => median((outcomes[at] ?? []).map(of)));
        if (value === undefined || baseline === undefined || Number.isNaN(value)) return "-";
        return index === first ? value.toFixed(digits) : `${value.toFixed(digits)} (${(value / baseline).toFixed(2)})`;
      }),
    ];
  });
  return [["", ...COLUMNS.map(([heading]) => heading)], ...rows];
}
