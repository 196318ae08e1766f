import assert from "node:assert/strict";
import { ControlClient, ControlError } from "../../lib/control/client.ts";
import { RemoteError } from "../../lib/control/error_event.ts";
import { RuntimeDir } from "../../lib/control/runtime_dir.ts";
import { ControlServer, type Handlers, type ServerLimits } from "../../lib/control/server.ts";
import { EXIT, GygesError, HandshakeError, MigrationError, PreflightError, UsageError } from "../../lib/errors.ts";
import type { GygesEvent } from "../../lib/events.ts";

const NOTE: GygesEvent = { type: "note", level: "info", detail: "hello" };

/** A process named "vm1" that serves `handlers`, and a place for it. */
class Fixture implements AsyncDisposable {
  readonly base: string;
  readonly directory: RuntimeDir;
  readonly server: ControlServer;

  private constructor(base: string, directory: RuntimeDir, server: ControlServer) {
    this.base = base;
    this.directory = directory;
    this.server = server;
  }

  static async start(handlers: Handlers, limits?: ServerLimits): Promise<Fixture> {
    const base = Deno.makeTempDirSync({ prefix: "gyges-control-" });
    const directory = await RuntimeDir.claim("vm1", base);
    return new Fixture(base, directory, new ControlServer(directory.socketPath, handlers, limits));
  }

  connect(): Promise<ControlClient> {
    return ControlClient.connect("vm1", { base: this.base });
  }

  /** Sends raw text and reads what comes back until the server has sent `lines` lines or closed. */
  async raw(text: string, lines: number): Promise<string[]> {
    using socket = await Deno.connect({ transport: "unix", path: this.directory.socketPath });
    const bytes = new TextEncoder().encode(text);
    for (let sent = 0; sent < bytes.length;) sent += await socket.write(bytes.subarray(sent));
    const buffer = new Uint8Array(65536);
    let received = "";
    while (received.split("\n").length <= lines) {
      const n = await socket.read(buffer);
      if (n === null) break;
      received += new TextDecoder().decode(buffer.subarray(0, n));
    }
    return received.split("\n").filter((line) => line !== "");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server[Symbol.asyncDispose]();
    this.directory[Symbol.dispose]();
    Deno.removeSync(this.base, { recursive: true });
  }
}

const echo: Handlers = new Map([["echo", (params) => Promise.resolve(params)]]);

Deno.test("call() answers the handler's result, also for requests side by side", async () => {
  await using fixture = await Fixture.start(echo);
  using client = await fixture.connect();
  const answers = await Promise.all([1, "zwei", { three: [3] }, null, undefined].map((p) => client.call("echo", p)));
  assert.deepEqual(answers, [1, "zwei", { three: [3] }, null, null]);
});

Deno.test("the socket is mode 0600 in a directory of mode 0700", async () => {
  await using fixture = await Fixture.start(echo);
  const mode = (path: string) => (Deno.statSync(path).mode ?? 0) & 0o777;
  assert.equal(mode(fixture.directory.socketPath), 0o600);
  assert.equal(mode(fixture.directory.path), 0o700);
});

Deno.test("call() hands events to onEvent in order before the result", async () => {
  const handlers: Handlers = new Map([["stream", (_params, { emit }) => {
    for (let i = 0; i < 100; i++) emit({ ...NOTE, detail: String(i) });
    return Promise.resolve("end");
  }]]);
  await using fixture = await Fixture.start(handlers);
  using client = await fixture.connect();
  const seen: string[] = [];
  const onEvent = (event: GygesEvent) => void (event.type === "note" && seen.push(event.detail));
  assert.equal(await client.call("stream", {}, { onEvent }), "end");
  assert.deepEqual(seen, Array.from({ length: 100 }, (_, i) => String(i)));
});

Deno.test("call() rejects with the error's own class, code and fields", async () => {
  const errors = [
    new UsageError("no"),
    new PreflightError("Cannot open /dev/kvm", { check: "kvm", remedy: "modprobe kvm" }),
    new HandshakeError("Sizes differ", { field: "ram_bytes", ours: "1", theirs: "2" }),
    new MigrationError("Link lost", {
      phase: "serving",
      guestLocation: "destination-incomplete",
      exitCode: EXIT.linkLost,
    }),
  ];
  const handlers: Handlers = new Map([["fail", (params) => Promise.reject(errors[Number(params)])]]);
  await using fixture = await Fixture.start(handlers);
  using client = await fixture.connect();
  for (const [i, error] of errors.entries()) {
    await assert.rejects(client.call("fail", i), (thrown: unknown) => {
      assert.ok(thrown instanceof GygesError && thrown instanceof error.constructor);
      assert.deepEqual([thrown.message, thrown.exitCode], [error.message, error.exitCode]);
      return true;
    });
  }
});

Deno.test("call() rejects with RemoteError and code 1 for an error that is none of ours", async () => {
  const handlers: Handlers = new Map([["fail", () => Promise.reject(new TypeError("bug"))]]);
  await using fixture = await Fixture.start(handlers);
  using client = await fixture.connect();
  await assert.rejects(client.call("fail"), (error: unknown) => {
    assert.ok(error instanceof RemoteError);
    assert.deepEqual([error.kind, error.message, error.exitCode], ["TypeError", "bug", EXIT.internal]);
    return true;
  });
});

Deno.test("call() refuses a method that is not offered", async () => {
  await using fixture = await Fixture.start(echo);
  using client = await fixture.connect();
  await assert.rejects(client.call("nonsense"), { name: "UsageError", message: /"nonsense"/ });
});

