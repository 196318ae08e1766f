import assert from "node:assert/strict";
import { ControlClient } from "../../lib/control/client.ts";
import {
  checkName,
  forgetLog,
  isOwned,
  listRunning,
  listSurvivors,
  monitorPathIn,
  ownerPid,
  RuntimeDir,
} from "../../lib/control/runtime_dir.ts";
import { PreflightError, UsageError } from "../../lib/errors.ts";

function withBase(run: (base: string) => Promise<void>): () => Promise<void> {
  return async () => {
    const base = Deno.makeTempDirSync({ prefix: "gyges-runtime-" });
    try {
      await run(base);
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
  withBase(async (base) => {
    {
      using claimed = await RuntimeDir.claim("vm1", base);
      assert.equal((Deno.statSync(claimed.path).mode ?? 0) & 0o777, 0o700);
      assert.equal(ownerPid(claimed.path), Deno.pid);
      assert.ok(isOwned(claimed.path));
      assert.equal(claimed.clearedStale, false);
      assert.deepEqual(listRunning(base).map(({ name, pid }) => [name, pid]), [["vm1", Deno.pid]]);
    }
    assert.deepEqual([...Deno.readDirSync(base)], []);
    assert.deepEqual(listRunning(base), []);
  }),
);

Deno.test(
  "claim() names the pid that has the name, and the second of two claims loses",
  withBase(async (base) => {
    using _first = await RuntimeDir.claim("vm1", base);
    await assert.rejects(() => RuntimeDir.claim("vm1", base), (error: unknown) => {
      assert.ok(error instanceof UsageError);
      assert.match(error.message, new RegExp(`process ${Deno.pid} has it`));
      return true;
    });
    using _other = await RuntimeDir.claim("vm2", base);
  }),
);

Deno.test(
  "claim() clears what a dead process left, and keeps its log",
  withBase(async (base) => {
    const path = `${base}/vm1`;
    Deno.mkdirSync(path, { mode: 0o700 });
    Deno.writeTextFileSync(`${path}/owner`, '{"pid":1}\n');
    Deno.writeTextFileSync(`${path}/control.sock`, "");
    Deno.writeTextFileSync(`${path}/log`, "last words\n");
    using claimed = await RuntimeDir.claim("vm1", base);
    assert.equal(claimed.clearedStale, true);
    assert.deepEqual([...Deno.readDirSync(path)].map((entry) => entry.name).sort(), ["log", "owner"]);
    assert.equal(ownerPid(path), Deno.pid);
  }),
);

Deno.test(
  "claim() refuses a directory that others can enter, and what is no directory",
  withBase(async (base) => {
    Deno.mkdirSync(`${base}/open`);
    Deno.chmodSync(`${base}/open`, 0o755);
    await assert.rejects(
      () => RuntimeDir.claim("open", base),
      (error: unknown) => error instanceof PreflightError && error.remedy === `run: chmod 0700 ${base}/open`,
    );
    Deno.writeTextFileSync(`${base}/file`, "");
    await assert.rejects(() => RuntimeDir.claim("file", base), PreflightError);
    Deno.mkdirSync(`${base}/elsewhere`, { mode: 0o700 });
    Deno.symlinkSync(`${base}/elsewhere`, `${base}/link`);
    await assert.rejects(() => RuntimeDir.claim("link", base), PreflightError);
    await assert.rejects(() => RuntimeDir.claim("vm1", `${base}/no/where`), PreflightError);
  }),
);

Deno.test({
  name: "claim() refuses a directory of another user",
  ignore: Deno.uid() !== 0,
  fn: withBase(async (base) => {
    Deno.mkdirSync(`${base}/theirs`, { mode: 0o700 });
    Deno.chownSync(`${base}/theirs`, 65534, 65534);
    await assert.rejects(() => RuntimeDir.claim("theirs", base), /belongs to user 65534/);
  }),
});

Deno.test(
  "claim() refuses a path too long for a socket",
  withBase(async (base) => {
    await assert.rejects(() => RuntimeDir.claim("x".repeat(64), `${base}/${"y".repeat(40)}`), /too long/);
  }),
);

Deno.test(
  "claim() has one winner among many at once, also while others look and leave",
  withBase(async (base) => {
    for (let round = 0; round < 20; round++) {
      const looking = setInterval(() => listRunning(base), 0);
      const claims = await Promise.allSettled(Array.from({ length: 8 }, () => RuntimeDir.claim("vm1", base)));
      clearInterval(looking);
      const won = claims.filter((claim) => claim.status === "fulfilled");
      assert.equal(won.length, 1);
      for (const { value } of won) value[Symbol.dispose]();
    }
  }),
);

Deno.test(
  "a log outlives its process until it is forgotten",
  withBase(async (base) => {
    {
      using claimed = await RuntimeDir.claim("vm1", base);
      Deno.writeTextFileSync(claimed.logPath, "last words\n");
    }
    assert.equal(Deno.readTextFileSync(`${base}/vm1/log`), "last words\n");
    forgetLog("vm1", base);
    forgetLog("vm1", base);
    assert.deepEqual([...Deno.readDirSync(base)], []);
  }),
);

/** What a process has left that received a QEMU's guest and died. */
async function leaveOrphan(base: string, name: string): Promise<Deno.UnixListener> {
  using left = await RuntimeDir.claim(name, base);
  Deno.writeTextFileSync(left.attachPath, "secrets");
  Deno.writeTextFileSync(left.socketPath, "");
  return Deno.listen({ transport: "unix", path: monitorPathIn(left.path) });
}

Deno.test(
  "adopt() takes what a dead process has left, and leaves it again until it is forgotten",
  withBase(async (base) => {
    using _qemu = await leaveOrphan(base, "vm1");
    const left = () => [...Deno.readDirSync(`${base}/vm1`)].map(({ name }) => name).sort();
    const survivor = { name: "vm1", how: "waits", monitorPath: monitorPathIn(`${base}/vm1`) };
    assert.deepEqual(await listSurvivors(base), [survivor]);
    {
      using adopted = await RuntimeDir.adopt("vm1", base);
      assert.ok(isOwned(adopted.path));
      assert.deepEqual(left(), ["attach.json", "owner", "qmp.sock"]);
      assert.deepEqual(await listSurvivors(base), []);
      await assert.rejects(() => RuntimeDir.adopt("vm1", base), /which lives: see gyges monitor vm1/);
    }
    assert.deepEqual(left(), ["attach.json", "owner", "qmp.sock"]);
    {
      using adopted = await RuntimeDir.adopt("vm1", base);
      Deno.removeSync(adopted.attachPath);
    }
    assert.deepEqual([...Deno.readDirSync(base)], []);
    await assert.rejects(() => RuntimeDir.adopt("vm1", base), /no process of that name has died here in a move/);
  }),
);

Deno.test(
  "claim() does not clear away a guest that waits, and does once its QEMU is gone",
  withBase(async (base) => {
    {
      using _qemu = await leaveOrphan(base, "vm1");
      await assert.rejects(() => RuntimeDir.claim("vm1", base), /its guest waits: run gyges attach vm1/);
    }
    assert.deepEqual(await listSurvivors(base), []);
    using claimed = await RuntimeDir.claim("vm1", base);
    assert.ok(claimed.clearedStale);
    assert.deepEqual([...Deno.readDirSync(claimed.path)].map(({ name }) => name), ["owner"]);
  }),
);

Deno.test(
  "claim() does not clear away a QEMU that stays, and does once it is gone, or where it was another's",
  withBase(async (base) => {
    const path = monitorPathIn(`${base}/vm1`);
    {
      using _qemu = await leaveOrphan(base, "vm1");
      Deno.removeSync(`${base}/vm1/attach.json`);
      assert.deepEqual(await listSurvivors(base), [{ name: "vm1", how: "stays", monitorPath: path }]);
      await assert.rejects(() => RuntimeDir.claim("vm1", base), /its QEMU is still there: gyges describe --qmp .*vm1/);
      await assert.rejects(() => ControlClient.connect("vm1", { base }), /its QEMU is still there/);
      await assert.rejects(() => RuntimeDir.adopt("vm1", base), /nothing is left to bring\. .* gyges describe --qmp/);
      // A migrate --qmp that died.
      Deno.mkdirSync(`${base}/qemu-1`, { mode: 0o700 });
      Deno.symlinkSync(path, monitorPathIn(`${base}/qemu-1`));
      using _claimed = await RuntimeDir.claim("qemu-1", base);
    }
    using claimed = await RuntimeDir.claim("vm1", base);
    assert.ok(claimed.clearedStale);
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
      JSON.stringify({ pid: holder.pid }),
    );
    await assert.rejects(() => RuntimeDir.claim("vm1", base), new RegExp(`process ${holder.pid} has it`));
    assert.deepEqual(listRunning(base), [{ name: "vm1", pid: holder.pid }]);
    holder.kill("SIGKILL");
    await holder.status;
    await reader.cancel();
    await holder.stdin.close();
    assert.deepEqual(listRunning(base), []);
    using claimed = await RuntimeDir.claim("vm1", base);
    assert.equal(claimed.clearedStale, true);
  } finally {
    Deno.removeSync(base, { recursive: true });
  }
});
