/** Tests that cannot run on every host: skipped with the reason, which the suite's driver counts. */

/** Where tests/run.ts wants reasons for skips; a quiet `deno test` shows nothing that tests print. */
const SKIPS = "GYGES_TEST_SKIPS";

/** A test that is skipped where something is `missing`, in words; null: it runs. */
export function testOrSkip(name: string, missing: string | null, fn: () => Promise<void>): void {
  if (missing !== null) {
    const report = Deno.env.get(SKIPS);
    const line = `skip: ${name}: ${missing}\n`;
    if (report) Deno.writeTextFileSync(report, line, { append: true });
    else console.log(line.trimEnd());
  }
  Deno.test({ name, ignore: missing !== null, fn });
}
