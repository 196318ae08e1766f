/**
 * A client of QEMU's machine protocol (QMP) over its unix socket: one JSON object a line, answers told apart by `id`,
 * events in between. QEMU serves one client a socket at a time; to the next it says nothing until the first has gone.
 */
import * as v from "valibot";
import { LineTooLongError, readLines } from "../control/lines.ts";
import { EXIT, GygesError } from "../errors.ts";

/** Longest answer that is taken: query-qmp-schema has some 200 KiB. */
const MAX_LINE_BYTES = 8 << 20;
const GREETING_MS = 3_000;
/** Once it has greeted; whoever waits for that has a deadline of its own. */
const NEGOTIATE_MS = 600_000;
/** An answer that needs no guest memory. One that touches a page not yet served may wait for ever. */
const ANSWER_MS = 5_000;
const OUT_OF_BAND = "oob";

const greetingSchema = v.object({
  QMP: v.object({
    version: v.object({
      qemu: v.object({ major: v.number(), minor: v.number(), micro: v.number() }),
      package: v.string(),
    }),
    capabilities: v.array(v.string()),
  }),
});
const lineSchema = v.union([
  v.object({ return: v.unknown(), id: v.optional(v.number()) }),
  v.object({ error: v.object({ class: v.string(), desc: v.string() }), id: v.optional(v.number()) }),
  v.object({ event: v.string(), data: v.optional(v.unknown()) }),
]);

export interface QemuVersion {
  major: number;
  minor: number;
  micro: number;
}

/** "7.2.22" */
export function versionText({ major, minor, micro }: QemuVersion): string {
  return `${major}.${minor}.${micro}`;
}

/** QEMU refused a command: nothing has changed. */
export class QmpCommandError extends GygesError {
  override readonly name = "QmpCommandError";
  readonly exitCode = EXIT.internal;

  constructor(readonly command: string, readonly description: string) {
    super(`QEMU refuses "${command}": ${description}`);
  }
}

/** The monitor cannot be used, or not any more; what QEMU does meanwhile is not known. */
export class QmpLostError extends GygesError {
  override readonly name = "QmpLostError";
  readonly exitCode = EXIT.hostUnable;
}

export interface QmpEvent {
  name: string;
  data: unknown;
}

interface Pending {
  command: string;
  resolve: (value: unknown) => void;
  reject: (error: Error) => void;
}

export class QmpClient implements Disposable {
  readonly path: string;
  readonly #connection: Deno.UnixConn;
  readonly #pending = new Map<number, Pending>();
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  readonly #greeted = Promise.withResolvers<QemuVersion>();
  readonly #closed = Promise.withResolvers<QmpLostError>();
  readonly #ready: Promise<void>;
  #lost: QmpLostError | null = null;
  #nextId = 1;
  #writing: Promise<unknown> = Promise.resolve();
  #version: QemuVersion = { major: 0, minor: 0, micro: 0 };
  /** QEMU can take a command while its main thread is stuck. */
  #outOfBand = false;

  private constructor(path: string, connection: Deno.UnixConn) {
    this.path = path;
    this.#connection = connection;
    this.#greeted.promise.catch(() => {});
    void this.#read();
    this.#ready = this.#negotiate();
    this.#ready.catch(() => {});
  }

  /** Throws QmpLostError: nobody is there, another client has the monitor, it is no QMP. */
  static async connect(path: string, greetingMs = GREETING_MS): Promise<QmpClient> {
    const client = await QmpClient.open(path);
    try {
      await client.ready(greetingMs);
      return client;
    } catch (error) {
      client[Symbol.dispose]();
      throw error;
    }
  }

  /** As connect(), for a QEMU that may wait for a page of its guest: it need not have answered yet. */
  static async open(path: string): Promise<QmpClient> {
    return new QmpClient(path, await dial(path));
  }

