/**
 * The tests of tests/kvm that run also where there is no /dev/kvm: in an emulated host that has one (the part `emulated`
 * of tests/run.ts). There everything takes some 50 times as long, so these are few, and none whose outcome hangs on how
 * fast a guest, a link and a limit are beside each other.
 */

/** Exact names, by file. */
export const EMULATED: Readonly<Record<string, readonly string[]>> = {
  "modes_test.ts": ["migrate --mode full moves a guest of --vcpus 1 whole"],
  "before_commit_test.ts": ["cancel in pre-copy leaves the guest at the source, and it can be moved later"],
};

export const EMULATED_COUNT = Object.values(EMULATED).flat().length;

/** Set by tests/run.ts where it runs them so, so that they are not counted as skipped as well. */
export const EMULATED_RUNS = "GYGES_TEST_EMULATED";

/** Whether test `name` runs in an emulated host in this run of the suite. */
export function runsEmulated(name: string): boolean {
  return Deno.env.get(EMULATED_RUNS) === "1" && Object.values(EMULATED).some((names) => names.includes(name));
}

/** How a whole `deno test` of them is called. */
export function emulatedArguments(report: string): string[] {
  const names = Object.values(EMULATED).flat().map((name) => name.replaceAll(/[.*+?^${}()|[\]\\/]/g, "\\$&"));
  const files = Object.keys(EMULATED).map((file) => `tests/kvm/${file}`);
  return ["test", "-A", "--no-check", `--filter=/^(?:${names.join("|")})$/`, `--junit-path=${report}`, ...files];
}
