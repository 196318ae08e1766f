import assert from "node:assert/strict";
import { checkName, listRunning, readOwner, RuntimeDir } from "../../lib/control/runtime_dir.ts";
import { isAlive, startTicksOf, thisProcess } from "../../lib/control/process_id.ts";
import { PreflightError, UsageError } from "../../lib/errors.ts";

function withBase(run: (base: string) => void): () => void {
  return () => {
    const base = Deno.makeTempDirSync({ prefix: "gyges-runtime-" });
    try {
      run(base);
    } finally {
      Deno.removeSync(base, { recursive: true });
    }
  };
}

Deno.test("checkName() takes 1 to 64 of a-z 0-9 . _ - and nothing that could be a path or an option", () => {
  for (const name of ["a", "vm1", "web-01.example_b", "0", "x".repeat(64)]) assert.equal(checkName(name), name);
  for (const name of ["", ".", "..", "-f", "A", "a/b", "a b", "ä", "x".repeat(65), "ram", "a\n", ".hidden"]) {
    assert.throws(() => checkName(name), UsageError, JSON.stringify(name));
  }
});

Deno.test(
  "claim() makes a private directory and gives it back",
  withBase((base) => {
    {
      using claimed = RuntimeDir.claim("vm1", base);
      assert.equal((Deno.statSync(claimed.path).mode ?? 0) & 0o777, 0o700);
      assert.deepEqual(readOwner(claimed.path), thisProcess());
      assert.equal(claimed.clearedStale, false);
      assert.deepEqual(listRunning(base).map(({ name, pid }) => [name, pid]), [["vm1", Deno.pid]]);
    }
    assert.deepEqual([...Deno.readDirSync(base)], []);
    assert.deepEqual(listRunning(base), []);
  }),
);

Deno.test(
  "claim() names the pid that has the name, and the second of two claims loses",
  withBase((base) => {
    using _first = RuntimeDir.claim("vm1", base);
    assert.throws(() => RuntimeDir.claim("vm1", base), (error: unknown) => {
      assert.ok(error instanceof UsageError);
      assert.match(error.message, new RegExp(`process ${Deno.pid} has it`));
      return true;
    });
    using _other = RuntimeDir.claim("vm2", base);
  }),
);

Deno.test(
  "claim() clears what a dead process left, and keeps its log",
  withBase((base) => {
    const path = `${base}/vm1`;
    Deno.mkdirSync(path, { mode: 0o700 });
    Deno.writeTextFileSync(`${path}/owner`, '{"pid":1,"startTicks":999999999999}\n');
    Deno.writeTextFileSync(`${path}/control.sock`, "");
    Deno.writeTextFileSync(`${path}/log`, "last words\n");
    using claimed = RuntimeDir.claim("vm1", base);
    assert.equal(claimed.clearedStale, true);
    assert.deepEqual([...Deno.readDirSync(path)].map((entry) => entry.name).sort(), ["log", "owner"]);
    assert.deepEqual(readOwner(path), thisProcess());
  }),
);

Deno.test(
  "claim() refuses a directory that others can enter, and what is no directory",
  withBase((base) => {
    Deno.mkdirSync(`${base}/open`);
    Deno.chmodSync(`${base}/open`, 0o755);
    assert.throws(
      () => RuntimeDir.claim("open", base),
      (error: unknown) => error instanceof PreflightError && error.remedy === `run: chmod 0700 ${base}/open`,
    );
    Deno.writeTextFileSync(`${base}/file`, "");
    assert.throws(() => RuntimeDir.claim("file", base), PreflightError);
    Deno.mkdirSync(`${base}/elsewhere`, { mode: 0o700 });
    Deno.symlinkSync(`${base}/elsewhere`, `${base}/link`);
    assert.throws(() => RuntimeDir.claim("link", base), PreflightError);
    assert.throws(() => RuntimeDir.claim("vm1", `${base}/no/where`), PreflightError);
  }),
);

Deno.test({
  name: "claim() refuses a directory of another user",
  ignore: Deno.uid() !== 0,
  fn: withBase((base) => {
    Deno.mkdirSync(`${base}/theirs`, { mode: 0o700 });
    Deno.chownSync(`${base}/theirs`, 65534, 65534);
    assert.throws(() => RuntimeDir.claim("theirs", base), /belongs to user 65534/);
  }),
});

Deno.test(
  "claim() refuses a path too long for a socket",
  withBase((base) => {
    assert.throws(() => RuntimeDir.claim("x".repeat(64), `${base}/${"y".repeat(40)}`), /too long/);
  }),
);

Deno.test("a name is free again after its owner was killed", async () => {
  const base = Deno.makeTempDirSync({ prefix: "gyges-runtime-" });
  try {
    // Holds the lock as an owner does, then waits to be killed.
    const script = `mkdir -m 0700 "$0/vm1" && exec 9>"$0/vm1/owner" && flock -n 9 && echo held && read line`;
    const holder = new Deno.Command("sh", { args: ["-c", script, base], stdin: "piped", stdout: "piped" }).spawn();
    const reader = holder.stdout.getReader();
    assert.equal(new TextDecoder().decode((await reader.read()).value), "held\n");
    Deno.writeTextFileSync(
      `${base}/vm1/owner`,
      JSON.stringify({ pid: holder.pid, startTicks: startTicksOf(holder.pid) }),
    );
    assert.throws(() => RuntimeDir.claim("vm1", base), new RegExp(`process ${holder.pid} has it`));
    const owner = readOwner(`${base}/vm1`);
    assert.ok(owner && isAlive(owner));
    holder.kill("SIGKILL");
    await holder.status;
    await reader.cancel();
    await holder.stdin.close();
    assert.ok(!isAlive(owner));
    assert.deepEqual(listRunning(base), []);
    using claimed = RuntimeDir.claim("vm1", base);
    assert.equal(claimed.clearedStale, true);
  } finally {
    Deno.removeSync(base, { recursive: true });
  }
});
