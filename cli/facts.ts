/** What help and man pages say beside what is in the parser. */
import { prose } from "./prose.ts";

export const PROGRAM = "gyges";
export const BRIEF = prose`Moves a running KVM guest to another host, post-copy.`;

/** Every command, as the words that call it. */
export const COMMANDS: readonly (readonly [string, ...string[]])[] = [
  ["doctor"],
  ["describe"],
  ["vm", "start"],
  ["vm", "status"],
  ["vm", "list"],
  ["vm", "stop"],
  ["run"],
  ["prepare"],
  ["migrate"],
  ["attach"],
  ["monitor"],
  ["cancel"],
  ["module", "build"],
  ["module", "load"],
  ["module", "unload"],
  ["module", "status"],
  ["module", "install"],
  ["demo"],
  ["man"],
];

/** Commands that the runner adds; what they are called and what they are for. */
export const RUNNER_COMMANDS: readonly (readonly [string, string])[] = [
  ["help", "Show help, of a command if one is named."],
  ["completion", "Print the completion script of bash, zsh or fish."],
];

/** The exit codes, as help and man pages give them. */
export const EXIT_TEXT: readonly (readonly [number, string])[] = [
  [0, "completed"],
  [1, "internal error: please report it"],
  [2, "usage: the command line, or what was asked of a process, cannot be right"],
  [3, "this host cannot do it; the message names the remedy"],
  [4, "the peer refused, or the two ends do not fit"],
  [10, "failed before the commit point: the guest runs at the source"],
  [11, "link lost after the commit point: keep the source alive"],
  [12, "the guest is lost"],
  [130, "interrupted before the commit point: the guest runs at the source"],
];
