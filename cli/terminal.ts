/**
 * The process's own standard streams: writing that never kills it and never holds it up, and how wide they are.
 *
 * A terminal may stand still for as long as it likes (Ctrl-S, a network connection that hangs), and a reader of a pipe
 * too. What is written waits in this process then, which has a guest to see to.
 */

/** Where `Output` writes; tests put their own in its place. */
export interface Terminal {
  /** To stdout. */
  out(text: string): void;
  /** To stderr. */
  err(text: string): void;
  /** Columns of stderr; null when it is no terminal. */
  columns(): number | null;
  /** Whoever read stdout has gone. */
  readonly outClosed: boolean;
  /** Much of what was written waits for a reader: what can be left out is better not written. */
  readonly isBehind: boolean;
}

/** Of a pipe whose reader has gone, and of a terminal that has been closed. */
const READER_GONE = ["EPIPE", "EIO"];
/** Some minutes of samples. */
const MUCH_BYTES = 65_536;

class StandardStream {
  readonly #stream: typeof Deno.stdout;
  closed = false;
  /** Why something was not written, first of all; null: whatever was not had no reader any more. */
  failure: Error | null = null;

  constructor(stream: typeof Deno.stdout) {
    this.#stream = stream;
  }

  async write(bytes: Uint8Array): Promise<void> {
    try {
      for (let rest = bytes; rest.length > 0 && !this.closed;) rest = rest.subarray(await this.#stream.write(rest));
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      // What comes later may find room again on a disk that is full now.
      if ("code" in error && READER_GONE.includes(String(error.code))) this.closed = true;
      else this.failure ??= error;
    }
  }
}

const encoder = new TextEncoder();

class StandardStreams implements Terminal {
  readonly #out = new StandardStream(Deno.stdout);
  readonly #err = new StandardStream(Deno.stderr);
  /** One for both streams, which are one terminal as often as not. */
  #written = Promise.resolve();
  #waitingBytes = 0;

  get outClosed(): boolean {
    return this.#out.closed;
  }

  get isBehind(): boolean {
    return this.#waitingBytes > MUCH_BYTES;
  }

  out(text: string): void {
    this.#write(this.#out, text);
  }

  err(text: string): void {
    this.#write(this.#err, text);
  }

  columns(): number | null {
    if (!Deno.stderr.isTerminal()) return null;
    try {
      const { columns } = Deno.consoleSize();
      return columns > 0 ? columns : 80;
    } catch (error) {
      // stderr is a terminal but stdout and stdin are not, so its size cannot be asked for.
      if (error instanceof Error) return 80;
      throw error;
    }
  }

  /** Resolves when all is written, or will never be: with what kept some of stdout from being so. */
  async drained(): Promise<Error | null> {
    await this.#written;
    return this.#out.failure;
  }

  #write(stream: StandardStream, text: string): void {
    if (stream.closed) return;
    const bytes = encoder.encode(text);
    this.#waitingBytes += bytes.length;
    this.#written = this.#written.then(() => stream.write(bytes)).finally(() => this.#waitingBytes -= bytes.length);
  }
}

export const standardStreams = new StandardStreams();
