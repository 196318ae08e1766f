import assert from "node:assert/strict";
import { type Way, WayBack } from "../../lib/migration/way_back.ts";
import type { PagerKind, Transport } from "../../lib/options.ts";

const RDMA = { addresses: [{ host: "192.0.2.1", port: 7 }], token: "00".repeat(32) };
const OFFER = { transports: ["rdma" as const], rdma: RDMA, noRdma: "" };
const NO_OFFER = { transports: ["tcp" as const], rdma: null, noRdma: "none here" };

/** A source of `pager` whose destination has settled on `theirs`, by `transport`; and what it has warned of. */
function source(pager: PagerKind, theirs: PagerKind, transport: Transport) {
  const account = { settled: { pager: theirs, transport } };
  const warned: string[] = [];
  return { account, warned, back: new WayBack({ kind: pager }, account, (detail) => void warned.push(detail)) };
}

/** What it says as it comes back `times` times in vain. */
async function inVain(back: WayBack, times: number, offer: typeof OFFER | typeof NO_OFFER = OFFER): Promise<Way[]> {
  const ways: Way[] = [];
  for (let i = 0; i < times; i++) {
    const way = await back.next(() => Promise.resolve(offer));
    back.tried(way);
    ways.push(way);
  }
  return ways;
}

Deno.test("a source comes back by RDMA three times in vain, then over TCP for good, and warns once", async () => {
  const { account, warned, back } = source("user", "user", "rdma");
  const [rdma, tcp] = [{ rdma: RDMA }, { pages: "tcp" }];
  assert.deepEqual(await inVain(back, 5), [rdma, rdma, rdma, tcp, tcp]);
  assert.equal(account.settled.transport, "tcp");
  assert.equal(warned.length, 1);
});

Deno.test("a destination that has gone on by RDMA in between is asked to three times anew", async () => {
  const { back } = source("user", "user", "rdma");
  await inVain(back, 2);
  back.taken();
  assert.ok((await inVain(back, 3)).every(({ rdma }) => rdma));
});

Deno.test("where RDMA is not to be had any more pages go over TCP at once", async () => {
  const { account, back } = source("user", "user", "rdma");
  assert.deepEqual(await inVain(back, 1, NO_OFFER), [{ pages: "tcp" }]);
  assert.equal(account.settled.transport, "tcp");
});

Deno.test("a kernel's pager, at either end, is never taken over TCP", async () => {
  for (const [ours, theirs] of [["kernel", "user"], ["user", "kernel"]] as const) {
    const { account, warned, back } = source(ours, theirs, "rdma");
    assert.ok((await inVain(back, 5)).every(({ rdma, pages }) => rdma && !pages));
    assert.deepEqual(await inVain(back, 1, NO_OFFER), [{}]);
    assert.deepEqual([account.settled.transport, warned], ["rdma", []]);
  }
});

Deno.test("pages that went over TCP go on so, without a word", async () => {
  const { warned, back } = source("user", "user", "tcp");
  assert.deepEqual(await inVain(back, 2), [{ pages: "tcp" }, { pages: "tcp" }]);
  assert.deepEqual(warned, []);
});
