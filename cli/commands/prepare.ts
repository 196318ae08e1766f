/** `gyges prepare`: makes this host the destination and prints the ticket. */
import { object } from "@optique/core/constructs";
import { map, optional } from "@optique/core/modifiers";
import { argument, command, option } from "@optique/core/primitives";
import { choice, string } from "@optique/core/valueparser";
import { type ExitCode, UsageError } from "../../lib/errors.ts";
import { PREPARE_DEFAULTS, type PrepareOptions } from "../../lib/options.ts";
import type { Action, ActionContext } from "../action.ts";
import { prose } from "../prose.ts";
import {
  byDefault,
  duration,
  hostPort,
  jsonOption,
  newName,
  pagerOption,
  qemuCommand,
  valuesFooter,
} from "../values.ts";
import { watched } from "../watched.ts";

const options = object({
  name: argument(newName(), { description: prose`Name for the process that receives and then holds the guest.` }),
  micro: option("--micro", { description: prose`The guest is a micro-VM.` }),
  listen: byDefault(
    option("--listen", hostPort(), {
      description: prose`Address to listen on and to name in the ticket; port 0 is any free one.`,
    }),
    { host: PREPARE_DEFAULTS.host, port: PREPARE_DEFAULTS.port },
    `${PREPARE_DEFAULTS.host}:${PREPARE_DEFAULTS.port}`,
  ),
  ticketTtlMs: byDefault(
    option("--ticket-ttl", duration(), { description: prose`The ticket is void after this.` }),
    PREPARE_DEFAULTS.ticketTtlMs,
    duration().format(PREPARE_DEFAULTS.ticketTtlMs),
  ),
  tls: byDefault(
    option("--tls", choice(["on", "off"], { metavar: "ON_OFF" }), {
      description: prose`TLS 1.3 on every connection. Off is for trusted links, and must be asked for on both sides.`,
    }),
    PREPARE_DEFAULTS.tls ? "on" : "off",
    PREPARE_DEFAULTS.tls ? "on" : "off",
  ),
  pager: pagerOption(prose`What catches the guest's page faults here: the kernel module's file system, userfaultfd in
    this process, or, native, QEMU itself. auto: the kernel's where it can, QEMU where the source leaves it to its own.`),
  like: optional(option("--like", string({ metavar: "FILE" }), {
    description: prose`The guest's QEMU here is started as the source's was, by what gyges describe --json wrote of it
      there; "-" reads that from standard input.`,
  })),
  json: jsonOption,
  qemu: qemuCommand(),
});

interface Kind {
  micro: boolean;
  like: string | undefined;
  qemu: readonly string[];
}

/** The QEMU to start, none for a micro-VM. Throws UsageError unless it is said, once, what kind of guest is to come. */
async function commandOf({ micro, like, qemu }: Kind): Promise<readonly string[]> {
  const said = [micro, like !== undefined, qemu.length > 0].filter((word) => word).length;
  if (said > 1) {
    throw new UsageError("Cannot use more than one of --micro, --like and a QEMU command line: leave the others out");
  }
  if (said === 0) {
    throw new UsageError(
      "Expected what is to receive the guest: --micro, --like FILE, or -- qemu-system-x86_64 with the arguments of the " +
        "source's QEMU",
    );
  }
  if (like === undefined) return qemu;
  const { commandLike } = await import("../../lib/qemu/like.ts");
  return commandLike(await readDescription(like), like === "-" ? "standard input" : like);
}

async function readDescription(path: string): Promise<string> {
  if (path === "-") return await new Response(Deno.stdin.readable).text();
  try {
    return await Deno.readTextFile(path);
  } catch (cause) {
    throw new UsageError(`Cannot read ${path} (${cause instanceof Error ? cause.message : cause})`, { cause });
  }
}

interface Wanted {
  name: string;
  qemu: readonly string[];
  options: PrepareOptions;
}

async function receive({ name, qemu, options }: Wanted, context: ActionContext): Promise<ExitCode> {
  const [{ prepareMicroVm }, { prepareQemu }] = await Promise.all([
    import("../../lib/api.ts"),
    import("../../lib/qemu_api.ts"),
  ]);
  return await watched(
    `gyges monitor ${name}`,
    context,
    (run) =>
      qemu.length === 0 ? prepareMicroVm(name, options, run) : prepareQemu(name, { ...options, command: qemu }, run),
  );
}

export const prepare = command(
  "prepare",
  map(options, ({ name, micro, like, qemu: given, listen, ticketTtlMs, tls, pager, json }): Action => ({
    output: { json },
    async run(context) {
      const qemu = await commandOf({ micro, like, qemu: given });
      return await receive({ name, qemu, options: { ...listen, ticketTtlMs, tls: tls === "on", pager } }, context);
    },
  })),
  {
    brief: prose`Make this host the destination and print the ticket.`,
    description: prose`Gets ready to receive a guest and prints the ticket first, alone on a line. Give it to
      gyges migrate at the source. The ticket is a secret, works once and expires. The process holds the guest
      from then on. A guest of QEMU needs a QEMU here that is started by the same arguments as the source's: give them
      after "--"; Gyges adds what it needs (-incoming, a monitor, shared RAM files) and keeps QEMU in the background.`,
    footer: valuesFooter("DURATION"),
  },
);
