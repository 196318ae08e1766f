import assert from "node:assert/strict";
import { ERRNO, NativeError } from "../../ffi/native_error.ts";
import { GoneWatch } from "../../lib/migration/farewell.ts";

const refused = new NativeError("connect", 111);

Deno.test("GoneWatch takes refusals for proof only when they have gone on for three seconds", () => {
  const watch = new GoneWatch();
  assert.equal(watch.saw(refused, 0), false);
  assert.equal(watch.saw(refused, 2_999), false);
  assert.equal(watch.saw(refused, 3_000), true);
});

Deno.test("GoneWatch begins again after any other answer, and takes silence for no proof", () => {
  const watch = new GoneWatch();
  for (const other of [new NativeError("connect", ERRNO.ETIMEDOUT), new NativeError("connect", 113), new Error("?")]) {
    assert.equal(watch.saw(refused, 0), false);
    assert.equal(watch.saw(other, 3_000), false);
    assert.equal(watch.saw(refused, 4_000), false);
    assert.equal(watch.saw(other, 9_000), false);
  }
});
