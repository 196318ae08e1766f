/** What the source still has to tell, or to find out, when the control connection is gone. */
import { NativeError } from "../../ffi/native_error.ts";
import { HandshakeError } from "../errors.ts";
import type { Ticket } from "../wire/ticket.ts";
import { openControl } from "./link.ts";
import { DEADLINE_MS, pause } from "./timing.ts";

/** Refusals must go on for so long before they count as proof. */
const REFUSED_MS = 3_000;

/** Between two tries, once the operator would have been asked. */
const SELDOM_MS = 5_000;

/**
 * Tells a destination that may have the machine, and then waits in doubt however long, that its guest runs at the source.
 * Resolves when it was told, or is there no more. Never throws.
 */
export async function tellGivenUp(ticket: Ticket, session: string): Promise<void> {
  const startedAt = performance.now();
  for (;;) {
    try {
      const { peer } = await openControl(ticket, { session });
      using _ = peer;
      return await peer.send({ type: "failed", message: "the source gave up" });
    } catch (error) {
      // Another key: somebody else listens there now.
      if (isRefusal(error) || (error instanceof HandshakeError && error.field === "ticket")) return;
      await pause(performance.now() - startedAt > DEADLINE_MS.reconnect ? SELDOM_MS : DEADLINE_MS.retry);
    }
  }
}

function isRefusal(error: unknown): boolean {
  return error instanceof NativeError && error.code === "ECONNREFUSED";
}

/**
 * Tells a destination that is gone from one that cannot be reached. The process that holds the guest listens for as
 * long as pages are missing, so an address that answers, and says for seconds on end that nobody listens, speaks of a
 * process that has ended. Silence, or any other answer in between, proves nothing.
 */
export class GoneWatch {
  #since: number | null = null;

  /** Takes the outcome of a try to connect; true once the destination's process is known to have ended. */
  saw(error: unknown, now: number = performance.now()): boolean {
    if (!isRefusal(error)) this.#since = null;
    else this.#since ??= now;
    return this.#since !== null && now - this.#since >= REFUSED_MS;
  }
}
