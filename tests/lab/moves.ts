/** Moves of the micro-VM between two hosts of a lab, and their proof. */
import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";
import { type Summary, touchesOf } from "../../lib/events.ts";
import type { GygesProcess } from "../helpers/gyges_process.ts";
import { type Destination, finished, type Holder, prepare, startMove, stopGuest } from "../helpers/pair.ts";
import { proveReport, proveSourceStill, proveSummary } from "../helpers/proof.ts";
import { GygesHost, type LabStartOptions } from "./gyges_host.ts";
import type { LabHost } from "./lab.ts";

/** The guest leaves its host's processors to others. */
const GUEST = ["--rate", "5000"];

/** A guest named "vm". */
export async function startGuest(
  host: LabHost,
  args: readonly string[] = [],
  options: LabStartOptions = {},
): Promise<Holder> {
  const ram = args.includes("--ram") ? [] : ["--ram", "32M"];
  const process = new GygesHost(host).start(["vm", "start", "vm", ...ram, ...GUEST, ...args], options);
  await process.waitFor("guest");
  return { name: "vm", process };
}

/** Makes `host` a destination that the other host reaches; each has a name of its own for the guest. */
export function prepareAt(
  host: LabHost,
  name: string,
  args: readonly string[] = [],
  options: LabStartOptions = {},
): Promise<Destination> {
  return prepare(new GygesHost(host), name, ["--listen", `${host.address}:7000`, ...args], options);
}

export function move(from: LabHost, guest: Holder, to: Destination, args: readonly string[]): GygesProcess {
  return startMove(new GygesHost(from), guest, to.ticket, args);
}

/** Both sides' account of a finished move, and the figures of it. */
export async function account(what: string, guest: Holder, to: Destination, migrate: GygesProcess): Promise<Summary> {
  const moved = await finished(guest, to, await migrate.endedWith(0));
  proveSummary(moved);
  proveSourceStill(moved);
  const { downtime_ns, total_ns, demand_faults, fault_latency_ns: { p50, p99 } } = moved.summary;
  const ms = (ns: number) => `${(ns / 1e6).toFixed(1)} ms`;
  console.log(
    `lab: ${what}: downtime ${ms(downtime_ns)}, total ${ms(total_ns)}, ` +
      `${demand_faults} faults of p50 ${ms(p50)}, p99 ${ms(p99)} (emulated)`,
  );
  return moved.summary;
}

/** The guest works where it has arrived; then it is stopped, and all of its memory is right. */
export async function proveWhole(host: LabHost, holder: Holder, { guest }: Summary): Promise<void> {
  const there = new GygesHost(host);
  await there.guestUntil(holder.name, (now) => touchesOf(now) > touchesOf(guest));
  proveReport(await stopGuest(there, holder));
}

/** Waits until its memory comes, and some of it still has to. */
export async function inPostcopy(migrate: GygesProcess, to: Destination): Promise<void> {
  await Promise.all([migrate.reached("serving"), to.process.reached("running")]);
  await pause(500);
}

export function proveRecovered({ states }: GygesProcess): void {
  const paused = states.indexOf("paused");
  assert.ok(paused > 0 && ["serving", "running"].includes(states[paused + 1] ?? "nothing"), states.join(" "));
  assert.equal(states.at(-1), "completed");
}
