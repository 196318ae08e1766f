/** A TCP proxy before a destination: the link that a test can cut, freeze and heal. */
import { formatTicket, parseTicket } from "../../lib/wire/ticket.ts";

interface Relay {
  sides: [Deno.TcpConn, Deno.TcpConn];
}

export class Proxy implements AsyncDisposable {
  /** The destination's ticket with this proxy's address. */
  readonly ticket: string;
  /** Connections that it took since it was opened. */
  taken = 0;
  readonly #target: { hostname: string; port: number };
  readonly #port: number;
  #listener: Deno.TcpListener | null;
  readonly #relays = new Set<Relay>();
  #pumps: Promise<void>[] = [];
  #open = Promise.withResolvers<void>();

  constructor(ticket: string) {
    const parsed = parseTicket(ticket);
    this.#target = { hostname: parsed.host, port: parsed.port };
    this.#listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    this.#port = this.#listener.addr.port;
    this.ticket = formatTicket({ ...parsed, host: "127.0.0.1", port: this.#port });
    this.#open.resolve();
    this.#pumps.push(this.#accept(this.#listener));
  }

  /** Breaks connections; nobody can connect until `heal()`. @param which by the order in which they were opened */
  cut(which: (index: number) => boolean = () => true): void {
    this.#listener?.close();
    this.#listener = null;
    for (const [index, relay] of [...this.#relays].entries()) {
      if (which(index)) this.#drop(relay);
    }
  }

  /** Bytes are taken and go no further, as on a link that loses every packet; connections stay. */
  freeze(): void {
    this.#open = Promise.withResolvers();
  }

  /** The link works again. */
  heal(): void {
    this.#open.resolve();
    if (this.#listener) return;
    this.#listener = Deno.listen({ hostname: "127.0.0.1", port: this.#port });
    this.#pumps.push(this.#accept(this.#listener));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    this.#open.resolve();
    await Promise.all(this.#pumps);
  }

  async #accept(listener: Deno.TcpListener): Promise<void> {
    try {
      for await (const near of listener) {
        const far = await Deno.connect(this.#target).catch(() => null);
        if (!far) {
          near.close();
          continue;
        }
        this.taken++;
        for (const side of [near, far]) side.setNoDelay(true);
        const relay: Relay = { sides: [near, far] };
        this.#relays.add(relay);
        this.#pumps.push(this.#pump(relay, near, far), this.#pump(relay, far, near));
      }
    } catch (error) {
      if (!isClosed(error)) throw error;
    }
  }

  async #pump(relay: Relay, from: Deno.TcpConn, to: Deno.TcpConn): Promise<void> {
    const buffer = new Uint8Array(65536);
    try {
      for (let n = await from.read(buffer); n !== null; n = await from.read(buffer)) {
        await this.#open.promise;
        for (let sent = 0; sent < n;) sent += await to.write(buffer.subarray(sent, n));
      }
    } catch (error) {
      if (!isClosed(error)) throw error;
    } finally {
      this.#drop(relay);
    }
  }

  #drop(relay: Relay): void {
    if (!this.#relays.delete(relay)) return;
    for (const side of relay.sides) {
      try {
        side.close();
      } catch (error) {
        if (!isClosed(error)) throw error;
      }
    }
  }
}

function isClosed(error: unknown): boolean {
  return error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted ||
    error instanceof Deno.errors.ConnectionReset || error instanceof Deno.errors.BrokenPipe ||
    error instanceof Deno.errors.ConnectionAborted || error instanceof Deno.errors.NotConnected;
}
