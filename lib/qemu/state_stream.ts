/**
 * QEMU's own migration stream, without RAM: taken from the source's QEMU, given to the destination's, by a connection that
 * QEMU is handed: whoever it runs as, wherever its root is, it need not reach a socket of ours.
 */
import * as v from "valibot";
import type { NativeProcess } from "../../ffi/process.ts";
import { MachineStateError } from "./errors.ts";
import type { QmpClient } from "./qmp.ts";

const POLL_MS = 1;
const infoSchema = v.object({
  status: v.optional(v.string()),
  "error-desc": v.optional(v.string()),
  "blocked-reasons": v.optional(v.array(v.string())),
});
const capabilitiesSchema = v.array(v.object({ capability: v.string(), state: v.boolean() }));

/** What the stream needs: no RAM of shared files in it, and disks that stay the source's until the guest runs. */
const CAPABILITIES = ["x-ignore-shared", "late-block-activate"] as const;

/** QEMU's word for the connection that it is handed. */
const CONNECTION = "gyges-state";

export interface StreamOptions {
  process: NativeProcess;
  /** Path for a unix socket that nobody else can reach. */
  socketPath: string;
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

/** The state of the stopped guest, after setCapabilities(). Throws MachineStateError, QmpLostError. */
export async function takeState(
  qmp: QmpClient,
  options: StateOptions & { maxBytes: number },
): Promise<Uint8Array<ArrayBuffer>> {
  const { timeoutMs, maxBytes } = options;
  using stream = options.stream;
  const [state] = await Promise.all([
    readAll(stream, maxBytes, timeoutMs),
    qmp.call("migrate", { uri: `fd:${CONNECTION}` }),
  ]);
  await untilCompleted(qmp, timeoutMs);
  return state;
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

/** Loads `state` after awaitState(). Throws MachineStateError, QmpLostError. */
export async function giveState(
  qmp: QmpClient,
  state: Uint8Array<ArrayBuffer>,
  options: StateOptions,
): Promise<void> {
  using stream = options.stream;
  for (let at = 0; at < state.length;) at += await stream.write(state.subarray(at));
  stream.closeWrite();
  await untilCompleted(qmp, options.timeoutMs);
}

async function readAll(stream: Deno.UnixConn, maxBytes: number, timeoutMs: number) {
  const timer = setTimeout(() => stream.close(), timeoutMs);
  try {
    const parts: Uint8Array[] = [];
    let length = 0;
    const buffer = new Uint8Array(1 << 20);
    for (let n = await stream.read(buffer); n !== null; n = await stream.read(buffer)) {
      length += n;
      if (length > maxBytes) {
        throw new MachineStateError(
          `QEMU's state is larger than ${maxBytes} bytes: it seems to send guest RAM, which Gyges moves by itself`,
        );
      }
      parts.push(buffer.slice(0, n));
    }
    return joined(parts, length);
  } finally {
    clearTimeout(timer);
  }
}

function joined(parts: readonly Uint8Array[], length: number): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

async function untilCompleted(qmp: QmpClient, timeoutMs: number): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const info = await qmp.ask(infoSchema, "query-migrate");
    if (info.status === "completed") return;
    if (info.status === "failed" || info.status === "cancelled") {
      throw new MachineStateError(`QEMU's migration ${info.status}: ${info["error-desc"] ?? "it does not say why"}`);
    }
    if (performance.now() > deadline) {
      throw new MachineStateError(`QEMU's migration is "${info.status}" after ${timeoutMs / 1000} s`);
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

function removeSocket(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
