/** By what pages come again once a lost link is back: by RDMA as before, or over TCP where RDMA does not come back. */
import type { SourcePager, TransportOffer } from "../pager/pager.ts";
import type { MessageOf } from "../wire/messages.ts";
import type { SourceAccount } from "./source_account.ts";

/** What a source that comes back says of it. */
export type Way = Pick<MessageOf<"hello">, "rdma" | "pages">;

/** A link that has just been healed may fail once more, and RDMA is worth some seconds. */
const RDMA_TRIES = 3;

export class WayBack {
  readonly #pager: Pick<SourcePager, "kind">;
  readonly #account: Pick<SourceAccount, "settled">;
  readonly #warn: (detail: string) => void;
  /** How often the destination was told to connect by RDMA, one after the other, and has not gone on. */
  #fruitless = 0;

  constructor(
    pager: Pick<SourcePager, "kind">,
    account: Pick<SourceAccount, "settled">,
    warn: (detail: string) => void,
  ) {
    this.#pager = pager;
    this.#account = account;
    this.#warn = warn;
  }

  /** `prepare`: that of the pager, with what it was given first. */
  async next(prepare: () => Promise<TransportOffer>): Promise<Way> {
    const { settled } = this.#account;
    const mayGoOverTcp = this.#pager.kind === "user" && settled.pager === "user";
    if (settled.transport === "rdma" && (this.#fruitless < RDMA_TRIES || !mayGoOverTcp)) {
      const { rdma } = await prepare();
      if (rdma) return { rdma };
      if (!mayGoOverTcp) return {};
    }
    if (settled.transport === "rdma") this.#warn("RDMA has not come back: pages go over TCP from here on");
    this.#account.settled = { ...settled, transport: "tcp" };
    return { pages: "tcp" };
  }

  /** The destination has been told of `way`. */
  tried({ rdma }: Way): void {
    if (rdma) this.#fruitless++;
  }

  /** It has gone on. */
  taken(): void {
    this.#fruitless = 0;
  }
}
