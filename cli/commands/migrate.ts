/** `gyges migrate`: moves a guest to the destination behind a ticket. */
import { object } from "@optique/core/constructs";
import { map, optional } from "@optique/core/modifiers";
import { argument, command, option } from "@optique/core/primitives";
import { choice, integer, string } from "@optique/core/valueparser";
import { readLines } from "../../lib/control/lines.ts";
import { EXIT, type ExitCode, UsageError } from "../../lib/errors.ts";
import type { GygesEvent } from "../../lib/events.ts";
import { MIGRATE_DEFAULTS, type MigrateOptions, type Mode } from "../../lib/options.ts";
import type { Action, ActionContext } from "../action.ts";
import { prose } from "../prose.ts";
import { byDefault, duration, hostPort, jsonOption, pagerOption, rate, runningName, valuesFooter } from "../values.ts";
import { watched } from "../watched.ts";

const options = object({
  ticket: argument(string({ metavar: "TICKET" }), {
    description: prose`What gyges prepare printed at the destination; "-" reads it from standard input, out of sight of
      other users.`,
  }),
  name: optional(option("--vm", runningName(), {
    description: prose`Name of the process that holds the guest here; with --qmp, the name that other commands know the
      move by.`,
  })),
  qmp: optional(option("--qmp", string({ metavar: "SOCKET" }), {
    description: prose`Monitor socket of a QEMU that nobody of Gyges holds, to move its guest.`,
  })),
  keepSource: option("--keep-source", {
    description: prose`With --qmp: leave QEMU stopped, not ended, once its guest has moved.`,
  }),
  mode: byDefault(
    option("--mode", choice(["hybrid", "full", "precopy"], { metavar: "MODE" }), {
      description: prose`hybrid: pre-copy for a limited time, then post-copy. full: post-copy at once. precopy: the
        classic, for comparison.`,
    }),
    MIGRATE_DEFAULTS.mode,
    MIGRATE_DEFAULTS.mode,
  ),
  precopyTimeoutMs: optional(option("--precopy-timeout", duration(), {
    description: prose`hybrid: pre-copy ends after this at the latest. [10s]`,
  })),
  switchThresholdMs: optional(option("--switch-threshold", duration(), {
    description: prose`hybrid: switch as soon as what is dirty can be pulled within this. [50ms]`,
  })),
  downtimeLimitMs: optional(option("--downtime-limit", duration(), {
    description: prose`precopy: stop the guest once the rest can be sent within this. [300ms]`,
  })),
  bandwidthBytesPerSecond: byDefault(
    option("--bandwidth", rate(), { description: prose`Limit for the whole link, as in 1Gbit or 100MiB/s.` }),
    MIGRATE_DEFAULTS.bandwidthBytesPerSecond,
    "unlimited",
  ),
  prefetchConnections: byDefault(
    option("--prefetch-connections", integer({ metavar: "N", min: 1, max: 16 }), {
      description: prose`Connections for pages that no fault asked for, 1 to 16.`,
    }),
    MIGRATE_DEFAULTS.prefetchConnections,
    `${MIGRATE_DEFAULTS.prefetchConnections}`,
  ),
  transport: byDefault(
    option("--transport", choice(["auto", "rdma", "tcp"], { metavar: "TRANSPORT" }), {
      description:
        prose`How pages cross. auto: by RDMA where the destination can connect by it, else over TCP. RDMA does
        not encrypt them.`,
    }),
    MIGRATE_DEFAULTS.transport,
    MIGRATE_DEFAULTS.transport,
  ),
  rdmaListen: byDefault(
    option("--rdma-listen", hostPort(), {
      description: prose`Address of an RDMA device of this host to await the destination on; port 0 is any free one.`,
    }),
    MIGRATE_DEFAULTS.rdmaListen,
    "an RDMA device's, by preference in the destination's network",
  ),
  pager: pagerOption(prose`What must move the guest. auto: what its RAM was made for; a QEMU whose RAM is
    not in shared files moves it by itself (native).`),
  noPrefetch: option("--no-prefetch", {
    description: prose`Move pages only as the guest touches them, until it has touched none for a second.`,
  }),
  tls: byDefault(
    option("--tls", choice(["on", "off"], { metavar: "ON_OFF" }), { description: prose`As given to gyges prepare.` }),
    MIGRATE_DEFAULTS.tls ? "on" : "off",
    MIGRATE_DEFAULTS.tls ? "on" : "off",
  ),
  json: jsonOption,
});

type ModeOptions = Pick<MigrateOptions, "precopyTimeoutMs" | "switchThresholdMs" | "downtimeLimitMs">;

const MODE_OF: Record<keyof ModeOptions, [name: string, mode: Mode]> = {
  precopyTimeoutMs: ["--precopy-timeout", "hybrid"],
  switchThresholdMs: ["--switch-threshold", "hybrid"],
  downtimeLimitMs: ["--downtime-limit", "precopy"],
};

