import assert from "node:assert/strict";
import { Growth } from "../helpers/growth.ts";

const LEAK = 5;

/** What twenty turns hold, one after another, with `leak` more each time. */
function held(leak: number): Growth<"fds"> {
  const growth = new Growth({ fds: 4 });
  for (let turn = 0; turn < 20; turn++) growth.add({ fds: 20 + turn % 3 + leak * turn });
  return growth;
}

Deno.test("Growth.prove() lets pass what comes and goes, and throws for what adds up", () => {
  assert.match(held(0).prove(), /fds 22 -> 22$/);
  assert.throws(() => held(LEAK).prove(), /fds grew from \d+ to \d+/);
});
