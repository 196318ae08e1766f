/** The command line proper: parse, do, and turn what was thrown into words and a code. */
import { EXIT } from "../lib/errors.ts";
import { exitCodeOf } from "./exit.ts";
import { grammar, parseArguments } from "./grammar.ts";
import { Output, type OutputOptions } from "./output.ts";
import { standardStreams } from "./terminal.ts";

/** Does what `args` ask for and answers the code to exit with, once all is said. Never throws. */
export async function main(args: string[]): Promise<number> {
  const code = await act(args);
  const failure = standardStreams.drain();
  if (!failure) return code;
  standardStreams.err(`gyges: Not all of stdout could be written: ${failure.message}\n`);
  return code === EXIT.completed ? EXIT.internal : code;
}

async function act(args: string[]): Promise<number> {
  // A command line that does not parse has no options yet, but its error must have the asked-for form all the same.
  let output = new Output({ json: args.includes("--json") });
  try {
    await takeLog();
    const parsed = parseArguments(args, stdoutColumns());
    if ("shown" in parsed) {
      standardStreams.out(`${parsed.shown}\n`);
      return EXIT.completed;
    }
    output = new Output(parsed.output satisfies OutputOptions);
    return await parsed.run({ output, args, grammar });
  } catch (error) {
    output.error(error);
    return exitCodeOf(error);
  } finally {
    output.end();
  }
}

/** A detached process writes to its log from the first word on; see detach.ts. */
async function takeLog(): Promise<void> {
  const path = Deno.env.get("GYGES_LOG");
  if (!path) return;
  // Not for the processes that this one may start.
  Deno.env.delete("GYGES_LOG");
  const { redirectOutput } = await import("../lib/host/native.ts");
  redirectOutput(path);
}

function stdoutColumns(): number | null {
  return Deno.stdout.isTerminal() ? standardStreams.columns() : null;
}
