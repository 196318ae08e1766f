/** The tests' man in the middle passes what comes as it comes, however it is cut into pieces. */
import assert from "node:assert/strict";
import { joined } from "../../lib/bytes.ts";
import { formatTicket, newKey, parseTicket } from "../../lib/wire/ticket.ts";
import { encodeFrame, Wiretap } from "../helpers/wiretap.ts";

/** What stands before the first message: preamble and proof. */
const SECURE = new Uint8Array(72).fill(7);

Deno.test("a message that comes with the end of another, and in pieces, passes whole", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  await using tap = new Wiretap(
    formatTicket({ host: "127.0.0.1", port, name: "x", tls: false, key: newKey() }),
    {},
  );
  const hello = encodeFrame('{"type":"hello","role":"control"}');
  const handover = encodeFrame('{"type":"handover"}');
  const state = encodeFrame('{"type":"state"}', new Uint8Array(100_000).map((_, i) => i));
  const all = joined([SECURE, hello, handover, state]);
  using source = await Deno.connect({ hostname: "127.0.0.1", port: parseTicket(tap.ticket).port });
  using destination = await listener.accept();
  const came = read(destination, all.length);
  // The other end's own, without which the first frame is not relayed.
  await destination.write(SECURE);
  for (const [from, to] of [[0, 200], [200, 60_000], [60_000, 60_001], [60_001, all.length]]) {
    for (let sent = from ?? 0; sent < (to ?? 0);) sent += await source.write(all.subarray(sent, to));
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.deepEqual(await came, all);
});

async function read(connection: Deno.Conn, bytes: number): Promise<Uint8Array> {
  const all = new Uint8Array(bytes);
  let have = 0;
  const late = setTimeout(() => connection.close(), 5_000);
  while (have < bytes) {
    const n = await connection.read(all.subarray(have)).catch(() => null);
    if (n === null) break;
    have += n;
  }
  clearTimeout(late);
  return all.subarray(0, have);
}
