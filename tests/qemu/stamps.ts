/** Pages that a guest has stamped (programs/guest_stamp.c), as they are in a file: its RAM, its disk. */
import assert from "node:assert/strict";
import { sharedMappings } from "../../lib/qemu/guest_ram.ts";

const PAGE = 4096;
const MAGIC = 0x5347594745535047n;
const CHUNK_PAGES = 4096;

export interface StampedPage {
  /** Bytes from the file's start. */
  offset: number;
  /** Its number in the working set, or on the disk. */
  page: number;
  version: number;
}

/** Pages that follow each other, by their number in RAM. */
export interface PageRun {
  first: number;
  pages: number;
}

/** Every stamped page of the file at `path`, in the file's order. */
export function stampedPages(path: string): StampedPage[] {
  using file = Deno.openSync(path);
  const found: StampedPage[] = [];
  const bytes = new Uint8Array(CHUNK_PAGES * PAGE);
  for (let start = 0;;) {
    const n = file.readSync(bytes) ?? 0;
    if (n === 0) return found;
    const view = new DataView(bytes.buffer, 0, n);
    for (let at = 0; at + PAGE <= n; at += PAGE) {
      if (view.getBigUint64(at, true) !== MAGIC) continue;
      const [page, version] = [view.getBigUint64(at + 8, true), view.getBigUint64(at + 16, true)];
      found.push({ offset: start + at, page: Number(page), version: Number(version) });
    }
    start += n;
  }
}

export function readPage(path: string, offset: number): Uint8Array<ArrayBuffer> {
  using file = Deno.openSync(path);
  file.seekSync(offset, Deno.SeekMode.Start);
  const bytes = new Uint8Array(PAGE);
  if (file.readSync(bytes) !== PAGE) throw new Error(`Cannot read a page at ${offset} of ${path}`);
  return bytes;
}

/** Makes the page at `offset` say `content`. @default zeros */
export function writePage(path: string, offset: number, content: Uint8Array = new Uint8Array(PAGE)): void {
  using file = Deno.openSync(path, { write: true });
  file.seekSync(offset, Deno.SeekMode.Start);
  if (file.writeSync(content) !== PAGE) throw new Error(`Cannot write a page at ${offset} of ${path}`);
}

/** Pages of the guest's working set: the longest run of it, as a fault may take the next dirty page after its first. */
export function stampedRun(qemu: number): PageRun {
  const longest = longestRun(stampedPages(ramFileOf(qemu)).map(({ offset }) => offset));
  assert.ok(longest.pages > 1000, `the longest run of stamped pages has ${longest.pages}`);
  return longest;
}

/** The most pages that follow each other, of pages at `offsets` in ascending order. */
export function longestRun(offsets: readonly number[]): PageRun {
  let longest = { first: 0, pages: 0 };
  let run = longest;
  for (const offset of offsets) {
    const page = offset / PAGE;
    run = page === run.first + run.pages ? { ...run, pages: run.pages + 1 } : { first: page, pages: 1 };
    if (run.pages > longest.pages) longest = run;
  }
  return longest;
}

/** Where the RAM of a QEMU can be read, a guest's largest memory backend. */
export function ramFileOf(qemu: number): string {
  const mapping = sharedMappings(Deno.readTextFileSync(`/proc/${qemu}/maps`)).find(({ bytes }) => bytes >= 64 << 20);
  assert.ok(mapping);
  return `/proc/${qemu}/map_files/${mapping.first}`;
}

/** Numbers of the pages in which two files differ; a hole is zeros. */
export function differingPages(path: string, other: string): number[] {
  using one = Deno.openSync(path);
  using two = Deno.openSync(other);
  const [a, b] = [new Uint8Array(CHUNK_PAGES * PAGE), new Uint8Array(CHUNK_PAGES * PAGE)];
  const pages: number[] = [];
  for (let start = 0;; start += CHUNK_PAGES) {
    const n = one.readSync(a);
    assert.equal(two.readSync(b), n);
    if (n === null) return pages;
    const [words, others] = [new BigUint64Array(a.buffer, 0, n / 8), new BigUint64Array(b.buffer, 0, n / 8)];
    for (let i = 0; i < words.length; i++) {
      const page = start + Math.floor(i * 8 / PAGE);
      if (words[i] !== others[i] && pages.at(-1) !== page) pages.push(page);
    }
  }
}
