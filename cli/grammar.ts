/** The whole command line in one parser: help, completions, man pages and the parsing itself all come from it. */
import { or } from "@optique/core/constructs";
import { bash, fish, type ShellCompletion, zsh } from "@optique/core/completion";
import { type RunOptions, runParserSync } from "@optique/core/facade";
import { formatMessage } from "@optique/core/message";
import { UsageError } from "../lib/errors.ts";
import type { Action } from "./action.ts";
import { attach } from "./commands/attach.ts";
import { cancel } from "./commands/cancel.ts";
import { demo } from "./commands/demo.ts";
import { describe } from "./commands/describe.ts";
import { doctor } from "./commands/doctor.ts";
import { man } from "./commands/man.ts";
import { migrate } from "./commands/migrate.ts";
import { module } from "./commands/module.ts";
import { monitor } from "./commands/monitor.ts";
import { prepare } from "./commands/prepare.ts";
import { run } from "./commands/run.ts";
import { vm } from "./commands/vm.ts";
import { BRIEF, COMMANDS, EXIT_TEXT, PROGRAM } from "./facts.ts";
import { verbatim } from "./prose.ts";
import { FORMS } from "./values.ts";
import { versionLine } from "./version.ts";

/** The parser of everything after the program's name. */
export const grammar = or(doctor, describe, vm, run, prepare, migrate, attach, monitor, cancel, module, demo, man);

export const SHELLS: Record<string, ShellCompletion> = { bash, zsh, fish };

function footer(): string {
  const codes = EXIT_TEXT.map(([code, meaning]) => `  ${String(code).padStart(3)}  ${meaning}`);
  const forms = Object.entries(FORMS).map(([name, text]) => `  ${name}  ${text}`);
  return ["Values:", ...forms, "", "Exit codes:", ...codes].join("\n");
}

/** Help, completion script or version: what is printed instead of being done. */
export interface Shown {
  shown: string;
}

/** What `args` ask for. Throws UsageError. */
export function parseArguments(args: readonly string[], columns: number | null): Action | Shown {
  const printed: string[] = [];
  const options: RunOptions<Shown, never> = {
    help: { option: { names: ["-h", "--help"] }, command: true, onShow: () => ({ shown: "" }) },
    version: { option: { names: ["-V", "--version"] }, value: versionLine(), onShow: () => ({ shown: "" }) },
    completion: { command: true, shells: SHELLS, onShow: () => ({ shown: "" }) },
    brief: BRIEF,
    footer: verbatim(footer()),
    aboveError: "none",
    commandList: "recursive",
    showDefault: true,
    termWidth: "auto",
    ...(columns === null ? {} : { maxWidth: Math.max(columns, 40) }),
    stdout: (text) => printed.push(text),
    stderr: () => {},
    onError(_code, error) {
      throw new UsageError(usageText(formatMessage(error, { quotes: true }), args));
    },
  };
  const parsed: Action | Shown = runParserSync(grammar, PROGRAM, args, options);
  return "shown" in parsed ? { shown: printed.join("\n") } : parsed;
}

/** The parser's words on one line, and where to read on. */
function usageText(error: string, args: readonly string[]): string {
  const words = args.filter((arg) => !arg.startsWith("-"));
  const command = COMMANDS.find((known) => known.every((word, i) => words[i] === word));
  if (command) return `${oneLine(error)}: see ${PROGRAM} ${command.join(" ")} --help`;
  const next = COMMANDS.filter((known) => words.every((word, i) => known[i] === word)).map((known) =>
    known[words.length]
  );
  const start = [PROGRAM, ...words].join(" ");
  if (next.length > 0) return `Expected a command after "${start}": one of ${[...new Set(next)].join(", ")}`;
  return `${oneLine(error)}: see ${PROGRAM} --help`;
}

function oneLine(text: string): string {
  return text.replace(/\s*\n\s*/g, " ").replace(/[.?]$/, "");
}