/** Options of one mode given with another would silently do nothing, so they are refused. Throws UsageError. */
function checkMode(mode: Mode, given: { [key in keyof ModeOptions]: number | undefined }): ModeOptions {
  for (const key of Object.keys(MODE_OF) as (keyof ModeOptions)[]) {
    const [name, needed] = MODE_OF[key];
    if (given[key] === undefined || mode === needed) continue;
    throw new UsageError(`Cannot use ${name} in mode ${mode}: leave it out, or add --mode ${needed}`);
  }
  return {
    precopyTimeoutMs: given.precopyTimeoutMs ?? MIGRATE_DEFAULTS.precopyTimeoutMs,
    switchThresholdMs: given.switchThresholdMs ?? MIGRATE_DEFAULTS.switchThresholdMs,
    downtimeLimitMs: given.downtimeLimitMs ?? MIGRATE_DEFAULTS.downtimeLimitMs,
  };
}

/** Throws UsageError for an address that nothing would be awaited on. */
function checkTransport({ transport, rdmaListen }: Pick<MigrateOptions, "transport" | "rdmaListen">): void {
  if (transport !== "tcp" || rdmaListen === null) return;
  throw new UsageError("Cannot use --rdma-listen with --transport tcp: leave one of them out");
}

/** Longest line that can be a ticket. */
const MAX_TICKET_BYTES = 4096;

/** Throws UsageError for what cannot be a ticket; the library reads it in full. */
async function ticketFrom(argument: string): Promise<string> {
  let ticket = argument;
  if (argument === "-") {
    const { value } = await readLines(Deno.stdin, MAX_TICKET_BYTES).next();
    ticket = (value ?? "").trim();
  }
  if (ticket.startsWith("gyges://")) return ticket;
  throw new UsageError(
    "Cannot use the ticket as it does not begin with gyges://: copy the line that gyges prepare printed",
  );
}

interface Wanted {
  ticket: string;
  name: string | undefined;
  qmp: string | undefined;
  keepSource: boolean;
  options: MigrateOptions;
}

async function move(wanted: Wanted, context: ActionContext): Promise<ExitCode> {
  const { ticket, name, qmp, keepSource, options } = wanted;
  const [{ migrate }, { migrateQemu }] = await Promise.all([
    import("../../lib/api.ts"),
    import("../../lib/qemu_api.ts"),
  ]);
  let told = false;
  const lookWith = name === undefined ? "gyges vm list" : `gyges monitor ${name}`;
  const summary = await watched(lookWith, context, (run) => {
    const onEvent = (event: GygesEvent) => {
      told ||= event.type === "summary";
      run.onEvent(event);
    };
    const all = { ...options, ...run, onEvent };
    return qmp === undefined
      ? migrate(name ?? "", ticket, all)
      : migrateQemu(ticket, { ...all, qmp, name: name ?? null, keepSource });
  });
  if (!told) context.output.event(summary);
  return (summary.guest.corrupt ?? 0) > 0 ? EXIT.guestLost : EXIT.completed;
}

/** Throws UsageError unless it is said which guest moves. */
function checkGuest({ name, qmp, keepSource }: { name?: string; qmp?: string; keepSource: boolean }): void {
  if (name === undefined && qmp === undefined) {
    throw new UsageError(
      "Expected the guest to move: --vm NAME of the process that holds it, or --qmp SOCKET of its QEMU",
    );
  }
  if (keepSource && qmp === undefined) throw new UsageError("Cannot use --keep-source without --qmp: leave it out");
}

export const migrate = command(
  "migrate",
  map(options, ({ ticket, name, qmp, keepSource, json, noPrefetch, tls, ...rest }): Action => ({
    output: { json },
    async run(context) {
      const { precopyTimeoutMs, switchThresholdMs, downtimeLimitMs } = rest;
      const modeOptions = checkMode(rest.mode, { precopyTimeoutMs, switchThresholdMs, downtimeLimitMs });
      checkTransport(rest);
      checkGuest({ ...(name === undefined ? {} : { name }), ...(qmp === undefined ? {} : { qmp }), keepSource });
      const options = { ...rest, ...modeOptions, prefetch: !noPrefetch, tls: tls === "on" };
      return await move({ ticket: await ticketFrom(ticket), name, qmp, keepSource, options }, context);
    },
  })),
  {
    brief: prose`Move a guest to the destination behind a ticket.`,
    description:
      prose`Moves the guest that a process on this host holds, or that of a QEMU by its monitor. Prints the bound on total time first where
      there is one, and a summary at the end. Until the commit point every failure, and Ctrl-C, leaves the guest running
      here; after it Ctrl-C explains and does not kill.`,
    footer: valuesFooter("RATE", "DURATION"),
  },
);
