/** Opens libgyges.so at the first call: help and usage errors work without it. */
import { SYMBOLS } from "./symbols.ts";

/** GY_ABI_VERSION of c-shim/gyges.h that this TypeScript was written for. */
export const ABI_VERSION = 1;

type Shim = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

let opened: Shim | undefined;

/** Where the library is: beside the program in the single binary, in the build folder when run from source. */
export function libraryPath(): string | URL {
  return Deno.env.get("GYGES_LIB") ?? new URL("../c-shim/build/libgyges.so", import.meta.url);
}

/** The library's functions. Throws when it cannot be opened, or was built for another ABI. */
export function shim(): Shim {
  if (opened) return opened;
  const library = Deno.dlopen(libraryPath(), SYMBOLS);
  const version = library.symbols.gy_abi_version();
  if (version !== ABI_VERSION) {
    library.close();
    throw new Error(
      `Cannot use ${libraryPath()} as its ABI is version ${version} and this program needs ${ABI_VERSION}: build both from the same source`,
    );
  }
  return opened = library.symbols;
}
