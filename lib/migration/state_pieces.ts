/** A machine's state, as its source saves it. */
import type { StatePiece } from "../machine/machine.ts";
import { type Peer, ProtocolError } from "../wire/peer.ts";
import { DEADLINE_MS } from "./timing.ts";

/**
 * What `first`, the first of the messages that bring it, and the others have. Throws where it cannot be right. Who reads on
 * no more has the rest read: its source can then be told why, and does not find the connection closed.
 */
export async function* statePieces(
  peer: Pick<Peer, "expect">,
  first: StatePiece,
  maxBytes: number,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  let { bytes, more } = first;
  let length = bytes.length;
  const next = async () => {
    more = false;
    const { message, payload } = await peer.expect("state", DEADLINE_MS.handover);
    [bytes, more] = [payload, message.more];
    length += bytes.length;
  };
  try {
    for (;;) {
      if (length > maxBytes) {
        throw new ProtocolError(`The source sends ${length} bytes of state or more, and ${maxBytes} can be right`);
      }
      yield bytes;
      if (!more) return;
      await next();
    }
  } finally {
    while (more && length <= maxBytes) await next().catch(() => {});
  }
}
