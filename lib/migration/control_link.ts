/** The destination's control connections: the one that it has, and those of a source that comes back. */
import type { Message, Rendezvous } from "../wire/messages.ts";
import type { Peer } from "../wire/peer.ts";

/** Longer than any migration. */
const EVER_MS = 86_400_000;

/** A control connection after the commit point, with the one message that its source still has to say. */
export interface ControlLink {
  peer: Peer;
  /** Resolves, never rejects, once `message` or `error` is there. */
  settled: Promise<void>;
  message: Message | null;
  error: unknown;
}

export function listen(peer: Peer): ControlLink {
  const link: ControlLink = { peer, settled: Promise.resolve(), message: null, error: null };
  link.settled = peer.receive(EVER_MS).then(
    ({ message }) => {
      link.message = message;
    },
    (error) => {
      link.error = error;
    },
  );
  return link;
}

/** A control connection of a source that has come back. */
export interface Resumption {
  peer: Peer;
  /** Where it can be reached by RDMA now. */
  rdma: Rendezvous | null;
  /** It serves pages over TCP, whatever they came by. */
  overTcp: boolean;
}

/** Sources that come back, and whoever waits for one. */
export class Returns {
  readonly #waiting: ((back: Resumption) => void)[] = [];

  /** Whether one would be taken up. */
  get awaited(): boolean {
    return this.#waiting.length > 0;
  }

  /** Takes the connection over. */
  add(back: Resumption): void {
    const waiting = this.#waiting.shift();
    if (waiting) waiting(back);
    else back.peer[Symbol.dispose]();
  }

  /** The next one; null once `enough` has resolved. */
  async next(enough?: Promise<void>): Promise<Resumption | null> {
    const next = Promise.withResolvers<Resumption | null>();
    this.#waiting.push(next.resolve);
    void enough?.then(() => next.resolve(null));
    const back = await next.promise;
    if (!back) this.#waiting.splice(this.#waiting.indexOf(next.resolve), 1);
    return back;
  }
}
