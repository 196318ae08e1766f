/** Client end of the control socket: asks a running process. Messages are in messages.ts. */
import * as v from "valibot";
import { EXIT, type ExitCode, GygesError } from "../errors.ts";
import type { GygesEvent } from "../events.ts";
import { fromErrorEvent } from "./error_event.ts";
import { readLines } from "./lines.ts";
import { firstIssue, type Reply, replySchema } from "./messages.ts";
import { checkName, isOwned, ownerPid, runtimeBase, socketPathIn, survivorOf, survivorWords } from "./runtime_dir.ts";

/**
 * - absent: nothing of that name was ever here, or it ended in order
 * - stale: it died and left its directory behind; the next claim clears it
 * - foreign: it belongs to another user
 * - silent: it lives but does not answer
 * - lost: it went away, or spoke nonsense, during the request
 */
export type ControlFailure = "absent" | "stale" | "foreign" | "silent" | "lost";

const CODE_OF: Record<ControlFailure, ExitCode> = {
  absent: EXIT.usage,
  stale: EXIT.usage,
  foreign: EXIT.hostUnable,
  silent: EXIT.internal,
  lost: EXIT.internal,
};

/** The process could not be asked. */
export class ControlError extends GygesError {
  override readonly name = "ControlError";
  readonly exitCode: ExitCode;
  readonly failure: ControlFailure;

  constructor(message: string, failure: ControlFailure, options?: ErrorOptions) {
    super(message, options);
    this.failure = failure;
    this.exitCode = CODE_OF[failure];
  }
}

export interface ConnectOptions {
  /** @default {runtimeBase()} */
  base?: string;
  /** @default {2_000} */
  timeoutMs?: number;
}

export interface CallOptions {
  onEvent?: (event: GygesEvent) => void;
  /** Aborting closes the connection, which the handler at the other end sees as its own signal. */
  signal?: AbortSignal;
  /** 0: as long as it takes. @default {0} */
  timeoutMs?: number;
}

interface Pending {
  resolve: (result: unknown) => void;
  reject: (error: Error) => void;
  onEvent: (event: GygesEvent) => void;
}

/** A connection to process `name`; closing it aborts what was asked for over it. */
export class ControlClient implements Disposable {
  readonly name: string;
  readonly #socket: Deno.UnixConn;
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  #ended: Error | null = null;

  private constructor(name: string, socket: Deno.UnixConn) {
    this.name = name;
    this.#socket = socket;
    void this.#read();
  }

  /** Connects to process `name`. Throws UsageError for what cannot be a name, ControlError where nobody answers. */
  static async connect(name: string, options: ConnectOptions = {}): Promise<ControlClient> {
    const base = options.base ?? runtimeBase();
    const directory = `${base}/${checkName(name)}`;
    const timeoutMs = options.timeoutMs ?? 2_000;
    const connecting = Deno.connect({ transport: "unix", path: socketPathIn(directory) });
    const timer = Promise.withResolvers<null>();
    const timeout = setTimeout(() => timer.resolve(null), timeoutMs);
    try {
      const socket = await Promise.race([connecting, timer.promise]);
      if (socket) return new ControlClient(name, socket);
    } catch (cause) {
      throw await whyRefused(name, base, cause);
    } finally {
      clearTimeout(timeout);
    }
    // Too late is as good as never: whatever comes of it is closed.
    void connecting.then((socket) => socket.close(), () => {});
    throw new ControlError(
      `Cannot reach "${name}" as it did not take the connection within ${timeoutMs} ms: see its log in ${directory}`,
      "silent",
    );
  }

