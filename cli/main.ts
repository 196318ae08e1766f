import { versionLine } from "./version.ts";

// The command line proper takes some 30 ms to load and to parse; scripts that only ask for the version do not pay for it.
if (Deno.args.length === 1 && (Deno.args[0] === "--version" || Deno.args[0] === "-V")) {
  console.log(versionLine());
} else {
  await import("./segmenter.ts");
  const { main } = await import("./program.ts");
  Deno.exit(await main(Deno.args));
}
