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
/** A pipe that takes anything takes so much; a terminal as good as always. */
const PIECE_BYTES = 1024;
/** Some minutes of samples. */
const MUCH_BYTES = 65_536;
/** Between two looks at whether what waits is taken. */
const LOOK_MS = 50;

class StandardStream {
  readonly #stream: typeof Deno.stdout;
  readonly fd: number;
  closed = false;
  /** Why something was not written, first of all; null: whatever was not had no reader any more. */
  failure: Error | null = null;

  constructor(stream: typeof Deno.stdout, fd: number) {
    this.#stream = stream;
    this.fd = fd;
  }

  /** How many of `bytes` are done with. */
  write(bytes: Uint8Array): number {
    try {
      return this.closed ? bytes.length : this.#stream.writeSync(bytes);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      // What comes later may find room again on a disk that is full now.
      if ("code" in error && READER_GONE.includes(String(error.code))) this.closed = true;
      else this.failure ??= error;
      return bytes.length;
    }
  }
}

const encoder = new TextEncoder();

class StandardStreams implements Terminal {
  readonly #out = new StandardStream(Deno.stdout, 1);
  readonly #err = new StandardStream(Deno.stderr, 2);
  /** For both streams in turn, which are one terminal as often as not. */
  readonly #waiting: { stream: StandardStream; bytes: Uint8Array }[] = [];
  #waitingBytes = 0;
  #takes: ((fd: number) => boolean) | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;

  get outClosed(): boolean {
    return this.#out.closed;
  }

  get isBehind(): boolean {
    return this.#waitingBytes > MUCH_BYTES;
  }

  /** From here on nothing is written that a stream does not take at once, as `takes` knows; it waits. */
  neverWait(takes: (fd: number) => boolean): void {
    this.#takes = takes;
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

  /** Writes all that still waits, however long that takes; answers what kept some of stdout from being written. */
  drain(): Error | null {
    this.#takes = null;
    this.#pump();
    return this.#out.failure;
  }

  #write(stream: StandardStream, text: string): void {
    const bytes = encoder.encode(text);
    this.#waiting.push({ stream, bytes });
    this.#waitingBytes += bytes.length;
    if (this.#timer === undefined) this.#pump();
  }

  /** Writes what is taken. */
  #pump(): void {
    // Deno takes 4 ms to have timers at all.
    if (this.#timer !== undefined) clearTimeout(this.#timer);
    this.#timer = undefined;
    for (let [first] = this.#waiting; first; [first] = this.#waiting) {
      if (this.#takes?.(first.stream.fd) === false) {
        this.#timer = setTimeout(() => this.#pump(), LOOK_MS);
        return;
      }
      const done = first.stream.write(this.#takes ? first.bytes.subarray(0, PIECE_BYTES) : first.bytes);
      this.#waitingBytes -= done;
      first.bytes = first.bytes.subarray(done);
      if (first.bytes.length === 0) this.#waiting.shift();
    }
  }
}

export const standardStreams = new StandardStreams();
