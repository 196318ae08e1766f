/** Server end of the control socket: requests in, results and events out. Messages are in messages.ts. */
import * as v from "valibot";
import { UsageError } from "../errors.ts";
import type { GygesEvent } from "../events.ts";
import { toErrorEvent } from "./error_event.ts";
import { LineTooLongError, MAX_LINE_BYTES, readLines } from "./lines.ts";
import { firstIssue, type Reply, type Request, requestSchema } from "./messages.ts";

export interface HandlerContext {
  /** Sends one event to the caller. Never waits, never throws: a caller that does not read is cut off. */
  emit: (event: GygesEvent) => void;
  /** Aborts when the caller is gone or the server closes. */
  signal: AbortSignal;
}

/** The result must be something JSON can carry; undefined arrives as null. */
export type Handler = (params: unknown, context: HandlerContext) => Promise<unknown>;
export type Handlers = ReadonlyMap<string, Handler>;

export interface ServerLimits {
  /** @default {32} */
  maxConnections?: number;
  /** Requests under way on one connection. @default {16} */
  maxRequests?: number;
  /** @default {MAX_LINE_BYTES} */
  maxLineBytes?: number;
  /** Replies that wait for a slow reader before it is cut off. @default {4 * MAX_LINE_BYTES} */
  maxQueuedBytes?: number;
  /** A closing server waits this long for handlers to heed their signal and callers to read. @default {3_000} */
  closeGraceMs?: number;
}

/** Answered by every server: proof that the process does more than exist. */
const HELLO: Handler = () => Promise.resolve({ pid: Deno.pid });

const DEFAULT_LIMITS: Required<ServerLimits> = {
  maxConnections: 32,
  maxRequests: 16,
  maxLineBytes: MAX_LINE_BYTES,
  maxQueuedBytes: 4 * MAX_LINE_BYTES,
  closeGraceMs: 3_000,
};

/** Serves `handlers` on a unix socket from creation to disposal. */
export class ControlServer implements AsyncDisposable {
  readonly path: string;
  readonly #listener: Deno.UnixListener;
  readonly #handlers: Handlers;
  readonly #limits: Required<ServerLimits>;
  readonly #connections = new Map<Connection, Promise<void>>();
  readonly #accepting: Promise<void>;
  #closed = false;

  /** Listens at `path`, mode 0600; nothing may be there. The directory around it is the guard: it must be 0700. */
  constructor(path: string, handlers: Handlers, limits: ServerLimits = {}) {
    this.path = path;
    this.#handlers = handlers;
    this.#limits = { ...DEFAULT_LIMITS, ...limits };
    this.#listener = Deno.listen({ transport: "unix", path });
    Deno.chmodSync(path, 0o600);
    this.#accepting = this.#accept();
  }

  async #accept(): Promise<void> {
    for await (const socket of this.#listener) {
      const connection = new Connection(socket, this.#handlers, this.#limits);
      if (this.#connections.size >= this.#limits.maxConnections) {
        const error = new UsageError(
          `Cannot take another connection as ${this.#limits.maxConnections} are open: detach a monitor first`,
        );
        connection.refuse(error);
        continue;
      }
      this.#connections.set(connection, connection.serve().finally(() => this.#connections.delete(connection)));
    }
  }

  /** Stops listening, aborts what is under way and waits for it, `closeGraceMs` at most; then cuts what is left. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#listener.close();
    await this.#accepting;
    const connections = [...this.#connections.keys()];
    const serving = Promise.all(this.#connections.values());
    for (const connection of connections) connection.close();
    const grace = Promise.withResolvers<void>();
    const timeout = setTimeout(() => grace.resolve(), this.#limits.closeGraceMs);
    await Promise.race([serving, grace.promise]);
    clearTimeout(timeout);
    for (const connection of connections) connection.cut();
  }
}

class Connection {
  readonly #socket: Deno.UnixConn;
  readonly #handlers: Handlers;
  readonly #limits: Required<ServerLimits>;
  readonly #gone = new AbortController();
  readonly #running = new Set<Promise<void>>();
  #sending: Promise<void> = Promise.resolve();
  #queuedBytes = 0;

  constructor(socket: Deno.UnixConn, handlers: Handlers, limits: Required<ServerLimits>) {
    this.#socket = socket;
    this.#handlers = handlers;
    this.#limits = limits;
  }

  /** Answers requests until the caller closes, breaks the protocol or `close()` is called. Never throws. */
  async serve(): Promise<void> {
    try {
      for await (const line of readLines(this.#socket, this.#limits.maxLineBytes)) this.#take(line);
    } catch (error) {
      // A reset connection is an ordinary end; a line without end is told, as the stream cannot be followed any more.
      if (error instanceof LineTooLongError) {
        this.#send({ id: null, error: toErrorEvent(new UsageError(error.message)) });
      }
    }
    this.#gone.abort(new Error("The caller closed the connection"));
    await Promise.all(this.#running);
    await this.#sending;
    this.cut();
  }

  /** Ends `serve()`; what still has to be sent is sent. */
  close(): void {
    this.#gone.abort(new Error("The process is closing its control socket"));
    void Promise.all(this.#running).then(() => this.#sending).then(() => this.cut());
  }

  refuse(error: UsageError): void {
    this.#send({ id: null, error: toErrorEvent(error) });
    void this.#sending.then(() => this.cut());
  }

  #take(line: string): void {
    const request = parseRequest(line);
    if (request instanceof UsageError) return this.#send({ id: null, error: toErrorEvent(request) });
    if (this.#running.size >= this.#limits.maxRequests) {
      const error = new UsageError(`Cannot take another request as ${this.#limits.maxRequests} are under way here`);
      return this.#send({ id: request.id, error: toErrorEvent(error) });
    }
    const answer = this.#answer(request).finally(() => this.#running.delete(answer));
    this.#running.add(answer);
  }

  async #answer({ id, method, params }: Request): Promise<void> {
    try {
      const handler = this.#handlers.get(method) ?? (method === "hello" ? HELLO : undefined);
      if (!handler) throw new UsageError(`Cannot do "${method}" as this process does not offer it here and now`);
      const emit = (event: GygesEvent) => this.#send({ id, event });
      const result = await handler(params, { emit, signal: this.#gone.signal });
      this.#send({ id, result: result ?? null });
    } catch (error) {
      this.#send({ id, error: toErrorEvent(error) });
    }
  }

  #send(reply: Reply): void {
    const bytes = new TextEncoder().encode(`${JSON.stringify(reply)}\n`);
    if (this.#queuedBytes + bytes.length > this.#limits.maxQueuedBytes) return this.cut();
    this.#queuedBytes += bytes.length;
    this.#sending = this.#sending.then(() => this.#write(bytes));
  }

  async #write(bytes: Uint8Array): Promise<void> {
    let sent = 0;
    try {
      while (sent < bytes.length) sent += await this.#socket.write(bytes.subarray(sent));
    } catch {
      // The caller is gone; serve() sees the end of its stream and tells the handlers.
      this.cut();
    }
    this.#queuedBytes -= bytes.length;
  }

  /** Closes the socket at once. Any number of times. */
  cut(): void {
    try {
      this.#socket.close();
    } catch (error) {
      if (!(error instanceof Deno.errors.BadResource)) throw error;
    }
  }
}

function parseRequest(line: string): Request | UsageError {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    return new UsageError("Cannot read the request as it is not JSON: send one object a line", { cause });
  }
  const parsed = v.safeParse(requestSchema, value);
  if (parsed.success) return parsed.output;
  return new UsageError(`Cannot read the request: ${firstIssue(parsed.issues)}`);
}
