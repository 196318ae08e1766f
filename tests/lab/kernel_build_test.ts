/** The kernel module builds for both kernels without a word from the compiler's extra warnings and from sparse. */
import assert from "node:assert/strict";
import { KERNELS } from "./lab.ts";
import { strictBuild } from "./module.ts";

/** What each tool must find: a number that is not kept, and memory of a user that is read as the kernel's. */
const SPOILED = `
static int __init gyges_spoiled(int __user *from)
{
	int kept = 1;

	return *from;
}
`;

/** Lines in which somebody complains about a place in a source. */
function complaints(output: string): string[] {
  return output.split("\n").filter((line) => /^\S+\.[ch]:\d+.*\b(?:warning|error): /.test(line));
}

async function inFolder(body: (work: string) => Promise<void>): Promise<void> {
  const work = await Deno.makeTempDir({ prefix: "gyges-kernel-" });
  try {
    await body(work);
  } finally {
    await Deno.remove(work, { recursive: true });
  }
}

for (const kernel of KERNELS) {
  Deno.test(`${kernel}: the module builds without a warning`, () =>
    inFolder(async (work) => {
      const { code, output } = await strictBuild(kernel, work);
      assert.deepEqual([code, complaints(output)], [0, []], output);
    }));
}

Deno.test("a warning of the compiler and one of sparse are seen", () =>
  inFolder(async (work) => {
    const { output } = await strictBuild("6.12", work, (source) => source + SPOILED);
    const found = complaints(output).join("\n");
    assert.match(found, /unused variable .kept./);
    assert.match(found, /dereference of noderef expression/);
  }));
