/** A program that works for this process, as make does: started, waited for, ended with all that it has started. */
import { cString, Handle, OutPointer, OutText, type Pointer } from "./handle.ts";
import { shim } from "./library.ts";
import { ERRNO, unwrap } from "./native_error.ts";

const SLICE_MS = 200;

export interface RunToolOptions {
  /** A file that its output is appended to. */
  log: string;
  /** Ends it; its reason is thrown. */
  signal?: AbortSignal;
}

class Tool extends Handle implements Disposable {
  static start(argv: readonly string[], log: string): Tool {
    const text = cString(argv.join("\0"));
    const out = new OutPointer();
    const err = new OutText();
    const op = `start ${argv[0]}`;
    const length = BigInt(text.length);
    unwrap(op, shim().gy_tool_start(text, length, cString(log), out.cell, err.bytes, err.bytes.length), err.text);
    return new Tool(out.take(op));
  }

  private constructor(pointer: Pointer) {
    super(pointer);
  }

  /** Its exit code; null while it runs. */
  async wait(): Promise<number | null> {
    const result = await shim().gy_tool_wait(this.pointer, SLICE_MS);
    return result === -ERRNO.ETIMEDOUT ? null : unwrap("wait for a program", result);
  }

  [Symbol.dispose](): void {
    const pointer = this.release();
    if (pointer) shim().gy_tool_destroy(pointer);
  }
}

/** The exit code of `argv`, 128 + the signal that killed it. Throws NativeError where it cannot be started. */
export async function runTool(argv: readonly string[], { log, signal }: RunToolOptions): Promise<number> {
  signal?.throwIfAborted();
  const tool = Tool.start(argv, log);
  try {
    let code: number | null = null;
    while (code === null) {
      code = await tool.wait();
      signal?.throwIfAborted();
    }
    return code;
  } finally {
    tool[Symbol.dispose]();
  }
}
