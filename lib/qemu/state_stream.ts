/**
 * QEMU's own migration stream, without RAM: taken from the source's QEMU, given to the destination's, by a connection that
 * QEMU is handed: whoever it runs as, wherever its root is, it need not reach a socket of ours.
 */
import * as v from "valibot";
import type { NativeProcess } from "../../ffi/process.ts";
import { delay } from "../migration/timing.ts";
import { MachineStateError } from "./errors.ts";
import { type QmpClient, QmpCommandError } from "./qmp.ts";

/** QEMU says when it is done; to ask meanwhile is for one whose word has got lost. */
const POLL_MS = 50;
/** What it writes at once is less. */
const PIECE_BYTES = 256 << 10;
const NOTHING = new Uint8Array(0);
/** QEMU's words for a migration that is no more. */
const ENDS = ["completed", "failed", "cancelled"];
const infoSchema = v.object({
  status: v.optional(v.string()),
  "error-desc": v.optional(v.string()),
  "blocked-reasons": v.optional(v.array(v.string())),
});
const eventSchema = v.object({ status: v.string() });
const capabilitiesSchema = v.array(v.object({ capability: v.string(), state: v.boolean() }));

/**
 * What the stream needs: no RAM of shared files in it, and disks that stay the source's until the guest runs. And QEMU's
 * word of how it goes.
 */
const CAPABILITIES = ["x-ignore-shared", "late-block-activate", "events"] as const;

/** QEMU's word for the connection that it is handed. */
const CONNECTION = "gyges-state";

export interface StreamOptions {
  process: NativeProcess;
  /** Path for a unix socket that nobody else can reach. */
  socketPath: string;
}

type Monitor = Pick<QmpClient, "call" | "ask" | "listen">;

/** A part of what a machine saves. */
export interface StatePiece {
  bytes: Uint8Array<ArrayBuffer>;
  /** false: it is the last. */
  more: boolean;
}

export interface StateOptions {
  /** Of openStream() or awaitState(); used up. */
  stream: Deno.UnixConn;
  timeoutMs: number;
}

/** What migration capabilities were before they were made what the stream needs. */
export type Capabilities = v.InferOutput<typeof capabilitiesSchema>;

/** Why QEMU would refuse to send this guest's state, in its words. */
export async function blockersOf(qmp: QmpClient): Promise<string[]> {
  return (await qmp.ask(infoSchema, "query-migrate"))["blocked-reasons"] ?? [];
}

/** Once the guest is stopped every answer of the monitor is downtime: so this comes first. */
export function setCapabilities(qmp: QmpClient): Promise<Capabilities> {
  return chooseCapabilities(qmp, CAPABILITIES);
}

/** Sets migration capabilities; what they were before. Throws MachineStateError where QEMU lacks one. */
export async function chooseCapabilities(qmp: QmpClient, names: readonly string[]): Promise<Capabilities> {
  const all = await qmp.ask(capabilitiesSchema, "query-migrate-capabilities");
  const before = all.filter(({ capability }) => names.includes(capability));
  if (before.length < names.length) {
    throw new MachineStateError(`This QEMU has not all of the migration capabilities ${names.join(", ")}`);
  }
  const capabilities = names.map((capability) => ({ capability, state: true }));
  await qmp.call("migrate-set-capabilities", { capabilities });
  return before;
}

/** As they were: another tool's migration must not leave RAM out. */
export async function resetCapabilities(qmp: QmpClient, capabilities: Capabilities): Promise<void> {
  await qmp.call("migrate-set-capabilities", { capabilities });
}

/** Our end of a connection that QEMU has the other of. Throws QmpLostError, NativeError. */
export async function openStream(qmp: QmpClient, { process, socketPath }: StreamOptions): Promise<Deno.UnixConn> {
  try {
    using listener = Deno.listen({ transport: "unix", path: socketPath });
    await qmp.callBy((line) => process.sendConnection(line, socketPath), "getfd", { fdname: CONNECTION });
    return await listener.accept();
  } finally {
    removeSocket(socketPath);
  }
}

/**
 * The state of the stopped guest, after setCapabilities(), as QEMU writes it. When this ends, early or not, QEMU is at no
 * migration any more and takes `cont`. Throws MachineStateError, QmpLostError.
 */
export async function* takeState(
  qmp: Monitor,
  { stream, timeoutMs, maxBytes }: StateOptions & { maxBytes: number },
): AsyncGenerator<StatePiece> {
  let over = false;
  let refusal: Error | null = null;
  using end = new EndWatch(qmp);
  const begun = qmp.call("migrate", { uri: `fd:${CONNECTION}` }).catch((error) => {
    refusal = error;
    over = error instanceof QmpCommandError;
    // Nothing more is to be waited for.
    close(stream);
  });
  try {
    for await (const bytes of readAll(stream, maxBytes, timeoutMs)) yield { bytes, more: true };
    await begun;
    await end.completed(timeoutMs);
    over = true;
    yield { bytes: NOTHING, more: false };
  } catch (error) {
    throw refusal ?? error;
  } finally {
    close(stream);
    await begun;
    if (!over) await end.over(timeoutMs).catch(() => {});
  }
}

