/** The process's own standard streams: writing that never kills it, and how wide they are. */

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
}

const encoder = new TextEncoder();

class StandardStreams implements Terminal {
  #outClosed = false;
  #errClosed = false;

  get outClosed(): boolean {
    return this.#outClosed;
  }

  out(text: string): void {
    if (!this.#outClosed) this.#outClosed = !writeAll(Deno.stdout, text);
  }

  err(text: string): void {
    if (!this.#errClosed) this.#errClosed = !writeAll(Deno.stderr, text);
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
}

/** False when the reader has gone: a closed pipe must not end a process that holds a guest. */
function writeAll(stream: typeof Deno.stdout, text: string): boolean {
  let rest = encoder.encode(text);
  try {
    while (rest.length > 0) rest = rest.subarray(stream.writeSync(rest));
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) return false;
    throw error;
  }
}

export const standardStreams: Terminal = new StandardStreams();
