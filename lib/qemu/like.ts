/** The command line of a QEMU that is to be like one that `gyges describe --json` has looked at. */
import * as v from "valibot";
import { UsageError } from "../errors.ts";
import { MONITOR_ID } from "./arguments.ts";

const MACHINE = v.object({ type: v.literal("machine"), command: v.pipe(v.array(v.string()), v.minLength(1)) });

/** What belonged to that process alone. With a value, and without. */
const OWN = ["-qmp", "-qmp-pretty", "-incoming", "-pidfile", "-loadvm"];
const OWN_WORDS = ["-S", "-daemonize", "-snapshot"];
/** Descriptors that whoever started it has handed over. */
const HANDED = /(^|,)(vhost)?fds?=[\d:]+|\/dev\/fdset\//;

/**
 * The program and its arguments, without what belonged to that process alone. Pure. Throws UsageError for what is no
 * description, and for a QEMU that cannot be started again by its arguments.
 */
export function commandLike(description: string, from: string): string[] {
  const [program = "", ...args] = parse(description, from).map((arg) => arg.replace(/^--(?=\w)/, "-"));
  const command = [program];
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] ?? "";
    if (OWN.includes(arg) || isOurMonitor(args[i + 1] ?? "")) i++;
    else if (!OWN_WORDS.includes(arg)) command.push(arg);
  }
  const handed = command.find((arg) => HANDED.test(arg));
  if (handed === undefined) return command;
  throw new UsageError(
    `Cannot start a QEMU like the one in ${from}: "${handed}" names a descriptor that whoever started it handed over, as ` +
      "libvirt does. Give its arguments after --, with the file or device itself in that place",
  );
}

function isOurMonitor(value: string): boolean {
  return /^(socket,id|chardev)=([\w-]+),/.exec(value)?.[2] === MONITOR_ID;
}

function parse(description: string, from: string): string[] {
  let value: unknown;
  try {
    value = JSON.parse(description);
  } catch (error) {
    throw notDescription(from, error instanceof Error ? error.message : String(error));
  }
  const result = v.safeParse(MACHINE, value);
  if (!result.success) throw notDescription(from, result.issues[0].message);
  return result.output.command;
}

function notDescription(from: string, why: string): UsageError {
  return new UsageError(
    `Cannot read ${from} as a QEMU's description (${why}): write it at the source by gyges describe --qmp SOCKET --json`,
  );
}
