/** Help, completions, man pages and the parser come from one grammar; this proves that they also arrive as one. */
import assert from "node:assert/strict";
import { formatMessage } from "@optique/core/message";
import { getDocPageSync, suggestSync } from "@optique/core/parser";
import { extractCommandNames, extractOptionNames } from "@optique/core/usage";
import { COMMANDS, EXIT_TEXT } from "../../cli/facts.ts";
import { grammar, parseArguments, SHELLS } from "../../cli/grammar.ts";
import { Output } from "../../cli/output.ts";
import { manPages } from "../../cli/man.ts";
import { EXIT, UsageError } from "../../lib/errors.ts";

function help(...words: string[]): string {
  const parsed = parseArguments([...words, "--help"], null);
  assert.ok("shown" in parsed);
  return parsed.shown;
}

/** Names that `grammar` says `words` has. */
function optionsOf(words: readonly string[]): string[] {
  const page = getDocPageSync(grammar, words);
  assert.ok(page?.usage, `no page for ${words.join(" ")}`);
  return [...extractOptionNames(page.usage)].sort();
}

/** Options listed by a help text or by a man page with its escapes removed. */
function listed(text: string, pattern: RegExp): string[] {
  return [...text.matchAll(pattern)].map((match) => match[1] ?? "").sort();
}

Deno.test("COMMANDS names every command that the parser has, and no other", () => {
  const words = new Set(COMMANDS.flat());
  assert.deepEqual([...extractCommandNames(grammar.usage)].sort(), [...words].sort());
});

for (const words of COMMANDS) {
  const name = words.join(" ");
  Deno.test(`"${name}": help, completion and man page have the parser's options`, () => {
    const options = optionsOf(words);
    const shown = help(...words);
    assert.deepEqual(listed(shown, /^ {2}(--[a-z-]+)/gm), options, "help");

    const suggested = suggestSync(grammar, [...words, "--"]).flatMap((s) => s.kind === "literal" ? [s.text] : []);
    assert.deepEqual(suggested.filter((text) => text !== "--").sort(), options, "completion");

    const man = manPages(grammar).get(`gyges-${words.join("-")}.1`)?.replaceAll("\\-", "-") ?? "";
    assert.deepEqual(listed(man, /^\\fB(--[a-z-]+)/gm), options, "man page");
    for (const option of options) assert.ok(man.split(".SH DESCRIPTION")[0]?.includes(option), `synopsis: ${option}`);
  });

  Deno.test(`"${name}": help and man page have the same brief, and every option is described`, () => {
    const page = getDocPageSync(grammar, words);
    assert.ok(page?.brief && page.description && page.footer);
    const brief = formatMessage(page.brief);
    assert.ok(help(...words).startsWith(brief));
    assert.ok(manPages(grammar).get("gyges.1")?.replaceAll("\\-", "-").includes(brief));
    for (const entry of page.sections.flatMap((section) => section.entries)) assert.ok(entry.description);
  });
}

Deno.test("the main help and the main man page name every command and every exit code", () => {
  const shown = help();
  const man = manPages(grammar).get("gyges.1")?.replaceAll("\\-", "-") ?? "";
  for (const words of COMMANDS) {
    assert.ok(shown.includes(`gyges ${words.join(" ")}`));
    assert.ok(man.includes(`.BR gyges-${words.join("-")} (1)`));
  }
  assert.deepEqual(EXIT_TEXT.map(([code]) => code), Object.values(EXIT));
  for (const [code, meaning] of EXIT_TEXT) {
    assert.match(shown, new RegExp(`^ +${code}  ${meaning}$`, "m"));
    assert.ok(man.includes(`\\fB${code}\\fR\n${meaning}`));
  }
});

Deno.test("completion offers commands, and a script for each shell", () => {
  const offered = (...args: [string, ...string[]]) =>
    suggestSync(grammar, args).flatMap((suggestion) => suggestion.kind === "literal" ? [suggestion.text] : []);
  assert.deepEqual(offered("").sort(), [...new Set(COMMANDS.map(([first]) => first))].sort());
  assert.deepEqual(offered("vm", "st").sort(), ["start", "status", "stop"]);
  assert.deepEqual(offered("migrate", "--mode", "").sort(), ["full", "hybrid", "precopy"]);
  for (const shell of Object.keys(SHELLS)) {
    const parsed = parseArguments(["completion", shell], null);
    assert.ok("shown" in parsed && parsed.shown.includes("gyges"), shell);
  }
});

Deno.test("help fits into the columns it is given", () => {
  const parsed = parseArguments(["migrate", "--help"], 60);
  assert.ok("shown" in parsed);
  const tooLong = parsed.shown.split("\n").filter((line) => line.length > 60);
  assert.deepEqual(tooLong, []);
});

Deno.test("help and man pages have no leftovers of source indentation", () => {
  for (const words of [[], ...COMMANDS]) {
    assert.doesNotMatch(help(...words).replaceAll(/^ +|(?<=\S) {2,}(?=\S)/gm, ""), / {2}/);
  }
  for (const [name, page] of manPages(grammar)) assert.doesNotMatch(page, / {2}|undefined/, name);
});

