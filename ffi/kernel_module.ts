/** gyges.ko in the running kernel, and its file system. */
import { cString } from "./handle.ts";
import { shim } from "./library.ts";
import { NativeError, unwrap } from "./native_error.ts";

const MAX_USERS_BYTES = 4096;

/** Loads the module in file `path`. Throws NativeError: EEXIST, ENOEXEC, ENOENT, EKEYREJECTED, EPERM... */
export async function insertModule(path: string): Promise<void> {
  unwrap(`load ${path}`, await shim().gy_module_insert(cString(path)));
}

/** Unloads module `name`. Throws NativeError: ENOENT, EAGAIN, EBUSY, EPERM. */
export async function removeModule(name: string): Promise<void> {
  unwrap(`unload ${name}`, await shim().gy_module_remove(cString(name)));
}

/** Throws NativeError: ENODEV, EPERM. */
export function mountGygesfs(folder: string): void {
  unwrap(`mount gygesfs at ${folder}`, shim().gy_gygesfs_mount(cString(folder)));
}

/** Throws NativeError: EBUSY, EINVAL, EPERM. */
export function unmountGygesfs(folder: string): void {
  unwrap(`unmount ${folder}`, shim().gy_gygesfs_unmount(cString(folder)));
}

/** Processes that use the file system at `folder`, as "PID COMMAND". Those of other users only root sees. */
export function usersOf(folder: string): string[] {
  const buffer = new Uint8Array(MAX_USERS_BYTES);
  const bytes = shim().gy_mount_users(cString(folder), buffer, BigInt(buffer.length));
  if (bytes < 0) throw new NativeError(`look for users of ${folder}`, Number(-bytes));
  return new TextDecoder().decode(buffer.subarray(0, Number(bytes))).split("\n").filter((line) => line !== "");
}
