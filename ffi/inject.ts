/** Faults made on purpose, so that a test sees its detector fire. */
import { shim } from "./library.ts";
import { unwrap } from "./native_error.ts";
import type { PageSet } from "./page_set.ts";

export const INJECT = { "zero-page": 1, "swap-pages": 2, "stale-page": 3, "skip-dirty": 4 } as const;
export type InjectedFault = keyof typeof INJECT;

/** Arms one fault at the first fitting page at or after `page`, in this process. */
export function inject(fault: InjectedFault, page: number): void {
  unwrap("arm a fault", shim().gy_inject(INJECT[fault], BigInt(page)));
}

/** Where a dirty set is final: leaves out a page if "skip-dirty" is armed. */
export function applySkipDirty(set: PageSet): void {
  unwrap("apply a fault", shim().gy_inject_skip_dirty(set.words, BigInt(set.pages)));
}
