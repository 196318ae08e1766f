/** Man pages, section 1, made from the same parser as help and completions. */
import type { DocEntry, DocPage } from "@optique/core/doc";
import { formatMessage, type Message } from "@optique/core/message";
import { getDocPageSync, type Parser } from "@optique/core/parser";
import { formatUsage, formatUsageTerm } from "@optique/core/usage";
import { BRIEF, COMMANDS, EXIT_TEXT, PROGRAM, RUNNER_COMMANDS } from "./facts.ts";
import { FORMS } from "./values.ts";
import { VERSION } from "./version.ts";

const FILES: readonly (readonly [string, string])[] = [
  ["/run/gyges/NAME/", "what the process NAME of root owns: its control socket, and its log if it was detached"],
  ["$XDG_RUNTIME_DIR/gyges/NAME/", "the same for other users"],
];

const ENVIRONMENT: readonly (readonly [string, string])[] = [
  ["GYGES_RUNTIME_DIR", "used instead of /run/gyges or $XDG_RUNTIME_DIR/gyges; must be yours, mode 0700"],
  ["GYGES_DEBUG", "when set, errors come with where in the program they happened"],
];

/** `text` so that roff prints it as it is. */
function escaped(text: string): string {
  return text.replaceAll("\\", "\\e").replaceAll("-", "\\-").replace(/^([.'])/gm, "\\&$1");
}

function plain(message: Message | undefined): string {
  return message ? escaped(formatMessage(message, { quotes: false })) : "";
}

function tagged(rows: readonly (readonly [string, string])[]): string[] {
  return rows.flatMap(([term, text]) => [".TP", `\\fB${escaped(term)}\\fR`, escaped(text)]);
}

function entryLines(entry: DocEntry): string[] {
  const given = entry.default ? ` Default: ${plain(entry.default)}.` : "";
  return [".TP", `\\fB${escaped(formatUsageTerm(entry.term))}\\fR`, `${plain(entry.description)}${given}`];
}

function optionLines(page: DocPage): string[] {
  const entries = page.sections.flatMap((section) => section.entries);
  return entries.length === 0 ? [] : [".SH OPTIONS", ...entries.flatMap(entryLines)];
}

function head(title: string, brief: Message | undefined): string[] {
  return [
    `.TH ${title.toUpperCase()} 1 "" "${PROGRAM} ${VERSION}" "User Commands"`,
    ".SH NAME",
    `${escaped(title)} \\- ${plain(brief).replace(/\.$/, "")}`,
  ];
}

function synopsis(page: DocPage): string[] {
  const usages = formatUsage(PROGRAM, page.usage ?? [], { expandCommands: true }).split("\n");
  return [".SH SYNOPSIS", ...usages.flatMap((usage, i) => [...(i > 0 ? [".br"] : []), escaped(usage.trim())])];
}

function exitStatus(): string[] {
  return [".SH EXIT STATUS", ...tagged(EXIT_TEXT.map(([code, text]) => [String(code), text]))];
}

/** The parser of the whole command line; given, because the command that prints these pages is part of it. */
export type Grammar = Parser<"sync", unknown, unknown>;

function pageOf(grammar: Grammar, args: readonly string[]): DocPage {
  const page = getDocPageSync(grammar, args);
  if (!page) throw new Error(`Cannot describe "${args.join(" ")}": the parser has no such command`);
  return page;
}

function titleOf(words: readonly string[]): string {
  return [PROGRAM, ...words].join("-");
}

function commandPage(grammar: Grammar, words: readonly string[]): string {
  const page = pageOf(grammar, words);
  return [
    ...head(titleOf(words), page.brief),
    ...synopsis(page),
    ".SH DESCRIPTION",
    plain(page.description),
    ...optionLines(page),
    ".SH VALUES",
    ...tagged(Object.entries(FORMS)),
    ...exitStatus(),
    ".SH SEE ALSO",
    `.BR ${PROGRAM} (1)`,
  ].join("\n");
}

function mainPage(grammar: Grammar): string {
  const briefs = COMMANDS.map((words) => [words.join(" "), formatMessage(pageOf(grammar, words).brief ?? [])] as const);
  const pages = COMMANDS.map((words, i) => `.BR ${escaped(titleOf(words))} (1)${i < COMMANDS.length - 1 ? "," : ""}`);
  return [
    ...head(PROGRAM, BRIEF),
    ...synopsis(pageOf(grammar, [])),
    ".SH DESCRIPTION",
    escaped(
      "Moves a running KVM guest to another host post-copy: the guest stops for milliseconds, starts at the " +
        "destination at once, and its memory follows, on demand and in the background.",
    ),
    ".SH COMMANDS",
    ...tagged([...briefs, ...RUNNER_COMMANDS]),
    ".SH VALUES",
    ...tagged(Object.entries(FORMS)),
    ...exitStatus(),
    ".SH FILES",
    ...tagged(FILES),
    ".SH ENVIRONMENT",
    ...tagged(ENVIRONMENT),
    ".SH SEE ALSO",
    ...pages,
  ].join("\n");
}

/** Every page by file name. */
export function manPages(grammar: Grammar): Map<string, string> {
  const pages = new Map([[`${PROGRAM}.1`, mainPage(grammar)]]);
  for (const words of COMMANDS) pages.set(`${titleOf(words)}.1`, commandPage(grammar, words));
  return pages;
}
