/** The destination's choice of pager and transport: it tries what may work, the best first, by doing it. */
import { NativeError } from "../../ffi/native_error.ts";
import { PageSet } from "../../ffi/page_set.ts";
import { PAGE_BYTES } from "../../ffi/ram.ts";
import { HandshakeError } from "../errors.ts";
import type { Machine } from "../machine/machine.ts";
import type { PagerChoice, Transport } from "../options.ts";
import { noPlan, type Plan, plansFor, whyOf, wordsOf } from "../pager/choose.ts";
import type { DestinationPager, Pager } from "../pager/pager.ts";
import type { MessageOf, WireMachine } from "../wire/messages.ts";

/** sizeof(struct gyges_region), and the fewest pages that an entry of a long table is reckoned to name. */
const REGION_BYTES = 24;
const REGION_PAGES = 64;

export interface SettleOptions {
  choice: PagerChoice;
  build: (shape: WireMachine, pager: Pager) => Promise<Machine>;
}

export interface Settled {
  machine: Machine;
  pager: DestinationPager;
  /** For the operators of both ends. */
  why: string;
}

/**
 * A machine with a pager that is connected. A connection that cannot be made rules its plan out; whatever else fails
 * is this host's lack and is thrown as it is. Throws HandshakeError when no plan is left.
 */
export async function settle(offer: MessageOf<"offer">, options: SettleOptions): Promise<Settled> {
  const { plans, ruledOut } = plansFor(offer, options.choice);
  for (const plan of plans) {
    const result = await attempt(plan, offer, options);
    if (typeof result !== "string") return { ...result, why: whyOf(plan, ruledOut) };
    ruledOut.push(`${wordsOf(plan)}: ${result}`);
  }
  throw noPlan(offer, ruledOut);
}

/** A connected pager, or why it could not connect. */
async function attempt(
  plan: Plan,
  offer: MessageOf<"offer">,
  { build }: SettleOptions,
): Promise<Omit<Settled, "why"> | string> {
  const machine = await build(offer.machine, plan.pager);
  let pager: DestinationPager | null = null;
  try {
    pager = plan.pager.destination(machine, {
      transport: plan.transport,
      bandwidthBytesPerSecond: offer.bandwidth_bytes_per_s,
      prefetch: offer.prefetch,
      prefetchConnections: offer.prefetch_connections,
    });
    const failure = await dial(pager, offer);
    if (failure === null) return { machine, pager };
    await pager[Symbol.asyncDispose]();
    await machine[Symbol.asyncDispose]();
    return failure;
  } catch (error) {
    await pager?.[Symbol.asyncDispose]();
    await machine[Symbol.asyncDispose]();
    throw error;
  }
}

async function dial(pager: DestinationPager, offer: MessageOf<"offer">): Promise<string | null> {
  try {
    await pager.connect(offer.rdma ?? null);
    return null;
  } catch (error) {
    if (error instanceof NativeError) return error.message;
    throw error;
  }
}

/** Throws HandshakeError for what this program cannot move, whatever machine it is. */
export function checkOffer(offer: MessageOf<"offer">): void {
  if (offer.machine.page_bytes !== PAGE_BYTES) {
    throw new HandshakeError(
      `The source moves pages of ${offer.machine.page_bytes} bytes and this side ${PAGE_BYTES}: run the same version`,
      { field: "page_bytes", ours: `${PAGE_BYTES}`, theirs: `${offer.machine.page_bytes}` },
    );
  }
}

/** The largest payload that a source may send: regions, a machine's state, a page set. */
export function payloadBound({ ramBytes, maxStateBytes }: Machine, transport: Transport): number {
  const pages = ramBytes / PAGE_BYTES;
  const regions = transport === "rdma" ? REGION_BYTES * (1 + Math.ceil(pages / REGION_PAGES)) : 0;
  return regions + maxStateBytes + PageSet.encodedBound(pages);
}