Deno.test("parseArguments() refuses with what to do next", () => {
  const refused: [string, RegExp][] = [
    ["", /^Expected a command after "gyges": one of doctor, describe, vm, run, /],
    ["vm", /^Expected a command after "gyges vm": one of start, status, list, stop$/],
    ["migrat", /migrate.*see gyges --help$/],
    ["doctor --loud", /--loud.*see gyges doctor --help$/],
    ["vm start vm1", /--ram.*see gyges vm start --help$/],
    ["vm start vm1 --ram 15M", /at least 16MiB: try 16MiB/],
    ["vm start vm1 --ram 17MiB", /try 18MiB/],
    ["vm start vm1 --ram 64MB", /write 64M or 64MiB/],
    ["vm start VM1 --ram 64M", /Cannot use the name "VM1"/],
    ["vm start vm1 --ram 64M --vcpus 9", /--vcpus/],
    ["vm start vm1 --ram 64M --write-ratio 1.5", /--write-ratio/],
    ["vm start vm1 --ram 64M --workload chaos", /--workload/],
    ["prepare vm1 --micro --listen 1.2.3.4:99999", /Cannot listen on "1.2.3.4:99999"/],
    ["prepare vm1 --micro --ticket-ttl 10", /Cannot read duration "10"/],
    ["prepare vm1 --micro --tls maybe", /--tls/],
    ["migrate gyges://h:1/n#k --vm vm1 --bandwidth 1G", /Cannot read rate "1G"/],
    ["migrate gyges://h:1/n#k --vm vm1 --mode fast", /--mode/],
    ["demo --scenario everything", /--scenario/],
    ["module", /^Expected a command after "gyges module": one of build, load, unload, status, install$/],
    ["module load --kernel 6.1", /--kernel.*see gyges module load --help$/],
    ["completion tcsh", /tcsh/],
  ];
  for (const [line, words] of refused) {
    const parse = () => parseArguments(line.split(" ").filter((word) => word !== ""), null);
    assert.throws(parse, (error: unknown) => {
      assert.ok(error instanceof UsageError, line);
      assert.match(error.message, words);
      assert.ok(!error.message.includes("\n"), "one line");
      return true;
    });
  }
});

Deno.test("parseArguments() takes the command lines of the manual", () => {
  const lines = [
    "doctor --json",
    "vm start vm1 --ram 512MiB --vcpus 2 --workload zipf --working-set 256M --write-ratio 0.8 --rate 10000 --irqchip --detach",
    "vm status vm1 --verify --json",
    "vm list",
    "vm stop vm1 --json",
    "prepare vm1 --micro --listen [::1]:7000 --ticket-ttl 2m --tls off --json",
    "migrate gyges://h:1/n#k --vm vm1 --mode precopy --downtime-limit 300ms --bandwidth 1Gbit --tls off",
    "migrate - --vm vm1 --precopy-timeout 10s --switch-threshold 50ms --prefetch-connections 4 --no-prefetch",
    "migrate - --vm vm1 --transport rdma --rdma-listen 10.7.0.1:4711 --pager kernel",
    "monitor vm1 --once --json",
    "cancel vm1",
    "demo --ram 256MiB --bandwidth 1Gbit --scenario hybrid-short --report report.html --json",
    "man",
    "module build --kernel 6.1.0-56-amd64 --headers /usr/src/linux-headers-6.1.0-56-amd64 --cache /tmp/modules --json",
    "module load --file /tmp/gyges.ko",
    "module load --headers /usr/src/headers --cache /tmp/modules --json",
    "module unload --json",
    "module status --json",
    "module install --root /mnt --json",
  ];
  for (const line of lines) {
    const parsed = parseArguments(line.split(" "), null);
    assert.ok("run" in parsed, line);
    assert.equal(parsed.output.json, line.includes("--json"), line);
  }
});

Deno.test("an action refuses what does not go together, with what to do next", async () => {
  const ticket = "gyges://h:1/n#k";
  const refused: [string, RegExp][] = [
    ["prepare vm1", /--micro, --like FILE, or -- qemu-system-x86_64/],
    ["prepare vm1 --micro -- qemu-system-x86_64", /leave the others out/],
    ["prepare vm1 --like vm.json --micro", /leave the others out/],
    ["prepare vm1 --like /nowhere/vm.json", /Cannot read \/nowhere\/vm.json/],
    ["run vm1", /gyges run NAME -- qemu-system-x86_64/],
    [`migrate ${ticket}`, /--vm NAME .* or --qmp SOCKET/],
    [`migrate ${ticket} --vm vm1 --keep-source`, /--keep-source without --qmp/],
  ];
  for (const [line, words] of refused) {
    const args = line.split(" ");
    const action = parseArguments(args, null);
    assert.ok("run" in action, line);
    await assert.rejects(action.run({ output: new Output({ json: false }), args, grammar }), (error: unknown) => {
      assert.ok(error instanceof UsageError, line);
      assert.match(error.message, words);
      return true;
    });
  }
});

Deno.test("QEMU's own arguments after -- are taken as they are", () => {
  const args = ["run", "vm1", "--detach", "--", "qemu-system-x86_64", "-m", "512", "--json", "-device", "e1000,id=a"];
  assert.ok("run" in parseArguments(args, null));
});
