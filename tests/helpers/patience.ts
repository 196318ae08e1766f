/** How long tests wait for what must come. */

const FACTOR = Number(Deno.env.get("GYGES_TEST_PATIENCE") ?? "1");

/** `ms`, times $GYGES_TEST_PATIENCE on a machine that is slow by nature, as an emulated one. */
export function patience(ms: number): number {
  return ms * FACTOR;
}
