/** ffi/symbols.ts against c-shim/gyges.h: a wrong parameter there is memory damaged here. */
import assert from "node:assert/strict";
import { SYMBOLS } from "../../ffi/symbols.ts";

interface Declaration {
  result: string;
  parameters: string[];
}

const RESULTS: Readonly<Record<string, string>> = {
  "int": "i32",
  "int64_t": "i64",
  "uint32_t": "u32",
  "uint64_t": "u64",
  "void": "void",
};

/** FFI types that may stand for a C parameter. */
function typesFor(parameter: string): string[] {
  if (/^(const )?struct gy_(vm_config|(kernel_)?sink_config|guest_report|ram_check) \*/.test(parameter)) {
    return ["buffer"];
  }
  if (/\*\*/.test(parameter)) return ["buffer"];
  if (/^(const )?struct gy_\w+ \*/.test(parameter)) return ["pointer"];
  if (/\*/.test(parameter)) return ["buffer"];
  if (/^uint32_t /.test(parameter)) return ["u32"];
  if (/^uint64_t /.test(parameter)) return ["u64"];
  return [];
}

function declarations(header: string): Map<string, Declaration> {
  const found = new Map<string, Declaration>();
  for (const match of header.matchAll(/GY_EXPORT\s+([\w\s]+?(?:\s\*)?)\s*\b(gy_\w+)\(([^;]*?)\);/g)) {
    const [, result = "", name = "", list = ""] = match;
    const parameters = list.replaceAll(/\s+/g, " ").split(",").map((text) => text.trim()).filter((text) =>
      text !== "void"
    );
    found.set(name, { result: result.trim(), parameters });
  }
  return found;
}

/** What is wrong with `symbols`, in words. */
function mismatches(header: string, symbols: Readonly<Record<string, Deno.ForeignFunction>>): string[] {
  const declared = declarations(header);
  return Object.entries(symbols).flatMap(([name, symbol]) => {
    const declaration = declared.get(name);
    if (!declaration) return [`${name} is not in gyges.h`];
    const wrong: string[] = [];
    const result = RESULTS[declaration.result] ??
      (/^struct .*\*$|.*\bstruct\b/.test(declaration.result) ? "pointer" : "?");
    if (result !== symbol.result) wrong.push(`${name} returns ${declaration.result}, not ${symbol.result}`);
    if (declaration.parameters.length !== symbol.parameters.length) {
      return [...wrong, `${name} has ${declaration.parameters.length} parameters, not ${symbol.parameters.length}`];
    }
    declaration.parameters.forEach((parameter, index) => {
      const type = String(symbol.parameters[index]);
      if (!typesFor(parameter).includes(type)) wrong.push(`${name}: "${parameter}" is not ${type}`);
    });
    return wrong;
  });
}

const HEADER = Deno.readTextFileSync(new URL("../../c-shim/gyges.h", import.meta.url));

Deno.test("SYMBOLS has each function as gyges.h declares it", () => {
  assert.deepEqual(mismatches(HEADER, SYMBOLS), []);
  assert.ok(declarations(HEADER).size >= Object.keys(SYMBOLS).length);
});

Deno.test("control: a wrong type, count, result or name is found", () => {
  const wrong: Record<string, Deno.ForeignFunction> = {
    gy_ram_create: { parameters: ["u32", "buffer"], result: "i32" },
    gy_ram_read: { parameters: ["pointer", "u64", "buffer"], result: "i64" },
    gy_sink_arm: { parameters: ["pointer"], result: "i32" },
    gy_source_stats: { parameters: ["pointer"], result: "u64" },
    gy_no_such: { parameters: [], result: "i32" },
  };
  assert.equal(mismatches(HEADER, wrong).length, 5);
});
