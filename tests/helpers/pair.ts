/** A guest, a destination for it, and the move from one to the other. */
import assert from "node:assert/strict";
import { type GuestEvent, type GuestReport, type Sample, type Summary, touchesOf } from "../../lib/events.ts";
import type { Ended, GygesProcess, StartOptions } from "./gyges_process.ts";

/** Where guests are held: this machine, or an emulated one. */
export interface GuestHost {
  /** Starts `gyges ...args --json`. */
  start(args: readonly string[], options?: StartOptions): GygesProcess;
  guest(name: string): Promise<GuestReport>;
  guestUntil(name: string, fits: (guest: GuestReport) => boolean): Promise<GuestReport>;
  sample(name: string): Promise<Sample>;
}

/** A process that holds, or is to hold, a guest. */
export interface Holder {
  name: string;
  process: GygesProcess;
}

export interface Destination extends Holder {
  ticket: string;
}

/** A finished migration. */
export interface Moved {
  summary: Summary;
  source: Ended;
  migrate: Ended;
  destination: Destination;
}

/** Starts a guest and waits until it works on its pages. */
export async function startGuest(
  host: GuestHost,
  name: string,
  args: readonly string[] = [],
  options: StartOptions = {},
): Promise<Holder> {
  const ram = args.includes("--ram") ? [] : ["--ram", "64M"];
  const process = host.start(["vm", "start", name, ...ram, ...args], options);
  await process.waitFor("guest");
  await host.guestUntil(name, (guest) => touchesOf(guest) > 0);
  return { name, process };
}

/** Makes a destination and waits for its ticket. */
export async function prepare(
  host: GuestHost,
  name: string,
  args: readonly string[] = [],
  options: StartOptions = {},
): Promise<Destination> {
  const process = host.start(["prepare", name, "--micro", ...args], options);
  const { ticket } = await process.waitFor("ticket");
  return { name, process, ticket };
}

/** Starts to move the guest of `source`. */
export function startMove(
  host: GuestHost,
  source: Holder,
  ticket: string,
  args: readonly string[] = [],
): GygesProcess {
  return host.start(["migrate", ticket, "--vm", source.name, ...args]);
}

/** Moves the guest of `source` to the end. */
export async function move(
  host: GuestHost,
  source: Holder,
  destination: Destination,
  args: readonly string[] = [],
): Promise<Moved> {
  const migrate = await startMove(host, source, destination.ticket, args).endedWith(0);
  return await finished(source, destination, migrate);
}

/** Waits for what both ends of a migration still have to do once `migrate` has ended. */
export async function finished(source: Holder, destination: Destination, migrate: Ended): Promise<Moved> {
  const summary = migrate.events.find((event) => event.type === "summary");
  assert.ok(summary?.type === "summary", "migrate printed no summary");
  await destination.process.waitFor("summary");
  return { summary, migrate, source: await source.process.endedWith(0), destination };
}

/** Stops the guest for good; the last look at its memory. */
export async function stopGuest(host: GuestHost, holder: Holder, code = 0): Promise<GuestEvent> {
  const { events } = await host.start(["vm", "stop", holder.name]).endedWith(code);
  const [event] = events;
  assert.ok(event?.type === "guest", "vm stop printed no guest");
  await holder.process.endedWith(0);
  return event;
}
