/** `gyges man`: man pages made from the parser. */
import { object } from "@optique/core/constructs";
import { map, optional } from "@optique/core/modifiers";
import { argument, command } from "@optique/core/primitives";
import { string } from "@optique/core/valueparser";
import { EXIT } from "../../lib/errors.ts";
import type { Action } from "../action.ts";
import { prose } from "../prose.ts";
import { valuesFooter } from "../values.ts";

const options = object({
  directory: optional(argument(string({ metavar: "DIRECTORY" }), {
    description: prose`Where the pages go, one file a command, as in /usr/local/share/man/man1.`,
  })),
});

export const man = command(
  "man",
  map(options, ({ directory }): Action => ({
    output: { json: false },
    async run({ output, grammar }) {
      const { manPages } = await import("../man.ts");
      const pages = manPages(grammar);
      if (directory === undefined) {
        output.result(pages.get("gyges.1") ?? "");
        return EXIT.completed;
      }
      Deno.mkdirSync(directory, { recursive: true });
      for (const [name, text] of pages) Deno.writeTextFileSync(`${directory}/${name}`, `${text}\n`);
      output.say(`${pages.size} pages written to ${directory}`);
      return EXIT.completed;
    },
  })),
  {
    brief: prose`Print the man page, or write all of them to a directory.`,
    description: prose`Prints the man page gyges(1), or writes the pages of all commands to a directory.`,
    footer: valuesFooter(),
  },
);
