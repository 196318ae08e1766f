/** Moves of the micro-VM between two hosts of a lab, and their proof. */
import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";
import { type GuestEvent, type Summary, touchesOf } from "../../lib/events.ts";
import type { PagerKind } from "../../lib/options.ts";
import type { GygesProcess } from "../helpers/gyges_process.ts";
import { type Destination, finished, type Holder, prepare, startMove } from "../helpers/pair.ts";
import { proveReport, proveSourceStill, proveSummary } from "../helpers/proof.ts";
import { GygesHost, type LabStartOptions } from "./gyges_host.ts";
import type { Lab, LabHost } from "./lab.ts";

/** The guest leaves its host's processors to others. */
const GUEST = ["--rate", "5000"];

export interface GuestOptions extends LabStartOptions {
  /** @default "vm" */
  name?: string;
}

/** A guest of 32 MiB, unless told. */
export async function startGuest(
  host: LabHost,
  args: readonly string[] = [],
  { name = "vm", ...options }: GuestOptions = {},
): Promise<Holder> {
  const ram = args.includes("--ram") ? [] : ["--ram", "32M"];
  const rate = args.includes("--rate") ? [] : GUEST;
  const process = new GygesHost(host).start(["vm", "start", name, ...ram, ...rate, ...args], options);
  await process.waitFor("guest");
  return { name, process };
}

/** Makes `host` a destination that the other host reaches; each has a name of its own for the guest. */
export function prepareAt(
  host: LabHost,
  name: string,
  args: readonly string[] = [],
  options: LabStartOptions = {},
): Promise<Destination> {
  return prepare(new GygesHost(host), name, ["--listen", `${host.address}:0`, ...args], options);
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

/** Ends the guest by a Ctrl-C on the process that holds it; the last look at its memory. */
export async function endGuest({ process }: Holder): Promise<GuestEvent> {
  process.signal("SIGINT");
  const event = (await process.endedWith(0)).events.findLast(({ type }) => type === "guest");
  assert.ok(event?.type === "guest", "it said nothing of its guest");
  return event;
}

/** The guest works where it has arrived; then it is ended, and all of its memory is right. */
export async function proveWhole(holder: Holder, { guest }: Pick<Summary, "guest">): Promise<void> {
  await pause(500);
  const event = await endGuest(holder);
  assert.ok(touchesOf(event.guest) > touchesOf(guest), "the guest stands still");
  proveReport(event);
}

export interface Way {
  /** Of the guest's first host, and of the second. */
  from: PagerKind;
  to: PagerKind;
  transport: "rdma" | "tcp";
}

/** A guest moves there in full mode, and back in hybrid mode; it is whole. */
export async function proveThereAndBack(lab: Lab, what: string, way: Way, ram = "32M"): Promise<void> {
  const [one, two] = [lab.host(1), lab.host(2)];
  const [guest, there] = await Promise.all([
    startGuest(one, ["--pager", way.from, "--irqchip", "--ram", ram]),
    prepareAt(two, "there", ["--pager", way.to]),
  ]);
  const by = ["--transport", way.transport];
  const moving = move(one, guest, there, ["--mode", "full", ...by]);
  const back = await prepareAt(one, "back", ["--pager", way.from]);
  const transport = way.transport === "tcp" ? "tls" : "rdma";
  const full = await account(`${what}, full`, guest, there, moving);
  assert.deepEqual([full.pager, full.transport], [way.to, transport]);
  assert.ok(full.zero_pages > 0, "pages that nobody touched are known to be zero, also where registering fills them");

  const returning = move(two, there, back, ["--mode", "hybrid", "--precopy-timeout", "2s", ...by]);
  const hybrid = await account(`${what}, hybrid`, there, back, returning);
  assert.deepEqual([hybrid.pager, hybrid.transport], [way.from, transport]);
  await proveWhole(back, hybrid);
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
