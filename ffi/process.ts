/** Another process, QEMU: started so that it outlives this one, watched and ended. */
import { cString, Handle, OutPointer, OutText, type Pointer } from "./handle.ts";
import { shim } from "./library.ts";
import { ERRNO, unwrap } from "./native_error.ts";

/** Largest /proc file that is read. */
const MAX_FILE_BYTES = 4 << 20;
const SLICE_MS = 500;

/** Descriptor of the socket that a process was started with. */
export const LISTEN_FD = 4;

export interface ProcessFiles {
  log: string;
  socketPath: string;
  /** null: nobody's faults are to be caught there. */
  helperPath: string | null;
}

export class NativeProcess extends Handle implements Disposable {
  readonly pid: number;
  #waiting = 0;
  #closed = false;

  private constructor(pointer: Pointer) {
    super(pointer);
    this.pid = shim().gy_process_pid(pointer);
  }

  /**
   * Starts `argv` in a session of its own, its output appended to file `log`; as LISTEN_FD it has a unix socket that
   * listens at `socketPath`. Where this process may not trace others, what catches faults there is loaded into it and
   * listens at `helperPath`. Throws NativeError: ENOENT, EACCES, EADDRINUSE.
   */
  static async start(
    argv: readonly string[],
    { log, socketPath, helperPath }: ProcessFiles,
  ): Promise<NativeProcess> {
    const text = cString(argv.join("\0"));
    const out = new OutPointer();
    const err = new OutText();
    const [path, listenAt, helperAt] = [cString(log), cString(socketPath), cString(helperPath ?? "")];
    const op = `start ${argv[0]}`;
    const result = await shim().gy_process_start(
      text,
      BigInt(text.length),
      path,
      listenAt,
      helperAt,
      out.cell,
      err.bytes,
      err.bytes.length,
    );
    unwrap(op, result, err.text);
    return new NativeProcess(out.take(op));
  }

  /** One that runs already. Throws NativeError ESRCH. */
  static open(pid: number): NativeProcess {
    const out = new OutPointer();
    const op = `look at process ${pid}`;
    unwrap(op, shim().gy_process_open(pid, out.cell));
    return new NativeProcess(out.take(op));
  }

  /** The one that listens on a unix socket. Throws NativeError: ENOENT, ECONNREFUSED, EACCES. */
  static listeningOn(path: string): NativeProcess {
    return NativeProcess.open(unwrap(`find who listens on ${path}`, shim().gy_unix_listener_pid(cString(path))));
  }

  /**
   * Sends `words`, a whole command, by this process's one connection to its monitor, and with them a connection to the
   * unix socket `path`, whoever listens there. Throws NativeError: ENOTCONN, EAGAIN, ENOENT, ECONNREFUSED.
   */
  sendConnection(words: string, path: string): void {
    const err = new OutText();
    const op = `hand process ${this.pid} a connection`;
    const [text, to] = [cString(words), cString(path)];
    unwrap(op, shim().gy_monitor_send_connection(this.pid, text, to, err.bytes, err.bytes.length), err.text);
  }

  /** Whether it has ended, once it has or `timeoutMs` is up. */
  async ended(timeoutMs: number): Promise<boolean> {
    const deadline = performance.now() + timeoutMs;
    while (!this.#closed) {
      const slice = Math.max(0, Math.min(SLICE_MS, deadline - performance.now()));
      this.#waiting++;
      const result = await shim().gy_process_wait(this.pointer, Math.ceil(slice)).finally(() => this.#done());
      if (result !== -ERRNO.ETIMEDOUT) {
        unwrap("wait for a process", result);
        return true;
      }
      if (performance.now() >= deadline) return false;
    }
    return false;
  }

  /** Nothing if it has ended. */
  kill(): void {
    unwrap(`end process ${this.pid}`, shim().gy_process_kill(this.pointer));
  }

  /** A file of its /proc directory. Throws NativeError: EACCES, ESRCH. */
  read(name: "maps" | "cmdline" | "status"): string {
    const buffer = new Uint8Array(MAX_FILE_BYTES);
    const op = `read ${name} of process ${this.pid}`;
    const n = unwrap(op, shim().gy_process_read(this.pointer, cString(name), buffer, BigInt(buffer.length)));
    return new TextDecoder().decode(buffer.subarray(0, n));
  }

  /** Looks no longer at it; it runs on. */
  [Symbol.dispose](): void {
    this.#closed = true;
    if (this.#waiting === 0) this.#destroy();
  }

  #done(): void {
    this.#waiting--;
    if (this.#closed && this.#waiting === 0) this.#destroy();
  }

  #destroy(): void {
    const pointer = this.release();
    if (pointer) shim().gy_process_destroy(pointer);
  }
}
