/** The arrows of the design never turn round: cli/ -> lib/ -> ffi/, and the shim knows one header of the kernel module. */
import assert from "node:assert/strict";
import { posix } from "node:path";
import { fileURLToPath } from "node:url";

/** Source text by path from the root of the tree. */
type Tree = ReadonlyMap<string, string>;

/** What a file in each layer may import from, besides npm packages and `node:`. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  cli: ["cli", "lib"],
  lib: ["lib", "ffi"],
  ffi: ["ffi"],
};
/** The one file that carries the kernel module, as text. */
const MODULE_TEXT = "lib/host/module_files.ts";
const KERNEL_HEADER = "kernel/include/uapi/linux/gyges.h";

/** `import ... from "x"`, `export ... from "x"`, `import "x"` and `import("x")`. */
const IMPORT = /(?:^|[;}\s])(?:import|export)\b[^"';=]*?\(?\s*["']([^"']+)["']/g;
const INCLUDE = /^[ \t]*#[ \t]*include[ \t]*["<]([^">]+)[">]/gm;

/** Text that is carried, no code. */
const TEXT_IMPORT = /^import \w+ from "[^"]+" with \{ type: "text" \};$/gm;

/** Comments go, so that an example in one is no import; strings stay, because `//` occurs in them. */
function withoutComments(source: string): string {
  return source.replace(/("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`)|\/\*[^]*?\*\/|\/\/[^\n]*/g, "$1");
}

function importsOf(source: string): string[] {
  return [...withoutComments(source).matchAll(IMPORT)].flatMap(([, specifier]) => specifier ?? []);
}

function layerOf(path: string): string {
  return path.split("/")[0] ?? "";
}

/** Every arrow that is not allowed, as `FILE: reason`. */
function violations(tree: Tree): string[] {
  const found: string[] = [];
  const graph = new Map<string, string[]>();
  for (const [path, source] of tree) {
    if (path.startsWith("c-shim/")) {
      found.push(...includeViolations(path, source));
      continue;
    }
    const targets: string[] = [];
    const code = path === MODULE_TEXT ? source.replace(TEXT_IMPORT, "") : source;
    for (const specifier of importsOf(code)) {
      if (/^(jsr|https?):/.test(specifier)) {
        found.push(`${path}: ${specifier} is not from npm`);
      } else if (specifier.startsWith(".")) {
        const target = posix.join(posix.dirname(path), specifier);
        if (MAY_IMPORT[layerOf(path)]?.includes(layerOf(target)) !== true) found.push(`${path}: imports ${target}`);
        targets.push(target);
      } else if (/^[/]|^file:/.test(specifier)) {
        found.push(`${path}: ${specifier} is not relative`);
      }
    }
    graph.set(path, targets);
  }
  return [...found, ...cycles(graph).map((cycle) => `${cycle[0]}: imports itself through ${cycle.join(" -> ")}`)];
}

function includeViolations(path: string, source: string): string[] {
  return [...withoutComments(source).matchAll(INCLUDE)].flatMap(([, header = ""]) => {
    const target = header.startsWith(".") ? posix.join(posix.dirname(path), header) : header;
    // The Makefile puts kernel/include/uapi on the path, so `linux/gyges.h` is the one allowed header.
    const escapes = target.includes("kernel/") && target !== KERNEL_HEADER && !target.startsWith("linux/");
    const leaves = header.startsWith("..") && !target.startsWith("c-shim/") && target !== KERNEL_HEADER;
    return escapes || leaves ? [`${path}: includes ${target}`] : [];
  });
}

/** One cycle per file that closes one, found by depth-first search. */
function cycles(graph: ReadonlyMap<string, readonly string[]>): string[][] {
  const found: string[][] = [];
  const done = new Set<string>();
  const visit = (node: string, trail: string[]) => {
    const start = trail.indexOf(node);
    if (start >= 0) {
      found.push(trail.slice(start));
      return;
    }
    if (done.has(node)) return;
    for (const next of graph.get(node) ?? []) visit(next, [...trail, node]);
    done.add(node);
  };
  for (const node of graph.keys()) visit(node, []);
  return found;
}

function readTree(): Tree {
  const root = fileURLToPath(new URL("../..", import.meta.url));
  const tree = new Map<string, string>();
  const walk = (folder: string) => {
    for (const entry of Deno.readDirSync(root + folder)) {
      const path = `${folder}/${entry.name}`;
      if (entry.isDirectory && path !== "c-shim/build") walk(path);
      else if (entry.isFile && /\.(ts|c|h|S)$/.test(entry.name)) tree.set(path, Deno.readTextFileSync(root + path));
    }
  };
  for (const folder of [...Object.keys(MAY_IMPORT), "c-shim"]) walk(folder);
  return tree;
}

Deno.test("no arrow between the layers turns round", () => {
  const tree = readTree();
  assert.ok(tree.has("cli/main.ts"), "the walk found the tree");
  assert.deepEqual(violations(tree), []);
});

Deno.test("control: every kind of wrong arrow is found in a made-up tree", () => {
  const wrong = new Map([
    ["lib/up.ts", `import { x } from "../cli/main.ts";`],
    ["cli/skips.ts", `import type { X } from "../ffi/symbols.ts";`],
    ["ffi/up.ts", `export * from "../lib/api.ts";`],
    ["ffi/late.ts", `const lib = await import(\n  "../lib/api.ts"\n);`],
    ["lib/tests.ts", `import "../tests/run.ts";`],
    ["lib/jsr.ts", `import { x } from "jsr:@std/log";`],
    ["lib/web.ts", `import x from 'https://example.org/x.ts';`],
    ["lib/absolute.ts", `import x from "/lib/api.ts";`],
    ["lib/text.ts", `import fs from "../kernel/fs.c" with { type: "text" };`],
    [MODULE_TEXT, `import { x } from "../../kernel/x.ts";`],
    ["lib/a.ts", `import {\n  b,\n} from "./b.ts";`],
    ["lib/b.ts", `export { a } from "./c.ts";`],
    ["lib/c.ts", `import { a } from "./a.ts";`],
    ["c-shim/deep.c", `#include "../kernel/gyges_internal.h"`],
    ["c-shim/path.c", `# include <kernel/compat.h>`],
  ]);
  const found = violations(wrong).map((violation) => violation.split(":")[0]);
  const expected = [...wrong.keys()].filter((path) => path !== "lib/b.ts" && path !== "lib/c.ts");
  assert.deepEqual(found.sort(), expected.sort());
});

Deno.test("control: what is allowed is not reported", () => {
  const right = new Map([
    ["cli/main.ts", `import { main } from "./program.ts"; // from "../ffi/x.ts"`],
    ["cli/program.ts", `import { api } from "../lib/api.ts"; import { run } from "@optique/run";`],
    ["lib/api.ts", `/* import "../cli/main.ts" */ import { open } from "../ffi/library.ts"; const u = "http://x";`],
    [MODULE_TEXT, `import fs from "../../kernel/fs.c" with { type: "text" };\nimport { x } from "./doctor.ts";`],
    ["ffi/library.ts", `import assert from "node:assert/strict";`],
    ["c-shim/pager.c", `#include <linux/gyges.h>\n#include <linux/kvm.h>\n#include "gyges.h"`],
    ["c-shim/uapi.c", `#include "../${KERNEL_HEADER}"`],
    ["c-shim/guest/guest.c", `#include "../gyges.h"`],
  ]);
  assert.deepEqual(violations(right), []);
});