  /** Resolves once QEMU takes commands. Throws QmpLostError after `timeoutMs`; it may still come to that. */
  ready(timeoutMs: number): Promise<void> {
    return within(timeoutMs, this.#ready, () => noAnswer(this.path));
  }

  async #negotiate(): Promise<void> {
    this.#version = await this.#greeted.promise;
    await this.call("qmp_capabilities", { enable: this.#outOfBand ? [OUT_OF_BAND] : [] }, NEGOTIATE_MS);
  }

  get version(): QemuVersion {
    return this.#version;
  }

  /** Resolves, with the reason, once the connection is gone: mostly because QEMU is. */
  get closed(): Promise<QmpLostError> {
    return this.#closed.promise;
  }

  get isClosed(): boolean {
    return this.#lost !== null;
  }

  /** The answer to a command. Throws QmpCommandError where QEMU refuses, QmpLostError where it does not answer. */
  call(command: string, args?: Readonly<Record<string, unknown>>, timeoutMs = ANSWER_MS): Promise<unknown> {
    return this.#execute({ execute: command, ...(args ? { arguments: args } : {}) }, command, { timeoutMs });
  }

  /** The same for a command that takes a descriptor: `send` sends the line it is given, with that. */
  callBy(send: (line: string) => void, command: string, args: Readonly<Record<string, unknown>>): Promise<unknown> {
    return this.#execute({ execute: command, arguments: args }, command, { timeoutMs: ANSWER_MS, send });
  }

  /** The same for one of the few commands that QEMU takes also while its main thread waits for a page of its guest. */
  callNow(command: string, args: Readonly<Record<string, unknown>>): Promise<unknown> {
    const verb = this.#outOfBand ? "exec-oob" : "execute";
    return this.#execute({ [verb]: command, arguments: args }, command, { timeoutMs: ANSWER_MS });
  }

  async #execute(
    message: Record<string, unknown>,
    command: string,
    { timeoutMs, send }: { timeoutMs: number; send?: (line: string) => void },
  ): Promise<unknown> {
    if (this.#lost) throw this.#lost;
    const id = this.#nextId++;
    const answer = Promise.withResolvers<unknown>();
    // The connection may be lost while the command is still being sent, and nobody waits for the answer yet.
    answer.promise.catch(() => {});
    this.#pending.set(id, { command, ...answer });
    try {
      const line = `${JSON.stringify({ ...message, id })}\n`;
      await (send ? this.#sendBy(send, line) : this.#send(line));
      return await within(timeoutMs, answer.promise, () =>
        new QmpLostError(
          `QEMU has not answered "${command}" on ${this.path} within ${timeoutMs / 1000} s: it hangs, or waits for a ` +
            "page of its guest",
        ));
    } finally {
      this.#pending.delete(id);
    }
  }

  /** The answer to a command, held against `schema`. */
  async ask<S extends v.GenericSchema>(
    schema: S,
    command: string,
    args?: Readonly<Record<string, unknown>>,
  ): Promise<v.InferOutput<S>> {
    const answer = await this.call(command, args);
    const result = v.safeParse(schema, answer);
    if (result.success) return result.output;
    throw new QmpLostError(`QEMU's answer to "${command}" is not what it should be: ${result.issues[0].message}`);
  }

  /** Calls `listener` for each event from now on, until the result is disposed of. */
  listen(listener: (event: QmpEvent) => void): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  [Symbol.dispose](): void {
    this.#lose("it was closed here");
    try {
      this.#connection.close();
    } catch (error) {
      if (!(error instanceof Deno.errors.BadResource)) throw error;
    }
  }

  /** One command is written whole before the next. */
  async #send(line: string): Promise<void> {
    const bytes = new TextEncoder().encode(line);
    const before = this.#writing;
    const written = (async () => {
      await before;
      for (let at = 0; at < bytes.length;) at += await this.#connection.write(bytes.subarray(at));
    })();
    this.#writing = written.catch(() => {});
    await written.catch((error) => {
      this.#lose(wordsOf(error));
      throw this.#lost ?? error;
    });
  }

  /** Throws what `send` throws, which then has sent nothing. */
  async #sendBy(send: (line: string) => void, line: string): Promise<void> {
    const sent = this.#writing.then(() => send(line));
    this.#writing = sent.catch(() => {});
    await sent;
  }

  async #read(): Promise<void> {
    try {
      for await (const line of readLines(this.#connection, MAX_LINE_BYTES)) {
        if (line.trim() !== "") this.#take(line);
      }
      this.#lose("QEMU closed it");
    } catch (error) {
      if (error instanceof LineTooLongError || error instanceof SyntaxError || error instanceof v.ValiError) {
        this.#lose(`it does not speak QMP (${error.message})`);
      } else {
        this.#lose(wordsOf(error));
      }
    }
  }

  #take(line: string): void {
    const value: unknown = JSON.parse(line);
    if (this.#version.major === 0 && v.is(greetingSchema, value)) {
      this.#outOfBand = value.QMP.capabilities.includes(OUT_OF_BAND);
      this.#greeted.resolve(value.QMP.version.qemu);
      return;
    }
    const message = v.parse(lineSchema, value);
    if ("event" in message) {
      for (const listener of this.#listeners) listener({ name: message.event, data: message.data });
      return;
    }
    const pending = this.#pending.get(message.id ?? 0);
    if ("error" in message) pending?.reject(new QmpCommandError(pending.command, message.error.desc));
    else pending?.resolve(message.return);
  }

  #lose(why: string): void {
    if (this.#lost) return;
    const lost = new QmpLostError(`The monitor connection on ${this.path} is gone: ${why}`);
    this.#lost = lost;
    this.#greeted.reject(lost);
    for (const { reject } of this.#pending.values()) reject(lost);
    this.#closed.resolve(lost);
  }
}

function noAnswer(path: string): QmpLostError {
  return new QmpLostError(
    `Nothing answers on ${path}: QEMU serves one monitor client at a time, so another (libvirt, a script) may have it, or ` +
      "QEMU hangs. Give QEMU a second monitor for Gyges: -qmp unix:PATH,server=on,wait=off",
  );
}

async function dial(path: string): Promise<Deno.UnixConn> {
  try {
    return await Deno.connect({ transport: "unix", path });
  } catch (cause) {
    // Others who would have it wait already, or have waited.
    if (cause instanceof Deno.errors.WouldBlock) throw noAnswer(path);
    throw new QmpLostError(
      `Cannot connect to ${path} (${wordsOf(cause)}): give the path of QEMU's -qmp unix:PATH,server=on,wait=off`,
      { cause },
    );
  }
}

async function within<T>(ms: number, promise: Promise<T>, late: () => Error): Promise<T> {
  const expired = Promise.withResolvers<never>();
  const timer = setTimeout(() => expired.reject(late()), ms);
  try {
    return await Promise.race([promise, expired.promise]);
  } finally {
    clearTimeout(timer);
  }
}

function wordsOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
