/** Value parsers and options that several commands share. */
import { type Message, message, text } from "@optique/core/message";
import { multiple, withDefault } from "@optique/core/modifiers";
import type { Parser } from "@optique/core/parser";
import { argument, option } from "@optique/core/primitives";
import { choice, type NonEmptyString, string, type ValueParser } from "@optique/core/valueparser";
import { checkName, listRunning } from "../lib/control/runtime_dir.ts";
import { GygesError, UsageError } from "../lib/errors.ts";
import type { HostPort, PagerChoice } from "../lib/options.ts";
import {
  DURATION_FORMS,
  formatSize,
  parseDuration,
  parseRate,
  parseSize,
  RATE_FORMS,
  SIZE_FORMS,
} from "../lib/units.ts";
import { prose, verbatim } from "./prose.ts";

/** Metavariables, and what may stand for them. */
export const FORMS = { SIZE: SIZE_FORMS, RATE: RATE_FORMS, DURATION: DURATION_FORMS } as const;

interface ValueOptions<T> {
  metavar: NonEmptyString;
  placeholder: T;
  parse: (text: string) => T;
  format: (value: T) => string;
}

/** A value parser around `parse`, whose UsageError becomes the parser's own words. */
function valueOf<T>({ metavar, placeholder, parse, format }: ValueOptions<T>): ValueParser<"sync", T> {
  return {
    mode: "sync",
    metavar,
    placeholder,
    format,
    parse(input) {
      try {
        return { success: true, value: parse(input) };
      } catch (error) {
        if (error instanceof UsageError) return { success: false, error: message`${text(error.message)}` };
        throw error;
      }
    },
  };
}

/** Bytes, as in 512MiB. */
export function size(metavar: NonEmptyString = "SIZE"): ValueParser<"sync", number> {
  return valueOf({ metavar, placeholder: 0, parse: parseSize, format: formatSize });
}

const RAM_STEP_BYTES = 2 * 2 ** 20;
const LEAST_RAM_BYTES = 16 * 2 ** 20;

/** Bytes that can be a guest's RAM. */
export function ramSize(): ValueParser<"sync", number> {
  const parse = (input: string) => {
    const bytes = parseSize(input);
    if (bytes >= LEAST_RAM_BYTES && bytes % RAM_STEP_BYTES === 0) return bytes;
    const next = Math.max(LEAST_RAM_BYTES, Math.ceil(bytes / RAM_STEP_BYTES) * RAM_STEP_BYTES);
    throw new UsageError(
      `Cannot give a guest ${input} of RAM as it must be a multiple of 2MiB, at least 16MiB: try ${formatSize(next)}`,
    );
  };
  return valueOf({ metavar: "SIZE", placeholder: LEAST_RAM_BYTES, parse, format: formatSize });
}

/** Bytes per second, as in 1Gbit; 0 is unlimited. */
export function rate(): ValueParser<"sync", number> {
  const format = (value: number) => value === 0 ? "unlimited" : `${value * 8}bit`;
  return valueOf({ metavar: "RATE", placeholder: 0, parse: parseRate, format });
}

/** Milliseconds, as in 10s or 250ms. */
export function duration(): ValueParser<"sync", number> {
  const format = (ms: number) =>
    ms % 60_000 === 0 && ms > 0 ? `${ms / 60_000}m` : ms % 1000 === 0 ? `${ms / 1000}s` : `${ms}ms`;
  return valueOf({ metavar: "DURATION", placeholder: 0, parse: parseDuration, format });
}

/** Name for a process that is to be. */
export function newName(): ValueParser<"sync", string> {
  return valueOf({ metavar: "NAME", placeholder: "vm1", parse: checkName, format: (name) => name });
}

/** Name of a process that runs; completion offers those that do. */
export function runningName(): ValueParser<"sync", string> {
  return {
    ...newName(),
    *suggest(prefix: string) {
      for (const name of runningNames()) if (name.startsWith(prefix)) yield { kind: "literal", text: name };
    },
  };
}

function runningNames(): string[] {
  try {
    return listRunning().map((running) => running.name);
  } catch (error) {
    // Completion offers nothing where there is no runtime directory; the command itself will say why.
    if (error instanceof GygesError || error instanceof Deno.errors.PermissionDenied) return [];
    throw error;
  }
}

/** "HOST", "HOST:PORT", "[IPV6]:PORT"; the port is 0 when it is not given. Throws UsageError. */
export function parseHostPort(input: string): HostPort {
  const match = /^(?:\[([0-9a-fA-F:.%a-z]+)\]|([^\s:/[\]]+))(?::(\d{1,5}))?$/.exec(input);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3] ?? 0);
  if (host && port <= 65535) return { host, port };
  throw new UsageError(
    `Cannot listen on "${input}": expected HOST:PORT or [IPV6]:PORT, port 0 to 65535, 0 for any free one`,
  );
}

export function hostPort(): ValueParser<"sync", HostPort> {
  const format = ({ host, port }: HostPort) => host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
  return valueOf({ metavar: "HOST:PORT", placeholder: { host: "127.0.0.1", port: 0 }, parse: parseHostPort, format });
}

/** The `--json` that every command has. */
export const jsonOption = option("--json", { description: prose`Print JSON objects, one a line, errors too.` });

/** The `--pager` of the commands that make RAM, or say what is to move it. */
export function pagerOption(description: Message) {
  return byDefault(
    option("--pager", choice<PagerChoice>(["auto", "kernel", "user", "native"], { metavar: "PAGER" }), { description }),
    "auto" as const,
    "auto",
  );
}

/** QEMU's command line after "--"; empty where there is none. */
export function qemuCommand() {
  return multiple(
    argument(string({ metavar: "QEMU_ARG" }), {
      description:
        prose`After "--": the QEMU program and its arguments, as for a guest that stays where it is. What starts it by
        exec, such as setpriv, may stand before it.`,
    }),
  );
}

/** `parser` with a default that help shows as `shown`. */
export function byDefault<T, S>(parser: Parser<"sync", T, S>, value: T, shown: string) {
  return withDefault(parser, value, { message: verbatim(shown) });
}

/** The foot of a command's help: what the values in its options look like. */
export function valuesFooter(...forms: (keyof typeof FORMS)[]): Message {
  return verbatim([...forms.map((form) => `${form} is ${FORMS[form]}.`), "Exit codes: see gyges --help."].join("\n"));
}
