/** Whoever connects to a source by RDMA and is no destination gets nothing, and a move goes on meanwhile. */
import assert from "node:assert/strict";
import { KERNELS, type Lab, labTest } from "./lab.ts";
import { account, inPostcopy, move, prepareAt, proveWhole, startGuest } from "./moves.ts";
import { arm, join, type Joined, proveComplete, STAMP } from "./ram.ts";

const LAB = { rdma: true, gyges: true } as const;
const PAGES = 2048;
const PAGE_BYTES = 4096;
const TIMES = 200;

/** struct gyges_cm_request. */
interface Request {
  magic: number;
  version: number;
  role: number;
  token: string;
  reserved: bigint;
}
const DEMAND = 1;
const PREFETCH = 2;

function request(token: string, changes: Partial<Request> = {}): string {
  const { magic, version, role, reserved, ...rest } = {
    ...{ magic: 0x4d435947, version: 1, role: DEMAND, reserved: 0n, token },
    ...changes,
  };
  const data = new DataView(new ArrayBuffer(48));
  data.setUint32(0, magic, true);
  data.setUint16(4, version, true);
  data.setUint16(6, role, true);
  new Uint8Array(data.buffer).set(new TextEncoder().encode(rest.token), 8);
  data.setBigUint64(40, reserved, true);
  return new Uint8Array(data.buffer).toHex();
}

/** What a stranger in host 2 has to say of a source in host 1. */
class Strangers {
  readonly #lab: Lab;
  readonly #command: string;

  private constructor(lab: Lab, command: string) {
    this.#lab = lab;
    this.#command = command;
  }

  static async of(lab: Lab, port: string): Promise<Strangers> {
    return new Strangers(lab, `${await lab.program("stranger")} ${lab.host(1).address} ${port}`);
  }

  async say(data: string, what = ""): Promise<string> {
    return (await this.#lab.host(2).ask(`${this.#command} '${data}' ${what}`, { timeoutMs: 120_000 })).trim();
  }

  /** One that is let in and then does nothing. */
  async idle(data: string): Promise<void> {
    const { stdout } = this.#lab.host(2).start(`exec ${this.#command} '${data}' idle`);
    const reader = stdout.getReader();
    assert.equal(new TextDecoder().decode((await reader.read()).value), "connected\n");
    await reader.cancel();
  }
}

/** `token` but for one bit is right, or is as good as any. */
async function proveRefused(strangers: Strangers, token: string): Promise<void> {
  const right = request(token);
  const wrong = request(`${token.slice(0, -1)}${token.endsWith("f") ? "g" : "f"}`);
  const refused = {
    "nothing": "",
    "a wrong token": wrong,
    "half of a token": right.slice(0, 48),
    "another magic": request(token, { magic: 1 }),
    "another version": request(token, { version: 2 }),
    "no role": request(token, { role: 4 }),
    "reserved bits": request(token, { reserved: 1n }),
    "all that fits": "ff".repeat(56),
  };
  for (const [what, data] of Object.entries(refused)) assert.equal(await strangers.say(data), "refused", what);
  assert.equal(await strangers.say(wrong, `times ${TIMES}`), `connected=0 refused=${TIMES}`);
}

/** The first entry of a table of regions. */
function firstRegion(table: string): { addr: bigint; pages: number; rkey: number } {
  const data = new DataView(Uint8Array.fromHex(table).buffer);
  return { addr: data.getBigUint64(8, true), pages: data.getUint32(16, true), rkey: data.getUint32(20, true) };
}

/** Who knows the token may READ what is offered: nothing else, and nothing beside it. */
async function proveReadOnly(strangers: Strangers, { source, token }: Joined): Promise<void> {
  const data = request(token, { role: PREFETCH });
  const { addr, pages, rkey } = firstRegion(await source.do("regions"));
  const bytes = BigInt(pages * PAGE_BYTES);
  const can = (what: string, at: bigint, key: number) => strangers.say(data, `${what} ${at} ${key}`);
  assert.equal(await can("read", addr, rkey), "success", "the control: this is how it is READ");
  assert.equal(await can("write", addr, rkey), "remote access error");
  assert.equal(await can("read", addr + bytes, rkey), "remote access error");
  assert.equal(await can("read", addr + bytes - 8n, rkey), "remote access error");
  assert.equal(await can("read", addr - BigInt(PAGE_BYTES), rkey), "remote access error");
  assert.equal(await can("read", addr, rkey ^ 1), "remote access error");
}

for (const kernel of KERNELS) {
  labTest(
    "the kernel pager's export lets in who knows the token, to READ what is offered",
    { kernel, ...LAB },
    async (lab) => {
      const joined = await join(lab, { pages: PAGES });
      const { source, destination, port, token } = joined;
      const strangers = await Strangers.of(lab, port);
      await destination.do(`prefetch on 1 0 ${512 << 10}`);
      await arm(destination, "all");
      await destination.do("run");
      await strangers.idle(request(token, { role: PREFETCH }));
      await proveReadOnly(strangers, joined);
      const figures = await destination.figures("stats");
      assert.ok((figures.missing_pages ?? 0) > 0, "the move is over before the strangers are");
      const words = await strangers.say(request(token, { role: PREFETCH }), `times ${TIMES}`);
      assert.match(words, /^connected=[1-9]/);
      await proveRefused(strangers, token);
      await proveComplete(destination, PAGES);
      const whole = { right: PAGES, zero: 0, wrong: 0, first_bad: -1 };
      assert.deepEqual(await source.figures(`check all ${STAMP}`), whole);
      assert.deepEqual(await destination.figures(`check all ${STAMP}`), whole);
      await lab.host(2).run("killall stranger");
      await source.remove();
      await destination.remove();
    },
  );
}

labTest(
  "the user pager's source refuses who does not know the token, and its move goes on",
  { kernel: "6.12", ...LAB },
  async (lab) => {
    const [one, two] = [lab.host(1), lab.host(2)];
    const [guest, there] = await Promise.all([
      startGuest(one, ["--pager", "user", "--ram", "16M"]),
      prepareAt(two, "there", ["--pager", "user"]),
    ]);
    const migrate = move(one, guest, there, ["--mode", "full", "--transport", "rdma", "--bandwidth", "4Mbit"]);
    await inPostcopy(migrate, there);
    const [, port = ""] = / state LISTEN .* src-addr \S+:(\d+) /.exec(await one.ask("rdma resource show cm_id")) ?? [];
    await proveRefused(await Strangers.of(lab, port), "0123456789abcdef0123456789abcdef");
    assert.ok(migrate.running, "the move is over before the strangers are");
    const summary = await account("strangers at the source", guest, there, migrate);
    await proveWhole(there, summary);
  },
);
