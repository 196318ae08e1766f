/** The monitor's client against a fake QEMU: order, events, garbage, silence and sudden ends. */
import assert from "node:assert/strict";
import { byteReader, readLines } from "../../lib/control/lines.ts";
import { QmpClient, QmpCommandError, type QmpEvent, QmpLostError } from "../../lib/qemu/qmp.ts";

const GREETING =
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": []}}';

/** What the fake says to a command: lines, or null to end. */
type Answer = (command: string, id: number) => string[] | null | Promise<string[]>;

class FakeQemu implements AsyncDisposable {
  readonly path = `${Deno.makeTempDirSync({ prefix: "gyges-qmp-" })}/qmp.sock`;
  readonly commands: string[] = [];
  readonly #listener: Deno.UnixListener;
  readonly #serving: Promise<void>;
  #connection: Deno.UnixConn | null = null;

  constructor(greeting: string | null, answer: Answer = () => []) {
    this.#listener = Deno.listen({ transport: "unix", path: this.path });
    this.#serving = this.#serve(greeting, answer);
  }

  async #serve(greeting: string | null, answer: Answer): Promise<void> {
    try {
      const connection = this.#connection = await this.#listener.accept();
      if (greeting === null) return;
      await this.say(greeting);
      for await (const line of readLines(byteReader(connection.readable.getReader()))) {
        const { execute = null, "exec-oob": now = null, id } = JSON.parse(line);
        this.commands.push(execute ?? `${now} now`);
        const said = execute === "qmp_capabilities"
          ? [`{"return": {}, "id": ${id}}`]
          : await answer(execute ?? now, id);
        if (said === null) return connection.close();
        for (const one of said) await this.say(one);
      }
    } catch (error) {
      if (!(error instanceof Error)) throw error;
    }
  }

  /** As a process that is killed. */
  die(): void {
    this.#connection?.close();
  }

  async say(line: string): Promise<void> {
    await this.#connection?.write(new TextEncoder().encode(`${line}\n`));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close();
    try {
      this.#connection?.close();
    } catch {
      // The test closed it.
    }
    await this.#serving;
    Deno.removeSync(this.path.slice(0, this.path.lastIndexOf("/")), { recursive: true });
  }
}

Deno.test("answers are told apart by id, whatever comes between", async () => {
  await using qemu = new FakeQemu(GREETING, (command, id) => {
    if (command === "slow") return [];
    return [
      '{"event": "STOP", "timestamp": {}}',
      `{"return": "late", "id": ${id - 1}}`,
      `{"return": "${command}", "id": ${id}}`,
    ];
  });
  using client = await QmpClient.connect(qemu.path);
  assert.deepEqual(client.version, { major: 7, minor: 2, micro: 22 });
  const events: QmpEvent[] = [];
  client.listen((event) => events.push(event));
  const slow = client.call("slow");
  assert.equal(await client.call("quick"), "quick");
  assert.equal(await slow, "late");
  assert.deepEqual(events.map(({ name }) => name), ["STOP"]);
});

Deno.test("what cannot wait for QEMU's main thread is called out of band, where QEMU takes that", async () => {
  for (const [able, called] of [[false, "migrate-recover"], [true, "migrate-recover now"]] as const) {
    const greeting = able ? GREETING.replace('"capabilities": []', '"capabilities": ["oob"]') : GREETING;
    await using qemu = new FakeQemu(greeting, (_, id) => [`{"return": {}, "id": ${id}}`]);
    using client = await QmpClient.connect(qemu.path);
    await client.callNow("migrate-recover", { uri: "unix:/x" });
    assert.deepEqual(qemu.commands, ["qmp_capabilities", called]);
  }
});

Deno.test("a refusal carries QEMU's words", async () => {
  await using qemu = new FakeQemu(GREETING, (_, id) => [
    `{"error": {"class": "GenericError", "desc": "Guest is waiting for an incoming migration"}, "id": ${id}}`,
  ]);
  using client = await QmpClient.connect(qemu.path);
  await assert.rejects(client.call("migrate"), (error: unknown) => {
    assert.ok(error instanceof QmpCommandError);
    assert.match(error.message, /"migrate": Guest is waiting/);
    return true;
  });
});

Deno.test("silence ends in time, and says that the monitor serves one client", async () => {
  await using qemu = new FakeQemu(null);
  await assert.rejects(QmpClient.connect(qemu.path), (error: unknown) => {
    assert.ok(error instanceof QmpLostError);
    assert.match(error.message, /one monitor client at a time.*second monitor/);
    return true;
  });
});

Deno.test("a command without an answer ends in time", async () => {
  await using qemu = new FakeQemu(GREETING);
  using client = await QmpClient.connect(qemu.path);
  await assert.rejects(client.call("stop", {}, 50), /has not answered "stop"/);
});

Deno.test("what is no QMP is named, and everything that waits hears of it", async () => {
  for (const garbage of ["220 mail.example.org ESMTP", "{}", '{"return": 1, "id": "x"}', "[]", "null"]) {
    await using qemu = new FakeQemu(GREETING, () => [garbage]);
    using client = await QmpClient.connect(qemu.path);
    await assert.rejects(client.call("query-status"), /does not speak QMP|is gone/, garbage);
    await assert.rejects(client.call("query-status"), QmpLostError);
  }
});

Deno.test("the end of QEMU is told to whoever waits, and by `closed`", async () => {
  await using qemu = new FakeQemu(GREETING, () => null);
  using client = await QmpClient.connect(qemu.path);
  await assert.rejects(client.call("quit"), QmpLostError);
  assert.match((await client.closed).message, /is gone/);
});

Deno.test("commands that are still being sent when QEMU dies are refused, and nothing else happens", async () => {
  const never = Promise.withResolvers<string[]>();
  await using qemu = new FakeQemu(GREETING, () => never.promise);
  using client = await QmpClient.connect(qemu.path);
  // It reads nothing more while it is busy with this, so the next fills the socket.
  const first = client.call("slow");
  const second = client.call("long", { text: "x".repeat(4 << 20) });
  const refused = Promise.all([first, second].map((call) => assert.rejects(call, QmpLostError)));
  while (qemu.commands.at(-1) !== "slow") await new Promise((resolve) => setTimeout(resolve, 5));
  qemu.die();
  await refused;
  never.resolve([]);
});

Deno.test("nobody there is named with what to give", async () => {
  await assert.rejects(QmpClient.connect("/nowhere/qmp.sock"), /-qmp unix:PATH/);
});

Deno.test("a monitor for which more wait than it takes is explained like one that somebody has", async () => {
  const folder = Deno.makeTempDirSync({ prefix: "gyges-qmp-" });
  const path = `${folder}/qmp.sock`;
  const waiting: Deno.UnixConn[] = [];
  try {
    using _listener = Deno.listen({ transport: "unix", path });
    const isFull = () =>
      Deno.connect({ transport: "unix", path }).then((one) => waiting.push(one) > 10_000, () => true);
    while (!await isFull());
    await assert.rejects(QmpClient.connect(path), { name: "QmpLostError", message: /one monitor client at a time/ });
  } finally {
    for (const one of waiting) one.close();
    Deno.removeSync(folder, { recursive: true });
  }
});
