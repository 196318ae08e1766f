/** ffi/host.ts with a library that cannot be opened told as what it is: a lack of this host. */
import * as host from "../../ffi/host.ts";
import { PreflightError } from "../errors.ts";

/** Looks at this host. Throws PreflightError when the native library cannot be opened. */
export function hostFacts(): host.HostFacts {
  return opening(() => host.hostFacts());
}

/**
 * Sends everything that this process, its native code included, writes to stdout and stderr to the end of `path`.
 * Throws PreflightError when the native library cannot be opened, Error when `path` cannot be written.
 */
export function redirectOutput(path: string): void {
  const result = opening(() => host.redirectOutput(path));
  if (result < 0) throw new Error(`Cannot write to ${path}: errno ${-result}`);
}

/** Whether some bytes written to `fd` now hold nobody up. Throws PreflightError as hostFacts() does. */
export function takesOutput(fd: number): boolean {
  return opening(() => host.takesOutput(fd));
}

/** A file, also of /proc, /sys and /dev; null where it cannot be read. Throws PreflightError as hostFacts() does. */
export function readHostFile(path: string): string | null {
  return opening(() => host.readHostFile(path));
}

/** The names in a directory, sorted. Throws PreflightError as hostFacts() does. */
export function listHostFolder(path: string): string[] {
  return opening(() => host.listHostFolder(path));
}

/** Whether the system's loader finds a shared library. */
export function hasLibrary(name: string): boolean {
  try {
    Deno.dlopen(name, {}).close();
    return true;
  } catch {
    // Deno gives no class of its own to what the loader says.
    return false;
  }
}

function opening<T>(use: () => T): T {
  try {
    return use();
  } catch (cause) {
    const words = cause instanceof Error ? cause.message.replace(/^(Could not open library: )+/, "") : String(cause);
    throw new PreflightError(`Cannot open libgyges.so: ${words}`, {
      check: "native-library",
      remedy: "run: apt-get install -y libssl3 (in the source tree: ./build.sh build)",
      cause,
    });
  }
}
