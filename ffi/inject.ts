/** Faults made on purpose, so that a test sees its detector fire. */
import { shim } from "./library.ts";
import { unwrap } from "./native_error.ts";
import type { PageSet } from "./page_set.ts";

export const INJECT = { "zero-page": 1, "swap-pages": 2, "stale-page": 3, "skip-dirty": 4, "absent-page": 5 } as const;
export type InjectedFault = keyof typeof INJECT | typeof UNDRAINED;

/** No fault of one page: what was written is looked up while disks may be writing into guest memory. */
export const UNDRAINED = "undrained-scans";
let undrained = false;

/** Arms one fault in this process: at the first fitting page from `page` on, "skip-dirty" at all of so many `pages`. */
export function inject(fault: InjectedFault, page: number, pages: number): void {
  if (fault === UNDRAINED) {
    undrained = true;
    return;
  }
  unwrap("arm a fault", shim().gy_inject(INJECT[fault], BigInt(page), BigInt(pages)));
}

export function scansUndrained(): boolean {
  return undrained;
}

/** Where a dirty set is final: leaves out pages if "skip-dirty" is armed. */
export function applySkipDirty(set: PageSet): void {
  unwrap("apply a fault", shim().gy_inject_skip_dirty(set.words, BigInt(set.pages)));
}
