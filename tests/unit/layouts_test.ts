/** Structs and numbers that C and TypeScript share, read from both. */
import assert from "node:assert/strict";
import { KVM_CAP } from "../../ffi/host.ts";
import { INJECT } from "../../ffi/inject.ts";
import { ABI_VERSION } from "../../ffi/library.ts";
import { WORKLOAD } from "../../ffi/micro_vm.ts";
import { HIST_BYTES } from "../../ffi/page_stats.ts";
import { ROLE } from "../../ffi/page_source.ts";
import { PAGE_BYTES } from "../../ffi/ram.ts";
import { SYMBOLS } from "../../ffi/symbols.ts";

function sourceOf(path: string): string {
  const text = Deno.readTextFileSync(new URL(`../../${path}`, import.meta.url));
  return text.replace(/\/\*[^]*?\*\/|#define GY_EXPORT.*/g, "");
}

const HEADER = sourceOf("c-shim/stats.h") + sourceOf("c-shim/gyges.h");

/** Functions that may wait must not hold up the whole process. */
Deno.test("every function that takes a timeout is called off the main thread", () => {
  for (const [, name = ""] of HEADER.matchAll(/(\w+)\([^;()]*timeout_ms[^;()]*\);/g)) {
    const symbol = Object.entries(SYMBOLS).find(([key]) => key === name)?.[1];
    // Not everything that C can do is called from here.
    if (symbol) assert.ok("nonblocking" in symbol && symbol.nonblocking, name);
  }
});

Deno.test("the library exports every function of the table, and has the ABI version of the header", () => {
  const path = Deno.env.get("GYGES_LIB") ?? new URL("../../c-shim/build/libgyges.so", import.meta.url);
  const library = Deno.dlopen(path, SYMBOLS);
  try {
    assert.equal(library.symbols.gy_abi_version(), ABI_VERSION);
  } finally {
    library.close();
  }
  assert.equal(numberOf("GY_ABI_VERSION"), ABI_VERSION);
});

function numberOf(macro: string): number {
  const text = new RegExp(`#define ${macro} (\\d+)u?`).exec(HEADER)?.[1];
  assert.ok(text, macro);
  return Number(text);
}

function enumOf(name: string): Record<string, number> {
  const body = new RegExp(`enum ${name} \\{([^}]*)\\}`).exec(HEADER)?.[1] ?? "";
  return Object.fromEntries([...body.matchAll(/(\w+) = (\d+)/g)].map(([, key, value]) => [key, Number(value)]));
}

Deno.test("numbers that both sides know are the same", () => {
  assert.equal(numberOf("GY_PAGE_BYTES"), PAGE_BYTES);
  assert.deepEqual(enumOf("gy_workload"), {
    GY_WORKLOAD_UNIFORM: WORKLOAD.uniform,
    GY_WORKLOAD_SEQUENTIAL: WORKLOAD.sequential,
    GY_WORKLOAD_ZIPF: WORKLOAD.zipf,
  });
  assert.deepEqual(enumOf("gy_role"), { GY_ROLE_DEMAND: ROLE.demand, GY_ROLE_PREFETCH: ROLE.prefetch });
  assert.deepEqual(enumOf("gy_inject"), {
    GY_INJECT_NONE: 0,
    GY_INJECT_ZERO_PAGE: INJECT["zero-page"],
    GY_INJECT_SWAP_PAGES: INJECT["swap-pages"],
    GY_INJECT_STALE_PAGE: INJECT["stale-page"],
    GY_INJECT_SKIP_DIRTY: INJECT["skip-dirty"],
    GY_INJECT_ABSENT_PAGE: INJECT["absent-page"],
  });
});

/** Bytes of a struct whose members are all naturally aligned, as ours are: padding is explicit. */
function structBytes(header: string, name: string): number {
  const body = new RegExp(`struct ${name} \\{([^}]*)\\};`).exec(header)?.[1];
  assert.ok(body, name);
  let bytes = 0;
  for (const [, type = "", members = ""] of body.matchAll(/(uint32_t|uint64_t|int32_t|struct gy_hist)\s+([^;]+);/g)) {
    const width = type === "struct gy_hist" ? structBytes(header, "gy_hist") : type.includes("64") ? 8 : 4;
    for (const member of members.split(",")) {
      const length = /\[(\w+)\]/.exec(member)?.[1];
      const count = length === undefined ? 1 : /^\d+$/.test(length) ? Number(length) : numberOf(length);
      assert.equal(bytes % Math.min(width, 8), 0, `${name}: ${member} is not aligned`);
      bytes += width * count;
    }
  }
  assert.equal(bytes % 8, 0, `${name} has hidden padding at its end`);
  return bytes;
}

/** A constant of a TypeScript file that nobody else needs to know. */
function constantOf(path: string, name: string): number {
  const text = new RegExp(`const ${name} = (\\d+);`).exec(sourceOf(path))?.[1];
  assert.ok(text, `${name} in ${path}`);
  return Number(text);
}

Deno.test("structs are as large as TypeScript reads them", () => {
  assert.equal(structBytes(HEADER, "gy_hist"), HIST_BYTES);
  assert.equal(structBytes(HEADER, "gy_vm_config"), constantOf("ffi/micro_vm.ts", "CONFIG_BYTES"));
  assert.equal(
    structBytes(HEADER, "gy_guest_report"),
    constantOf("ffi/micro_vm.ts", "REPORT_COUNTERS") * 8 + HIST_BYTES,
  );
  assert.equal(structBytes(HEADER, "gy_page_stats"), constantOf("ffi/page_stats.ts", "COUNTERS") * 8 + HIST_BYTES);
  assert.equal(structBytes(HEADER, "gy_ram_check"), 64);
  assert.equal(structBytes(HEADER, "gy_sink_config"), 32);
  assert.equal(structBytes(sourceOf("c-shim/host.h"), "gy_host_facts"), constantOf("ffi/host.ts", "FACTS_BYTES"));
  assert.equal(new Set(Object.values(KVM_CAP)).size, Object.keys(KVM_CAP).length);
});