Deno.test("closing the connection aborts the handler's signal", async () => {
  const aborted = Promise.withResolvers<void>();
  const handlers: Handlers = new Map([["wait", (_params, { signal, emit }) => {
    signal.addEventListener("abort", () => aborted.resolve());
    emit(NOTE);
    return aborted.promise;
  }]]);
  await using fixture = await Fixture.start(handlers);
  using client = await fixture.connect();
  const stop = new AbortController();
  const call = client.call("wait", {}, { signal: stop.signal, onEvent: () => stop.abort(new Error("enough")) });
  await assert.rejects(call, /enough/);
  await aborted.promise;
});

Deno.test("call() gives up at its deadline", async () => {
  const handlers: Handlers = new Map([[
    "wait",
    (_params, { signal }) => new Promise((resolve) => signal.addEventListener("abort", resolve)),
  ]]);
  await using fixture = await Fixture.start(handlers);
  using client = await fixture.connect();
  await assert.rejects(client.call("wait", {}, { timeoutMs: 20 }), { name: "ControlError", failure: "silent" });
});

Deno.test("garbage gets an error line and the connection lives on", async () => {
  await using fixture = await Fixture.start(echo);
  const request = JSON.stringify({ id: 7, method: "echo", params: "still here" });
  const garbage = ["not json", "[]", '{"id":-1,"method":"echo"}', '{"id":1}', "\u0000\xff", '"text"'];
  const replies = await fixture.raw(`${garbage.join("\n")}\n${request}\n`, garbage.length + 1);
  assert.equal(replies.length, garbage.length + 1);
  for (const reply of replies.slice(0, -1)) {
    const { id, error } = JSON.parse(reply);
    assert.deepEqual([id, error.type, error.code, error.name], [null, "error", EXIT.usage, "UsageError"]);
  }
  assert.deepEqual(JSON.parse(replies.at(-1) ?? ""), { id: 7, result: "still here" });
});

Deno.test("a line above the bound is told and ends that connection only", async () => {
  await using fixture = await Fixture.start(echo, { maxLineBytes: 1024 });
  const replies = await fixture.raw("x".repeat(2000), 2);
  assert.equal(replies.length, 1);
  assert.match(replies[0] ?? "", /more than 1024 bytes/);
  using client = await fixture.connect();
  assert.equal(await client.call("echo", 1), 1);
});

Deno.test("connections and requests are bounded, with words", async () => {
  const handlers: Handlers = new Map([...echo, [
    "wait",
    (_params, { signal }) => new Promise((resolve) => signal.addEventListener("abort", resolve)),
  ]]);
  await using fixture = await Fixture.start(handlers, { maxConnections: 1, maxRequests: 2 });
  using client = await fixture.connect();
  const waiting = [client.call("wait"), client.call("wait")].map((call) => call.catch(() => "closed"));
  await assert.rejects(client.call("echo"), /2 are under way/);
  using second = await fixture.connect();
  await assert.rejects(second.call("echo"), /1 are open/);
  client[Symbol.dispose]();
  assert.deepEqual(await Promise.all(waiting), ["closed", "closed"]);
});

Deno.test("a caller that does not read is cut off", async () => {
  const done = Promise.withResolvers<void>();
  const handlers: Handlers = new Map([["flood", (_params, { emit, signal }) => {
    const event = { ...NOTE, detail: "x".repeat(10_000) };
    signal.addEventListener("abort", () => done.resolve());
    for (let i = 0; i < 1000; i++) emit(event);
    return done.promise;
  }]]);
  await using fixture = await Fixture.start(handlers, { maxQueuedBytes: 1 << 20 });
  using socket = await Deno.connect({ transport: "unix", path: fixture.directory.socketPath });
  await socket.write(new TextEncoder().encode('{"id":1,"method":"flood"}\n'));
  await done.promise;
});

Deno.test("a call fails as lost when the server goes", async () => {
  const handlers: Handlers = new Map([[
    "wait",
    (_params, { signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason))),
  ]]);
  const fixture = await Fixture.start(handlers);
  using client = await fixture.connect();
  const call = client.call("wait");
  const failed = assert.rejects(call);
  await new Promise((resolve) => setTimeout(resolve, 10));
  await fixture[Symbol.asyncDispose]();
  await failed;
  await assert.rejects(client.call("wait"), (error: unknown) => error instanceof ControlError);
});

Deno.test("closing the server does not wait for a handler that ignores its signal", async () => {
  const never = Promise.withResolvers<void>();
  const fixture = await Fixture.start(new Map([["hang", () => never.promise]]), { closeGraceMs: 20 });
  using client = await fixture.connect();
  const failed = assert.rejects(client.call("hang"), { name: "ControlError", failure: "lost" });
  await new Promise((resolve) => setTimeout(resolve, 10));
  await fixture[Symbol.asyncDispose]();
  await failed;
});

Deno.test("connect() tells absent, stale and silent apart", async () => {
  const base = Deno.makeTempDirSync({ prefix: "gyges-control-" });
  try {
    const failure = (kind: string, exitCode: number) => ({ name: "ControlError", failure: kind, exitCode });
    await assert.rejects(ControlClient.connect("nobody", { base }), failure("absent", EXIT.usage));
    await assert.rejects(ControlClient.connect("../up", { base }), { name: "UsageError" });
    {
      using _claimed = await RuntimeDir.claim("mute", base);
      await assert.rejects(ControlClient.connect("mute", { base }), failure("silent", EXIT.internal));
    }
    Deno.mkdirSync(`${base}/dead`, { mode: 0o700 });
    Deno.writeTextFileSync(`${base}/dead/owner`, '{"pid":1}\n');
    await assert.rejects(ControlClient.connect("dead", { base }), failure("stale", EXIT.usage));
  } finally {
    Deno.removeSync(base, { recursive: true });
  }
});
