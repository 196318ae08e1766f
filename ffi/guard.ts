/** What is done for a QEMU if this process dies before the guard is dismissed, however it dies. */
import { cString, Handle, OutPointer } from "./handle.ts";
import { shim } from "./library.ts";
import { unwrap } from "./native_error.ts";

export class Guard extends Handle implements Disposable {
  /** The QEMU with the monitor at `path` is told to let its guest run. Throws NativeError. */
  static toRun(path: string): Guard {
    const out = new OutPointer();
    const op = `guard the guest behind ${path}`;
    unwrap(op, shim().gy_guard_run(cString(path), out.cell));
    return new Guard(out.take(op));
  }

  /** Process `pid` is ended. Throws NativeError: ESRCH. */
  static toKill(pid: number): Guard {
    const out = new OutPointer();
    const op = `guard process ${pid}`;
    unwrap(op, shim().gy_guard_kill(pid, out.cell));
    return new Guard(out.take(op));
  }

  /** Dismisses it. */
  [Symbol.dispose](): void {
    const pointer = this.release();
    if (pointer) shim().gy_guard_dismiss(pointer);
  }
}
