/** Messages over a real connection: order, payloads, nonsense, and every way a wait for one may end. */
import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";
import { Channel, Listener } from "../../ffi/channel.ts";
import { NO_STATS } from "../../lib/migration/stats.ts";
import { MAX_TEXT_BYTES, type Message, PROTOCOL_VERSION } from "../../lib/wire/messages.ts";
import { Peer } from "../../lib/wire/peer.ts";
import { newKey } from "../../lib/wire/ticket.ts";

const PROGRESS: Message = { type: "progress", stats: NO_STATS };
const MESSAGES: Message[] = [
  { type: "hello", protocol: PROTOCOL_VERSION, role: "control" },
  { type: "welcome", session: "s", name: "vm", state: "listening" },
  { type: "accepted", pager: "user", transport: "tcp", why: "words" },
  { type: "round", round: 1, deadline_ms: 0, regions_bytes: 0 },
  { type: "handover", regions_bytes: 24 },
  PROGRESS,
  { type: "complete", stats: NO_STATS, start_ns: 3, guest: { corrupt: 0, verified_pages: 1, largest_stall_ns: 2 } },
  { type: "run" },
];

interface Ends extends Disposable {
  near: Channel;
  far: Channel;
}

/** Two ends of a real connection over loopback. */
async function connected(tls: boolean): Promise<Ends> {
  using listener = await Listener.open("127.0.0.1", 0);
  const options = { key: newKey(), tls, timeoutMs: 5000 };
  const accepted = listener.accept();
  const near = await Channel.connect("127.0.0.1", listener.port, 2000);
  // It speaks first: until then nobody is let in.
  const secured = near.secure(options);
  const far = await accepted;
  if (!far) throw new Error("The listener was closed");
  await Promise.all([secured, far.secure(options)]);
  return {
    near,
    far,
    [Symbol.dispose]() {
      near[Symbol.dispose]();
      far[Symbol.dispose]();
    },
  };
}

for (const tls of [true, false]) {
  Deno.test(`Peer carries every message and its payload, TLS ${tls ? "on" : "off"}`, async () => {
    using ends = await connected(tls);
    const [a, b] = [new Peer(ends.near), new Peer(ends.far)];
    b.maxPayloadBytes = 1 << 20;
    const payload = crypto.getRandomValues(new Uint8Array(65536));
    // Not awaited one by one: the order of the calls is the order on the wire.
    const sent = MESSAGES.map((message, index) => a.send(message, payload.slice(0, index * 1000)));
    for (const [index, message] of MESSAGES.entries()) {
      const received = await b.receive(5000);
      assert.deepEqual(received.message, message);
      assert.deepEqual(received.payload, payload.slice(0, index * 1000));
    }
    await Promise.all(sent);
  });
}

Deno.test("Peer.expect() turns refused and failed into errors, and refuses what it did not expect", async () => {
  using ends = await connected(false);
  const [a, b] = [new Peer(ends.near), new Peer(ends.far)];
  await a.send({ type: "refused", field: "ticket", ours: "theirs to b", theirs: "b's own", message: "words" });
  await assert.rejects(b.expect("welcome", 2000), {
    name: "HandshakeError",
    message: "words",
    field: "ticket",
    ours: "b's own",
    theirs: "theirs to b",
  });
  await a.send({ type: "failed", message: "gave up" });
  await assert.rejects(b.expect("accepted", 2000), { name: "PeerFailedError", message: "gave up" });
  await a.send({ type: "run" });
  await assert.rejects(b.expect("accepted", 2000), {
    name: "ProtocolError",
    message: /Expected "accepted".*got "run"/,
  });
});

Deno.test("Peer.expect() hands over what may pass, and still gives up in time", async () => {
  using ends = await connected(false);
  const [a, b] = [new Peer(ends.near), new Peer(ends.far)];
  const passed: string[] = [];
  const passing = ({ type }: Message) => type === "progress" && passed.push(type) > 0;
  const done: Message = { type: "round_done", round: 1, left_pages: 0, stats: NO_STATS };
  for (const message of [PROGRESS, PROGRESS, done]) await a.send(message);
  assert.deepEqual((await b.expect("round_done", 2000, passing)).message, done);
  assert.deepEqual(passed, ["progress", "progress"]);
  await a.send({ type: "run" });
  await assert.rejects(b.expect("round_done", 2000, passing), { name: "ProtocolError", message: /got "run"/ });
  let open = true;
  const chatter = (async () => {
    for (; open; await pause(20)) await a.send(PROGRESS);
  })();
  await assert.rejects(b.expect("round_done", 300, passing), { code: "ETIMEDOUT" });
  open = false;
  await chatter;
});

const NONSENSE = ["", "{", "null", '"run"', '{"type":"run"', '{"type":"who"}', '{"type":"round","round":-1}', "\0"];

for (const text of NONSENSE) {
  Deno.test(`Peer.receive() refuses ${JSON.stringify(text)}`, async () => {
    using ends = await connected(false);
    const b = new Peer(ends.far);
    await ends.near.send(text, new Uint8Array(0), 2000);
    await assert.rejects(b.receive(2000), { name: "ProtocolError" });
  });
}

Deno.test("Peer.receive() refuses a frame larger than it may be, without taking it", async () => {
  using ends = await connected(false);
  const b = new Peer(ends.far);
  b.maxPayloadBytes = 10;
  const tooLarge = new Uint8Array(MAX_TEXT_BYTES + 11);
  await ends.near.send('{"type":"run"}', tooLarge, 2000).catch(() => {});
  await assert.rejects(b.receive(2000), { name: "NativeError", code: "EMSGSIZE" });
});

Deno.test("Peer.receive() ends when the peer hangs up, at its deadline, and when it is disposed of", async () => {
  {
    using ends = await connected(true);
    const b = new Peer(ends.far);
    await assert.rejects(b.receive(50), { code: "ETIMEDOUT" });
    const waiting = assert.rejects(b.receive(60_000), { code: "ECONNABORTED" });
    ends.near[Symbol.dispose]();
    await waiting;
  }
  using ends = await connected(true);
  const b = new Peer(ends.far);
  const waiting = assert.rejects(b.receive(60_000), { code: "ECONNABORTED" });
  b[Symbol.dispose]();
  await waiting;
  await assert.rejects(b.send({ type: "run" }), { code: "ECONNABORTED" });
});
