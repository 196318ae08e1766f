import assert from "node:assert/strict";
import { inRoom } from "../../lib/control/runtime_dir.ts";

Deno.test("inRoom() tells a full or read-only file system from every other error", async () => {
  const fail = (code: string) => () => {
    throw Object.assign(new Error("os error"), { code });
  };
  await assert.rejects(inRoom("/run/x", fail("ENOSPC")), { check: "runtime-directory", message: /no space.*df -i/ });
  await assert.rejects(inRoom("/run/x", fail("EROFS")), { check: "runtime-directory", message: /cannot be written/ });
  await assert.rejects(inRoom("/run/x", fail("EIO")), { message: "os error" });
  assert.equal(await inRoom("/run/x", () => 1), 1);
});