/** A QEMU that was started with -incoming defer waits for a state from here on, which goes into the result. */
export async function awaitState(qmp: QmpClient, options: StreamOptions): Promise<Deno.UnixConn> {
  await setCapabilities(qmp);
  const stream = await openStream(qmp, options);
  try {
    await qmp.call("migrate-incoming", { uri: `fd:${CONNECTION}` });
    return stream;
  } catch (error) {
    stream.close();
    throw error;
  }
}

/** Loads a state after awaitState(). Throws MachineStateError, QmpLostError, and what `pieces` throws. */
export async function giveState(
  qmp: Monitor,
  pieces: AsyncIterable<Uint8Array<ArrayBuffer>>,
  { stream, timeoutMs }: StateOptions,
): Promise<void> {
  using end = new EndWatch(qmp);
  try {
    if (await writeAll(stream, pieces)) stream.closeWrite();
    await end.completed(timeoutMs);
  } finally {
    stream.close();
  }
}

/** false: QEMU reads no more, for a reason that it says elsewhere. */
async function writeAll(stream: Deno.UnixConn, pieces: AsyncIterable<Uint8Array>): Promise<boolean> {
  for await (const piece of pieces) {
    try {
      for (let at = 0; at < piece.length;) at += await stream.write(piece.subarray(at));
    } catch (error) {
      if (error instanceof Deno.errors.BrokenPipe || error instanceof Deno.errors.ConnectionReset) return false;
      throw error;
    }
  }
  return true;
}

async function* readAll(stream: Deno.UnixConn, maxBytes: number, timeoutMs: number) {
  const buffer = new Uint8Array(PIECE_BYTES);
  let length = 0;
  for (;;) {
    const n = await readOnce(stream, buffer, timeoutMs);
    if (n === null) return;
    length += n;
    if (length > maxBytes) {
      throw new MachineStateError(
        `QEMU's state is larger than ${maxBytes} bytes: it seems to send guest RAM, which Gyges moves by itself`,
      );
    }
    yield buffer.slice(0, n);
  }
}

async function readOnce(stream: Deno.UnixConn, buffer: Uint8Array, timeoutMs: number): Promise<number | null> {
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    close(stream);
  }, timeoutMs);
  try {
    return await stream.read(buffer);
  } catch (error) {
    throw late ? new MachineStateError(`QEMU has sent nothing of its state for ${timeoutMs / 1000} s`) : error;
  } finally {
    clearTimeout(timer);
  }
}

/** It may be closed already. */
function close(stream: Deno.UnixConn): void {
  try {
    stream.close();
  } catch (error) {
    if (!(error instanceof Deno.errors.BadResource)) throw error;
  }
}

/** The end of QEMU's migration that begins, or goes on, while this watches. */
class EndWatch implements Disposable {
  readonly #qmp: Monitor;
  readonly #listening: Disposable;
  readonly #told = Promise.withResolvers<string>();

  constructor(qmp: Monitor) {
    this.#qmp = qmp;
    this.#listening = qmp.listen(({ name, data }) => {
      const status = name === "MIGRATION" && v.is(eventSchema, data) ? data.status : "";
      if (ENDS.includes(status)) this.#told.resolve(status);
    });
  }

  /** Throws MachineStateError where it has ended otherwise, or not in time; QmpLostError. */
  async completed(timeoutMs: number): Promise<void> {
    const { status, "error-desc": why } = await this.over(timeoutMs);
    if (status !== "completed") {
      throw new MachineStateError(`QEMU's migration ${status}: ${why ?? "it does not say why"}`);
    }
  }

  /** How it ended. */
  async over(timeoutMs: number): Promise<v.InferOutput<typeof infoSchema>> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      using tick = delay(POLL_MS);
      const status = await Promise.race([this.#told.promise, tick.promise]);
      // Of a failure the event does not say why.
      if (status === "completed") return { status };
      const info = await this.#qmp.ask(infoSchema, "query-migrate");
      if (ENDS.includes(info.status ?? "")) return info;
      if (performance.now() > deadline) {
        throw new MachineStateError(`QEMU's migration is "${info.status}" after ${timeoutMs / 1000} s`);
      }
      await tick.promise;
    }
  }

  [Symbol.dispose](): void {
    this.#listening[Symbol.dispose]();
  }
}

function removeSocket(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
