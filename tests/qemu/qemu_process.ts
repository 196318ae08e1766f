/** One QEMU with a monitor of ours, certain to be gone at the end. */
import { join } from "node:path";
import { QmpClient, QmpLostError } from "../../lib/qemu/qmp.ts";
import type { QemuBinary } from "./binaries.ts";

const START_MS = 20_000;
const POLL_MS = 10;

export class QemuProcess implements AsyncDisposable {
  readonly qmp: QmpClient;
  readonly #child: Deno.ChildProcess;

  private constructor(child: Deno.ChildProcess, qmp: QmpClient) {
    this.#child = child;
    this.qmp = qmp;
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Starts `binary` with `args`; its monitor's socket is `name`.qmp in `folder`. Throws with what it says if it ends. */
  static async start(binary: QemuBinary, args: readonly string[], folder: string, name = "qemu"): Promise<QemuProcess> {
    const socket = join(folder, `${name}.qmp`);
    const monitor = ["-qmp", `unix:${socket},server=on,wait=off`];
    const command = [binary.program, ...binary.args, ...args, ...monitor];
    // It dies with us, however we die.
    const child = new Deno.Command("setpriv", {
      args: ["--pdeathsig", "KILL", ...command],
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    const words = new Response(child.stderr).text();
    let ended = false;
    const status = child.status.then(() => ended = true);
    try {
      for (const deadline = performance.now() + START_MS;;) {
        if (ended) throw new Error(`QEMU ended: ${await words}`);
        const qmp = await connected(socket);
        if (qmp) return new QemuProcess(child, qmp);
        if (performance.now() > deadline) throw new Error("QEMU made no monitor");
        await pause(POLL_MS);
      }
    } catch (error) {
      kill(child);
      await status;
      throw error;
    }
  }

  /** Waits until it ends by itself. Throws if that takes longer than `timeoutMs`. */
  async ended(timeoutMs = START_MS): Promise<void> {
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(() => late.reject(new Error(`QEMU ${this.pid} still runs`)), timeoutMs);
    try {
      await Promise.race([this.#child.status, late.promise]);
    } finally {
      clearTimeout(timer);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.qmp[Symbol.dispose]();
    kill(this.#child);
    await this.#child.status;
  }
}

/** Null: QEMU does not listen yet; it makes its socket first and listens after. */
async function connected(socket: string): Promise<QmpClient | null> {
  try {
    return await QmpClient.connect(socket, START_MS);
  } catch (error) {
    const cause = error instanceof QmpLostError ? error.cause : null;
    if (cause instanceof Deno.errors.NotFound || cause instanceof Deno.errors.ConnectionRefused) return null;
    throw error;
  }
}

function kill(child: Deno.ChildProcess): void {
  try {
    child.kill("SIGKILL");
  } catch (error) {
    // It has ended.
    if (!(error instanceof TypeError) && !(error instanceof Deno.errors.NotFound)) throw error;
  }
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
