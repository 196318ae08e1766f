/** Every deadline of a migration, in milliseconds. */
import { UsageError } from "../errors.ts";

const RECONNECT_S = "GYGES_RECONNECT_S";

export const DEADLINE_MS = {
  /** TCP connection to the destination. */
  connect: 5_000,
  /** Key exchange, then the first message, on a new connection. */
  secure: 5_000,
  /** Any answer before the commit point that needs no pages. */
  answer: 10_000,
  /** Building the machine and trying the ways to move pages, each of which may take seconds to fail. */
  settle: 30_000,
  /** Loading the machine at the destination: the guest stands still meanwhile, here, and runs on here after it. */
  handover: 5_000,
  /** Stopping all vCPUs; they answer in less than one, unless the host is starved. */
  stop: 2_000,
  /** A destination that says nothing for so long after the commit point has lost its link. */
  silence: 5_000,
  /** A source that says nothing, and of whose pages none has come by RDMA for so long, is lost. */
  stall: 10_000,
  /** Reconnection is tried for so long before the operator is asked; $GYGES_RECONNECT_S overrides. */
  reconnect: reconnectMs(),
  /** For telling a source whose link broke with the guest that the guest is lost: several tries, on a busy host too. */
  tellLoss: 5_000,
  /** Pause before a machine that could not be run is tried again. */
  runAgain: 500,
  /** Pause between two tries. */
  retry: 250,
} as const;

/** How often the destination reports after the commit point. */
export const PROGRESS_MS = 250;

/** A timer that is cleared when it goes out of scope, so that it keeps no process alive. */
export function delay(ms: number): Disposable & { promise: Promise<void> } {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  return { promise, [Symbol.dispose]: () => clearTimeout(timer) };
}

/** Resolves after `ms`, or once `signal` aborts. */
export async function pause(ms: number, signal?: AbortSignal): Promise<void> {
  using timer = delay(ms);
  const aborted = Promise.withResolvers<void>();
  const onAbort = () => aborted.resolve();
  signal?.addEventListener("abort", onAbort, { once: true });
  if (signal?.aborted) onAbort();
  await Promise.race([timer.promise, aborted.promise]);
  signal?.removeEventListener("abort", onAbort);
}

/** Throws UsageError for an environment that cannot be read. */
function reconnectMs(): number {
  const text = Deno.env.get(RECONNECT_S) ?? "30";
  if (!/^[1-9]\d{0,4}$/.test(text)) {
    throw new UsageError(`Cannot read ${RECONNECT_S}="${text}": it must be whole seconds, 1 to 99999`);
  }
  return Number(text) * 1000;
}
