/** Every kind of pager that this program has, the better first. */
import type { PagerKind } from "../options.ts";
import type { Pager } from "./pager.ts";
import { kernelPager } from "./kernel.ts";
import { nativePager } from "./native.ts";
import { userPager } from "./user.ts";

export const PAGERS: readonly Pager[] = [kernelPager, userPager, nativePager];

export function pagerOf(kind: PagerKind): Pager | null {
  return PAGERS.find((pager) => pager.kind === kind) ?? null;
}

/** The pager that moves RAM in these files: the user pager can where nothing better does. */
export function pagerOfFiles(files: readonly string[]): PagerKind {
  const found = PAGERS.find(({ ramFolder }) =>
    ramFolder !== null && files.every((file) => file.startsWith(`${ramFolder}/`))
  );
  return found?.kind ?? "user";
}
