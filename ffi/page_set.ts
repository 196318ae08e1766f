/** Sets of pages: bitmaps here, runs or bitmaps on the wire. */
import { shim } from "./library.ts";
import { unwrap } from "./native_error.ts";

/** bitmap: ceil(pages / 64) little-endian u64 words, bit i = page i. */
export class PageSet {
  readonly pages: number;
  readonly words: BigUint64Array<ArrayBuffer>;

  constructor(pages: number) {
    this.pages = pages;
    this.words = new BigUint64Array(Math.ceil(pages / 64));
  }

  /** Throws NativeError EBADMSG for anything that encode() would not have written. */
  static decode(encoded: Uint8Array<ArrayBuffer>, pages: number): PageSet {
    const set = new PageSet(pages);
    const length = BigInt(encoded.length);
    unwrap("read a page set", shim().gy_set_decode(encoded, length, set.words, BigInt(pages)));
    return set;
  }

  /** Upper bound of an encoded set over `pages` pages, in bytes. */
  static encodedBound(pages: number): number {
    return Number(shim().gy_set_bound(BigInt(pages)));
  }

  get count(): number {
    return unwrap("count a page set", shim().gy_set_count(this.words, BigInt(this.pages)));
  }

  has(page: number): boolean {
    return ((this.words[Math.floor(page / 64)] ?? 0n) >> BigInt(page % 64) & 1n) === 1n;
  }

  add(page: number): void {
    const word = Math.floor(page / 64);
    this.words[word] = (this.words[word] ?? 0n) | 1n << BigInt(page % 64);
  }

  encode(): Uint8Array<ArrayBuffer> {
    const buffer = new Uint8Array(PageSet.encodedBound(this.pages));
    const pages = BigInt(this.pages);
    const length = unwrap(
      "encode a page set",
      shim().gy_set_encode(this.words, pages, buffer, BigInt(buffer.length)),
    );
    return buffer.subarray(0, length);
  }
}
