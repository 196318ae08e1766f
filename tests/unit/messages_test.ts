import assert from "node:assert/strict";
import * as v from "valibot";
import { NO_STATS } from "../../lib/migration/stats.ts";
import { makeSummary } from "../../lib/migration/stats.ts";
import { type Message, messageSchema } from "../../lib/wire/messages.ts";

const SUMMARY = makeSummary({
  mode: "full",
  pager: "kernel",
  transport: "rdma",
  tls: true,
  ramBytes: 1 << 28,
  pageBytes: 4096,
  totalMs: 12.5,
  downtimeMs: 1.25,
  precopyMs: 0,
  precopyRounds: 0,
  stats: NO_STATS,
  guest: { corrupt: 0, verified_pages: 7, largest_stall_ns: 9 },
});

/** One of each kind: a kind without an example does not compile. */
const EXAMPLES: { [T in Message["type"]]: Extract<Message, { type: T }> } = {
  hello: { type: "hello", protocol: 1, role: "control" },
  welcome: { type: "welcome", session: "s", name: "dst", state: "listening" },
  refused: { type: "refused", field: "ticket", ours: "used", theirs: "used again", message: "words" },
  offer: {
    type: "offer",
    mode: "hybrid",
    pager: "user",
    transports: ["rdma", "tcp"],
    machine: {
      kind: "micro",
      ram_bytes: 1 << 28,
      page_bytes: 4096,
      vcpus: 2,
      irqchip: false,
      workload: "zipf",
      write_per_1024: 512,
      working_set_bytes: 0,
      rate_pages_per_s: 0,
      seed: "18446744073709551615",
    },
    bandwidth_bytes_per_s: 125_000_000,
    prefetch: true,
    prefetch_connections: 2,
  },
  accepted: { type: "accepted", pager: "kernel", transport: "rdma", why: "words" },
  round: { type: "round", round: 1, deadline_ms: 1000, regions_bytes: 24 },
  end_round: { type: "end_round" },
  round_done: { type: "round_done", round: 1, left_pages: 0, stats: NO_STATS },
  discard: { type: "discard", regions_bytes: 0 },
  discarded: { type: "discarded", wanted_pages: 3 },
  handover: { type: "handover", regions_bytes: 48 },
  state: { type: "state", more: false },
  loaded: { type: "loaded", missing_pages: 3 },
  run: { type: "run" },
  running: { type: "running" },
  not_run: { type: "not_run", message: "words" },
  progress: { type: "progress", stats: NO_STATS },
  complete: {
    type: "complete",
    stats: NO_STATS,
    start_ns: 3,
    guest: { corrupt: 0, verified_pages: 1, largest_stall_ns: 2 },
  },
  finished: { type: "finished", summary: SUMMARY },
  failed: { type: "failed", message: "words" },
};

function fits(value: unknown): boolean {
  return v.safeParse(messageSchema, value).success;
}

for (const [type, example] of Object.entries(EXAMPLES)) {
  Deno.test(`a "${type}" message is read back as it was sent, and refused with any of its parts missing or wrong`, () => {
    const sent: unknown = JSON.parse(JSON.stringify(example));
    assert.deepEqual(v.parse(messageSchema, sent), example);
    for (const key of Object.keys(example)) {
      const without = { ...example, [key]: undefined };
      assert.ok(!fits(JSON.parse(JSON.stringify(without))), `without ${key}`);
      for (const wrong of [null, [], { a: 1 }, -1, 1.5, "x".repeat(5000), true]) {
        if (typeof wrong === typeof example[key as keyof typeof example] && typeof wrong === "boolean") continue;
        assert.ok(!fits({ ...example, [key]: wrong }), `${key} = ${JSON.stringify(wrong)}`.slice(0, 80));
      }
    }
  });
}

Deno.test("a rendezvous is taken with numeric addresses and a whole token, and with nothing else", () => {
  const rdma = {
    addresses: [{ host: "10.7.0.1", port: 4711 }, { host: "fd00::1", port: 1 }],
    token: "0a".repeat(32),
  };
  for (const message of [EXAMPLES.hello, EXAMPLES.offer]) {
    assert.deepEqual(v.parse(messageSchema, { ...message, rdma }), { ...message, rdma });
    const wrong = [
      { ...rdma, token: "0a".repeat(31) },
      { ...rdma, token: "0A".repeat(32) },
      { ...rdma, addresses: [] },
      { ...rdma, addresses: Array.from({ length: 17 }, () => ({ host: "10.7.0.1", port: 4711 })) },
      { ...rdma, addresses: [{ host: "evil.example", port: 4711 }] },
      { ...rdma, addresses: [{ host: "10.7.0.1", port: 0 }] },
      { addresses: rdma.addresses },
      null,
    ];
    for (const bad of wrong) assert.ok(!fits({ ...message, rdma: bad }), JSON.stringify(bad));
  }
});

Deno.test("messages of no known kind, and values that are no messages, are refused", () => {
  for (const value of [null, 0, "run", [], {}, { type: "RUN" }, { type: "resume" }, [EXAMPLES.run]]) {
    assert.ok(!fits(value), JSON.stringify(value));
  }
});

Deno.test("an offer with a machine out of bounds is refused", () => {
  const { machine } = EXAMPLES.offer;
  for (
    const wrong of [
      { vcpus: 0 },
      { vcpus: 9 },
      { write_per_1024: 1025 },
      { ram_bytes: -4096 },
      { ram_bytes: NaN },
      { ram_bytes: Infinity },
      { workload: "none" },
      { seed: "-1" },
      { seed: "1".repeat(21) },
      { kind: "qemu" },
    ]
  ) {
    assert.ok(!fits({ ...EXAMPLES.offer, machine: { ...machine, ...wrong } }), JSON.stringify(wrong));
  }
});

/** `value` with each of its numbers in turn replaced by `wrong`. */
function* withNumber(value: unknown, wrong: number): Generator<unknown> {
  if (typeof value === "number") yield wrong;
  if (typeof value !== "object" || value === null) return;
  for (const [key, inner] of Object.entries(value)) {
    for (const damaged of withNumber(inner, wrong)) yield { ...value, [key]: damaged };
  }
}

Deno.test("a number that is none, or too large to have come whole, is refused wherever it stands", () => {
  let refused = 0;
  for (const [type, example] of Object.entries(EXAMPLES)) {
    // The summary has times with fractions and rules of its own.
    if (type === "finished") continue;
    for (const wrong of [NaN, Infinity, 2 ** 53, 1e300, -1, 0.5]) {
      for (const damaged of withNumber(example, wrong)) {
        assert.ok(!fits(damaged), JSON.stringify(damaged));
        refused++;
      }
    }
  }
  assert.ok(refused > 200, `${refused}`);
});
