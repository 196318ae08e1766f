/** Which pager and which transport: chosen from what was asked for, what this host can, and what the source offers. */
import { HandshakeError, PreflightError, UsageError } from "../errors.ts";
import type { PagerChoice, PagerKind, Transport } from "../options.ts";
import type { MessageOf } from "../wire/messages.ts";
import { pagerOf, PAGERS } from "./kinds.ts";
import type { Lack, Pager, SourcePager, SourcePagerOptions } from "./pager.ts";
import type { Machine } from "../machine/machine.ts";

/** A pager and a transport that the destination may try. */
export interface Plan {
  pager: Pager;
  transport: Transport;
}

export interface Plans {
  /** The best first; empty: the two ends do not fit. */
  plans: Plan[];
  /** Why each better one is not among them, in words. */
  ruledOut: string[];
}

type Offered = Pick<MessageOf<"offer">, "pager" | "transports" | "rdma" | "no_rdma">;

/** The transports that a pager can use at all, the better first. */
const TRANSPORTS: Readonly<Record<PagerKind, readonly Transport[]>> = {
  kernel: ["rdma"],
  user: ["rdma", "tcp"],
  native: ["tcp"],
};
const NAMES: Readonly<Record<Transport, string>> = { rdma: "RDMA", tcp: "TCP" };

/**
 * The pager that makes the RAM of a new guest here. With "auto" the best of those that have all they need.
 * Throws PreflightError when the one that was asked for has not.
 */
export function chooseRam(choice: PagerChoice, pagers: readonly Pager[] = PAGERS): Pager {
  const lacks: Lack[] = [];
  for (const pager of pagers) {
    if (choice !== "auto" && pager.kind !== choice) continue;
    const lack = lackOf(pager);
    if (!lack) return pager;
    lacks.push(lack);
  }
  const [first] = lacks;
  if (first) throw lacking(choice, first);
  throw lacking(choice, { check: "pager", found: "this build of Gyges does not have it", remedy: "use --pager user" });
}

/** Why no transport of the pager works here; null: one does. */
function lackOf(pager: Pager): Lack | null {
  const lacks = TRANSPORTS[pager.kind].map((transport) => pager.lack(transport));
  return lacks.includes(null) ? null : lacks[0] ?? null;
}

function lacking(choice: PagerChoice, { check, found, remedy }: Lack): PreflightError {
  const what = choice === "auto" ? "any pager" : `the ${choice} pager`;
  return new PreflightError(`Cannot use ${what} here as ${found}`, { check, remedy });
}

/** The source's half for a guest whose RAM is made already. Throws UsageError when another pager was asked for. */
export function sourcePager(choice: PagerChoice, machine: Machine, options: SourcePagerOptions): SourcePager {
  if (choice !== "auto" && choice !== machine.pager) {
    throw new UsageError(
      `Cannot move the guest with --pager ${choice} as its RAM was made for the ${machine.pager} pager: leave --pager ` +
        `out, or give --pager ${choice} to gyges vm start or gyges prepare, which make the RAM`,
    );
  }
  const pager = pagerOf(machine.pager);
  if (!pager) throw new Error(`There is RAM of the ${machine.pager} pager and no such pager`);
  return pager.source(machine, options);
}

/** What the destination may try, given what the source offers. Pure, but for what `pagers` look up. */
export function plansFor(offer: Offered, choice: PagerChoice, pagers: readonly Pager[] = PAGERS): Plans {
  const plans: Plan[] = [];
  const ruledOut: string[] = [];
  for (const pager of pagers) {
    for (const transport of TRANSPORTS[pager.kind]) {
      const why = objection(offer, choice, { pager, transport });
      if (why === null) plans.push({ pager, transport });
      else if (plans.length === 0) ruledOut.push(`${wordsOf({ pager, transport })}: ${why}`);
    }
  }
  return { plans, ruledOut };
}

function objection(offer: Offered, choice: PagerChoice, { pager, transport }: Plan): string | null {
  if (choice !== "auto" && choice !== pager.kind) return `--pager ${choice} was given at the destination`;
  if (offer.pager === "native" && pager.kind !== "native") return "the guest's RAM is private to the source's QEMU";
  if (pager.kind === "native" && offer.pager !== "native") return `the source has the ${offer.pager} pager`;
  if (!offer.transports.includes(transport)) {
    if (transport === "rdma") return `not from the source: ${offer.no_rdma ?? "it does not say why"}`;
    return offer.pager === "kernel" ? "the source's kernel pager moves pages by RDMA only" : "the source wants RDMA";
  }
  if (transport === "rdma" && !offer.rdma) return "the source does not say where it listens";
  if (transport === "tcp" && offer.pager === "kernel") return "the source's kernel pager moves pages by RDMA only";
  const lack = pager.lack(transport);
  return lack && `not at the destination: ${lack.found}: ${lack.remedy}`;
}

/** "the kernel pager over RDMA" */
export function wordsOf({ pager, transport }: { pager: { kind: PagerKind }; transport: Transport }): string {
  return `the ${pager.kind} pager over ${NAMES[transport]}`;
}

/** Why a plan was settled on: what it is, and what was better and did not work. */
export function whyOf(plan: Plan, ruledOut: readonly string[]): string {
  if (plan.pager.kind === "native") {
    return `${wordsOf(plan)}: QEMU's own post-copy, as the guest's RAM is private to QEMU`;
  }
  const proof = plan.transport === "rdma"
    ? "the destination has connected to the source by it; RDMA does not encrypt pages"
    : "page connections like the control connection";
  return [`${wordsOf(plan)}: ${proof}`, ...ruledOut.map((text) => `not ${text}`)].join(". ");
}

/** The refusal when nothing is left to try. */
export function noPlan(offer: Offered, ruledOut: readonly string[]): HandshakeError {
  const theirs = `${offer.pager} pager, ${offer.transports.map((transport) => NAMES[transport]).join(" or ")}`;
  const ours = ruledOut.join(". ");
  return new HandshakeError(`The two ends have no way to move pages in common: ${ours}`, {
    field: "transport",
    ours,
    theirs,
  });
}