  /**
   * Asks for `method` and resolves with its result. Rejects with the other side's error (same class and code), with
   * ControlError when the connection ends or the deadline passes, or with the signal's reason.
   */
  async call(method: string, params?: unknown, options: CallOptions = {}): Promise<unknown> {
    options.signal?.throwIfAborted();
    if (this.#ended) throw this.#ended;
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#pending.set(id, { resolve, reject, onEvent: options.onEvent ?? (() => {}) });
    const abort = () => this.#end(asError(options.signal?.reason));
    options.signal?.addEventListener("abort", abort, { once: true });
    const timeout = options.timeoutMs ? setTimeout(() => this.#end(this.#late(method)), options.timeoutMs) : undefined;
    try {
      this.#write({ id, method, params }).catch((cause) => this.#end(this.#lost(cause)));
      return await promise;
    } finally {
      clearTimeout(timeout);
      options.signal?.removeEventListener("abort", abort);
      this.#pending.delete(id);
    }
  }

  [Symbol.dispose](): void {
    this.#end(new ControlError(`Cannot ask "${this.name}" as the connection is closed`, "lost"));
  }

  async #write(request: { id: number; method: string; params: unknown }): Promise<void> {
    const bytes = new TextEncoder().encode(`${JSON.stringify(request)}\n`);
    let sent = 0;
    while (sent < bytes.length) sent += await this.#socket.write(bytes.subarray(sent));
  }

  async #read(): Promise<void> {
    try {
      for await (const line of readLines(this.#socket)) this.#take(line);
      this.#end(this.#lost());
    } catch (cause) {
      this.#end(cause instanceof GygesError ? cause : this.#lost(cause));
    }
  }

  #take(line: string): void {
    const parsed = v.safeParse(replySchema, JSON.parse(line));
    if (!parsed.success) {
      const issue = firstIssue(parsed.issues);
      const message = `Cannot understand what "${this.name}" answers (${issue}): run the same version`;
      throw new ControlError(message, "lost");
    }
    const reply: Reply = parsed.output;
    // An error without an id is about the connection as a whole.
    if ("error" in reply && reply.id === null) throw fromErrorEvent(reply.error);
    const pending = reply.id === null ? undefined : this.#pending.get(reply.id);
    if (!pending) return;
    if ("event" in reply) pending.onEvent(reply.event);
    else if ("error" in reply) pending.reject(fromErrorEvent(reply.error));
    else pending.resolve(reply.result);
  }

  #lost(cause?: unknown): ControlError {
    return new ControlError(`Lost the connection to "${this.name}": its process ended or closed it`, "lost", { cause });
  }

  #late(method: string): ControlError {
    return new ControlError(`Cannot do "${method}" as "${this.name}" did not answer in time`, "silent");
  }

  /** First call wins: every request under way fails with `error`. */
  #end(error: Error): void {
    if (this.#ended) return;
    this.#ended = error;
    for (const pending of this.#pending.values()) pending.reject(error);
    try {
      this.#socket.close();
    } catch (cause) {
      // The reader closed it at the end of the stream.
      if (!(cause instanceof Deno.errors.BadResource)) throw cause;
    }
  }
}

function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason));
}

/** What a failed connect to process `name` means. */
async function whyRefused(name: string, base: string, cause: unknown): Promise<Error> {
  const directory = `${base}/${name}`;
  if (cause instanceof Deno.errors.PermissionDenied) {
    const message = `Cannot ask "${name}" as ${directory} belongs to another user: run as that user`;
    return new ControlError(message, "foreign", { cause });
  }
  const absent = cause instanceof Deno.errors.NotFound || cause instanceof Deno.errors.NotADirectory;
  if (!absent && !(cause instanceof Deno.errors.ConnectionRefused)) return asError(cause);
  const pid = ownerPid(directory);
  if (isOwned(directory)) {
    const message = `Cannot ask "${name}" as process ${pid ?? ""} does not listen (yet): try again`;
    return new ControlError(message, "silent", { cause });
  }
  if (pid) {
    const survivor = await survivorOf(name, base);
    const message = survivor
      ? `Cannot ask "${name}". ${survivorWords(survivor)}`
      : `Cannot ask "${name}" as its process ${pid} died: start it again, which clears ${directory}`;
    return new ControlError(message, "stale", { cause });
  }
  const message = `Cannot find "${name}" as no process of that name runs: see gyges vm list`;
  return new ControlError(message, "absent", { cause });
}
