/** The command channel of a lab host: frames over virtio-serial to its agent, see agent.c. */

const FRAME = { hello: 0, exec: 1, signal: 2, out: 3, err: 4, exit: 5 } as const;
const HEADER_BYTES = 12;
const KILL = 9;
/** As a shell tells of SIGKILL: what the death of a host does to its processes. */
const KILLED = 128 + KILL;

/** Those that a host is sent. */
const SIGNALS: Partial<Record<Deno.Signal, number>> = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGKILL: KILL,
  SIGUSR1: 10,
  SIGUSR2: 12,
  SIGTERM: 15,
  SIGCONT: 18,
  SIGSTOP: 19,
};

/** A process in a host; of the shape of Deno.ChildProcess where both have the same. */
export class RemoteProcess {
  readonly stdout: ReadableStream<Uint8Array>;
  readonly stderr: ReadableStream<Uint8Array>;
  readonly status: Promise<{ code: number }>;
  readonly #signal: (number: number) => void;

  /** @internal */
  constructor(sinks: Sinks, signal: (number: number) => void) {
    this.stdout = new ReadableStream({
      start: (controller) => void (sinks.out = controller),
      cancel: () => drop(sinks, "out"),
    });
    this.stderr = new ReadableStream({
      start: (controller) => void (sinks.err = controller),
      cancel: () => drop(sinks, "err"),
    });
    this.status = sinks.end.promise;
    this.#signal = signal;
  }

  /** Sends a signal to all that the command has started in its session. */
  kill(name: Deno.Signal): void {
    const number = SIGNALS[name];
    if (number === undefined) throw new Error(`${name} is not sent to a host`);
    this.#signal(number);
  }
}

interface Sinks {
  out: ReadableStreamDefaultController<Uint8Array> | null;
  err: ReadableStreamDefaultController<Uint8Array> | null;
  end: PromiseWithResolvers<{ code: number }>;
}

function drop(sinks: Sinks, which: "out" | "err"): void {
  sinks[which] = null;
}

export class Channel {
  /** Settles once the host takes commands. Rejects if it ends before. */
  readonly ready: Promise<void>;
  readonly #connection: Deno.Conn;
  readonly #processes = new Map<number, Sinks>();
  readonly #hello = Promise.withResolvers<void>();
  readonly #ended: Promise<void>;
  #next = 1;
  #writes: Promise<void> = Promise.resolve();
  #open = true;

  constructor(connection: Deno.Conn) {
    this.#connection = connection;
    this.ready = this.#hello.promise;
    this.ready.catch(() => {});
    this.#ended = this.#listen();
  }

  /** Runs `command` by the host's /bin/sh with `stdin`. On a host that is dead it ends at once, as if killed. */
  start(command: string, stdin: Uint8Array = new Uint8Array()): RemoteProcess {
    const id = this.#next++;
    const sinks: Sinks = { out: null, err: null, end: Promise.withResolvers() };
    const process = new RemoteProcess(sinks, (number) => {
      if (this.#processes.has(id)) this.#signal(id, number);
    });
    this.#processes.set(id, sinks);
    if (this.#open) this.#send(FRAME.exec, id, [new TextEncoder().encode(`${command}\0`), stdin]);
    else this.#finish(id, KILLED);
    return process;
  }

  /** Sends SIGKILL to all that runs, as RemoteProcess.kill() does. Resolves when all has ended. */
  async killAll(): Promise<void> {
    const ends = [...this.#processes.values()].map(({ end }) => end.promise);
    for (const id of this.#processes.keys()) this.#signal(id, KILL);
    await Promise.all(ends);
  }

  /** Ends the connection, and with it every process that still runs. */
  async close(): Promise<void> {
    if (this.#open) this.#connection.close();
    await this.#ended;
    await this.#writes;
  }

  #signal(id: number, number: number): void {
    this.#send(FRAME.signal, id, [new Uint8Array(new Uint32Array([number]).buffer)]);
  }

  #send(type: number, id: number, parts: readonly Uint8Array[]): void {
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    const header = new Uint8Array(new Uint32Array([type, id, length]).buffer);
    this.#writes = this.#writes.then(async () => {
      for (const part of [header, ...parts]) await writeAll(this.#connection, part);
    }).catch((error) => {
      // The reader learns the same, and tells whoever waits.
      if (this.#open) console.log(`lab: a host takes no commands any more: ${error}`);
    });
  }

  async #listen(): Promise<void> {
    try {
      for await (const { type, id, data } of frames(this.#connection)) this.#take(type, id, data);
    } catch (error) {
      // Closed here, or the other end was killed: both end a host.
      if (!(error instanceof Deno.errors.BadResource) && !isGone(error)) console.log(`lab: command channel: ${error}`);
    } finally {
      this.#hello.reject(new Error("the host ended before it took commands"));
      if (this.#open) closeQuietly(this.#connection);
      this.#open = false;
      for (const id of [...this.#processes.keys()]) this.#finish(id, KILLED);
    }
  }

  #take(type: number, id: number, data: Uint8Array<ArrayBuffer>): void {
    const sinks = this.#processes.get(id);
    if (type === FRAME.hello) this.#hello.resolve();
    else if (type === FRAME.out) sinks?.out?.enqueue(data);
    else if (type === FRAME.err) sinks?.err?.enqueue(data);
    else if (type === FRAME.exit) this.#finish(id, new DataView(data.buffer).getUint32(0, true));
    else throw new Error(`a frame of type ${type}`);
  }

  #finish(id: number, code: number): void {
    const sinks = this.#processes.get(id);
    this.#processes.delete(id);
    sinks?.out?.close();
    sinks?.err?.close();
    sinks?.end.resolve({ code });
  }
}

/** Frames as they come, until the other end closes. */
async function* frames(connection: Deno.Conn) {
  for (;;) {
    const header = await readExactly(connection, HEADER_BYTES);
    if (!header) return;
    const [type = 0, id = 0, length = 0] = new Uint32Array(header.buffer);
    const data = await readExactly(connection, length);
    if (!data) return;
    yield { type, id, data };
  }
}

async function readExactly(connection: Deno.Conn, length: number): Promise<Uint8Array<ArrayBuffer> | null> {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length;) {
    const n = await connection.read(bytes.subarray(at));
    if (n === null) return null;
    at += n;
  }
  return bytes;
}

export async function writeAll(connection: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) at += await connection.write(bytes.subarray(at));
}

function isGone(error: unknown): boolean {
  return error instanceof Deno.errors.ConnectionReset || error instanceof Deno.errors.Interrupted ||
    error instanceof Deno.errors.BrokenPipe;
}

function closeQuietly(connection: Deno.Conn): void {
  try {
    connection.close();
  } catch (error) {
    if (!(error instanceof Deno.errors.BadResource)) throw error;
  }
}
