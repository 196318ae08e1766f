/** Lines of UTF-8 text out of a byte stream, bounded. */
import { joined } from "../bytes.ts";

/** Longest line that either end of a control socket accepts, without its newline. */
export const MAX_LINE_BYTES = 1 << 20;

/** A line grew past the bound: the stream cannot be followed any further. */
export class LineTooLongError extends Error {
  override readonly name = "LineTooLongError";

  constructor(maxBytes: number) {
    super(`Cannot read a line of more than ${maxBytes} bytes: send a shorter one`);
  }
}

/** Where lines come from: a connection, a file. */
export interface ByteReader {
  /** Bytes put at the start of `into`; null at the end. */
  read(into: Uint8Array): Promise<number | null>;
}

/**
 * Lines of `reader` without their newlines; a last line without one counts too. Bytes that are not UTF-8 become U+FFFD
 * (and so fail as JSON). Throws LineTooLongError when a line is longer than `maxBytes`. The reader stays open.
 */
export async function* readLines(reader: ByteReader, maxBytes: number = MAX_LINE_BYTES): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  const buffer = new Uint8Array(65536);
  let parts: Uint8Array[] = [];
  let length = 0;
  for (let n = await reader.read(buffer); n !== null; n = await reader.read(buffer)) {
    const chunk = buffer.slice(0, n);
    let start = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, start)) {
      length += end - start;
      if (length > maxBytes) throw new LineTooLongError(maxBytes);
      parts.push(chunk.subarray(start, end));
      yield decoder.decode(joined(parts));
      parts = [];
      length = 0;
      start = end + 1;
    }
    length += chunk.length - start;
    if (length > maxBytes) throw new LineTooLongError(maxBytes);
    if (start < chunk.length) parts.push(chunk.subarray(start));
  }
  if (length > 0) yield decoder.decode(joined(parts));
}

/** A stream's reader as readLines() wants it. */
export function byteReader(reader: ReadableStreamDefaultReader<Uint8Array>): ByteReader {
  let rest = new Uint8Array(0);
  return {
    async read(into: Uint8Array): Promise<number | null> {
      if (rest.length === 0) {
        const { value, done } = await reader.read();
        if (done) return null;
        rest = new Uint8Array(value);
      }
      const n = Math.min(into.length, rest.length);
      into.set(rest.subarray(0, n));
      rest = rest.subarray(n);
      return n;
    },
  };
}
