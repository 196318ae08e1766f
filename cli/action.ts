/** What the parser makes of a command line: one thing to do. */
import type { ExitCode } from "../lib/errors.ts";
import type { Grammar } from "./man.ts";
import type { Output, OutputOptions } from "./output.ts";

export interface ActionContext {
  output: Output;
  /** The parser of the whole command line. */
  grammar: Grammar;
  /** The command line as it was typed. */
  args: readonly string[];
}

export interface Action {
  output: OutputOptions;
  run(context: ActionContext): Promise<ExitCode>;
}
