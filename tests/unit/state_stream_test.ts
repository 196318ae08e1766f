/** QEMU's state by its stream, where QEMU refuses, fails, says nothing, or is not read to the end. */
import assert from "node:assert/strict";
import * as v from "valibot";
import { QmpCommandError, type QmpEvent } from "../../lib/qemu/qmp.ts";
import { takeState } from "../../lib/qemu/state_stream.ts";

type Look = { status?: string; "error-desc"?: string };

/** A QEMU that answers `migrate` with `answer` and tells of its migration what `looks` have, one after the other. */
class FakeQemu {
  readonly asked: string[] = [];
  readonly #answer: () => Promise<unknown>;
  readonly #looks: Look[];
  #listeners = 0;
  tell: (event: QmpEvent) => void = () => {};

  constructor(answer: () => Promise<unknown>, looks: Look[] = []) {
    this.#answer = answer;
    this.#looks = looks;
  }

  call(command: string): Promise<unknown> {
    this.asked.push(command);
    return this.#answer();
  }

  listen(listener: (event: QmpEvent) => void): Disposable {
    this.#listeners++;
    this.tell = listener;
    return { [Symbol.dispose]: () => void this.#listeners-- };
  }

  get listeners(): number {
    return this.#listeners;
  }

  ask<T extends v.GenericSchema>(schema: T, command: string): Promise<v.InferOutput<T>> {
    this.asked.push(command);
    return Promise.resolve(v.parse(schema, this.#looks.length > 1 ? this.#looks.shift() : this.#looks[0]));
  }
}

/** Its end of a stream, and ours. */
async function streams(): Promise<{ theirs: Deno.UnixConn; ours: Deno.UnixConn }> {
  const folder = await Deno.makeTempDir({ prefix: "gyges-stream-" });
  const path = `${folder}/socket`;
  using listener = Deno.listen({ transport: "unix", path });
  const [theirs, ours] = await Promise.all([Deno.connect({ transport: "unix", path }), listener.accept()]);
  await Deno.remove(folder, { recursive: true });
  return { theirs, ours };
}

const OPTIONS = { timeoutMs: 300, maxBytes: 100 };
const fine = () => Promise.resolve({});

async function taken(qemu: FakeQemu, stream: Deno.UnixConn): Promise<[string, boolean][]> {
  const pieces: [string, boolean][] = [];
  for await (const { bytes, more } of takeState(qemu, { stream, ...OPTIONS })) {
    pieces.push([new TextDecoder().decode(bytes), more]);
  }
  return pieces;
}

Deno.test("takeState() gives what comes, and its end once QEMU has completed", async () => {
  const { theirs, ours } = await streams();
  await theirs.write(new TextEncoder().encode("state"));
  theirs.close();
  const qemu = new FakeQemu(fine, [{ status: "active" }, { status: "completed" }]);
  assert.deepEqual(await taken(qemu, ours), [["state", true], ["", false]]);
  assert.deepEqual(qemu.asked, ["migrate", "query-migrate", "query-migrate"]);
  assert.equal(qemu.listeners, 0);
});

Deno.test("takeState() asks nothing of a QEMU that says itself that it has completed, before or after the last byte", async () => {
  for (const early of [true, false]) {
    const { theirs, ours } = await streams();
    const tell = () => {
      for (const status of ["setup", "active", "completed"]) qemu.tell({ name: "MIGRATION", data: { status } });
    };
    const qemu: FakeQemu = new FakeQemu(() => {
      if (early) tell();
      else setTimeout(tell, 10);
      theirs.close();
      return fine();
    });
    assert.deepEqual(await taken(qemu, ours), [["", false]]);
    assert.deepEqual(qemu.asked, ["migrate"]);
  }
});

Deno.test("takeState() asks a QEMU that says that it has failed why", async () => {
  const { theirs, ours } = await streams();
  const qemu: FakeQemu = new FakeQemu(() => {
    qemu.tell({ name: "MIGRATION", data: { status: "failed" } });
    theirs.close();
    return fine();
  }, [{ status: "failed", "error-desc": "no room" }]);
  await assert.rejects(taken(qemu, ours), /QEMU's migration failed: no room/);
});

Deno.test("takeState() ends at once where QEMU refuses, with its words", async () => {
  const { theirs, ours } = await streams();
  const qemu = new FakeQemu(() => Promise.reject(new QmpCommandError("migrate", "no such thing")));
  const start = performance.now();
  await assert.rejects(taken(qemu, ours), { name: "QmpCommandError", message: /no such thing/ });
  assert.ok(performance.now() - start < OPTIONS.timeoutMs, "it waited for what was refused");
  theirs.close();
});

Deno.test("takeState() tells why QEMU has failed", async () => {
  const { theirs, ours } = await streams();
  theirs.close();
  const qemu = new FakeQemu(fine, [{ status: "failed", "error-desc": "disk on fire" }]);
  await assert.rejects(taken(qemu, ours), { name: "MachineStateError", message: /migration failed: disk on fire/ });
});

Deno.test("takeState() gives up a QEMU that says nothing, and waits until its migration is over", async () => {
  const { theirs, ours } = await streams();
  const qemu = new FakeQemu(fine, [{ status: "active" }, { status: "active" }, { status: "failed" }]);
  await assert.rejects(taken(qemu, ours), {
    name: "MachineStateError",
    message: /sent nothing of its state for 0.3 s/,
  });
  assert.equal(qemu.asked.length, 4);
  theirs.close();
});

Deno.test("takeState() refuses a state that is too large to have no RAM in it", async () => {
  const { theirs, ours } = await streams();
  await theirs.write(new Uint8Array(OPTIONS.maxBytes + 1));
  const qemu = new FakeQemu(fine, [{ status: "failed" }]);
  await assert.rejects(taken(qemu, ours), { name: "MachineStateError", message: /larger than 100 bytes.*guest RAM/ });
  theirs.close();
});

Deno.test("takeState() that is not read to its end waits until QEMU's migration is over", async () => {
  const { theirs, ours } = await streams();
  await theirs.write(new TextEncoder().encode("state"));
  const qemu = new FakeQemu(fine, [{ status: "active" }, { status: "completed" }]);
  for await (const _ of takeState(qemu, { stream: ours, ...OPTIONS })) break;
  assert.deepEqual(qemu.asked, ["migrate", "query-migrate", "query-migrate"]);
  theirs.close();
});
