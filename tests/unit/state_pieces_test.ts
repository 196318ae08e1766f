/** A machine's state in pieces: whole, too long, cut short by its source, and not wanted any more. */
import assert from "node:assert/strict";
import { statePieces } from "../../lib/migration/state_pieces.ts";
import type { MessageOf, MessageType } from "../../lib/wire/messages.ts";
import { type Peer, PeerFailedError, type Received } from "../../lib/wire/peer.ts";

type Said = { bytes: Uint8Array<ArrayBuffer>; more: boolean } | Error;

/** A source that has said all this, and then nothing. */
class Source implements Pick<Peer, "expect"> {
  readonly left: Said[];

  constructor(said: readonly Said[]) {
    this.left = [...said];
  }

  expect<T extends MessageType>(type: T): Promise<Received<MessageOf<T>>> {
    const said = this.left.shift() ?? new Error("nothing more was said");
    if (said instanceof Error) return Promise.reject(said);
    const message: unknown = { type, more: said.more };
    return Promise.resolve({ message: message as MessageOf<T>, payload: said.bytes });
  }
}

const piece = (text: string, more: boolean) => ({ bytes: new TextEncoder().encode(text), more });
const MAX_BYTES = 10;

async function read(source: Source, wanted = Infinity): Promise<string> {
  let text = "";
  for await (const bytes of statePieces(source, piece("one ", true), MAX_BYTES)) {
    text += new TextDecoder().decode(bytes);
    if (--wanted <= 0) break;
  }
  return text;
}

Deno.test("statePieces() gives what every message has, to the last, and takes no other", async () => {
  const source = new Source([piece("two ", true), piece("", false), piece("not of it", false)]);
  assert.equal(await read(source), "one two ");
  assert.equal(source.left.length, 1);
});

Deno.test("statePieces() refuses what is longer than it can be, and reads no more of it", async () => {
  const source = new Source([piece("much more", true), piece("and more", true), piece("", false)]);
  await assert.rejects(read(source), { name: "ProtocolError", message: /sends 13 bytes of state or more, and 10 can/ });
  assert.equal(source.left.length, 2);
});

Deno.test("statePieces() ends with what the source says instead", async () => {
  const source = new Source([new PeerFailedError("gave up"), piece("", false)]);
  await assert.rejects(read(source), { name: "PeerFailedError", message: "gave up" });
  assert.equal(source.left.length, 1);
});

Deno.test("statePieces() reads the rest where nobody wants it, so that its source can be told why", async () => {
  const source = new Source([piece("two", true), piece("", false), piece("an answer", false)]);
  assert.equal(await read(source, 1), "one ");
  assert.equal(source.left.length, 1);
  const endless = new Source(Array.from({ length: 20 }, () => piece("abc", true)));
  await read(endless, 1);
  assert.ok(endless.left.length > 10, "it would read for ever");
  const silent = new Source([]);
  assert.equal(await read(silent, 1), "one ");
});
