/** Whether this host has what the kernel pager needs. */
import { cString } from "./handle.ts";
import { shim } from "./library.ts";
import { NativeError } from "./native_error.ts";

/** null where gygesfs is mounted at `folder` and may be used; else why not: ENOENT, ENOTTY (another file system), EACCES. */
export function gygesfsAt(folder: string): NativeError | null {
  const result = shim().gy_kernel_at(cString(folder));
  return result < 0 ? new NativeError(`use gygesfs at ${folder}`, -result) : null;
}

/** RDMA devices of this host. */
export function rdmaDevices(): number {
  return shim().gy_rdma_devices();
}
