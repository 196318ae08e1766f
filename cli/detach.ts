/**
 * `--detach`: the same command again, in a session of its own, with its words going to a log.
 *
 * The child writes to a log beside the runtime directories, because its own does not exist yet. Once its control socket
 * answers, the log moves into its directory; if it fails, its words and its code are passed on.
 */
import { ControlClient, ControlError } from "../lib/control/client.ts";
import { inUse, isOwned, logPathIn, makePrivate, ownerPid, runtimeBase } from "../lib/control/runtime_dir.ts";
import { EXIT, type ExitCode, GygesError } from "../lib/errors.ts";
import { selfCommand } from "../lib/host/self.ts";
import type { ActionContext } from "./action.ts";
import { standardStreams, type Terminal } from "./terminal.ts";

/** Time from the start to an answering control socket; a first start unpacks the program. */
const START_DEADLINE_MS = 30_000;
const POLL_MS = 20;

class DetachError extends GygesError {
  override readonly name = "DetachError";
  readonly exitCode = EXIT.internal;
}

/** Starts the command of `context` without `--detach`, returns when process `name` answers. */
export async function startDetached(name: string, context: ActionContext): Promise<ExitCode> {
  const base = runtimeBase();
  const directory = `${base}/${name}`;
  if (isOwned(directory)) throw inUse(name, directory);
  makePrivate(base);
  const log = `${base}/.log-${crypto.randomUUID()}`;
  Deno.writeTextFileSync(log, "", { mode: 0o600, createNew: true });
  let started = false;
  try {
    const child = spawn(context.args, log);
    const stopRelay = new AbortController();
    const relay = relayTo(standardStreams, child.stderr, stopRelay.signal);
    const code = await answerOrEnd(name, directory, child);
    if (code === null) stopRelay.abort();
    await relay;
    if (code !== null) return knownCode(code);
    Deno.renameSync(log, logPathIn(directory));
    started = true;
    context.output.answer([{ type: "started", name, pid: child.pid }], () => `${name} ${child.pid}`);
    return EXIT.completed;
  } finally {
    if (!started) passOnWords(log);
  }
}

function spawn(args: readonly string[], log: string): Deno.ChildProcess {
  const { program, before } = selfCommand();
  const child = new Deno.Command(program, {
    args: [...before, ...args.filter((arg) => arg !== "--detach")],
    env: { GYGES_LOG: log },
    detached: true,
    stdin: "null",
    stdout: "null",
    // What it says before it has its log must not be lost; our own stderr it would keep open for ever.
    stderr: "piped",
  }).spawn();
  child.unref();
  return child;
}

/** Passes on what the child says before it has its log. */
async function relayTo(terminal: Terminal, words: ReadableStream<Uint8Array>, signal: AbortSignal): Promise<void> {
  const decoder = new TextDecoder();
  const sink = new WritableStream<Uint8Array>({
    write: (chunk) => terminal.err(decoder.decode(chunk, { stream: true })),
  });
  try {
    await words.pipeTo(sink, { signal });
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** null once `child` answers as `name`; its exit code if it ended instead. Throws DetachError at the deadline. */
async function answerOrEnd(name: string, directory: string, child: Deno.ChildProcess): Promise<number | null> {
  const ended = child.status.then((status) => status.code);
  const deadline = performance.now() + START_DEADLINE_MS;
  while (performance.now() < deadline) {
    if (ownerPid(directory) === child.pid && await answers(name)) return null;
    const pause = new Promise<null>((resolve) => setTimeout(() => resolve(null), POLL_MS));
    const code = await Promise.race([ended, pause]);
    if (code !== null) return code;
  }
  child.kill("SIGTERM");
  throw new DetachError(
    `Cannot start "${name}" as it did not answer within ${START_DEADLINE_MS / 1000} s: it was ended`,
  );
}

async function answers(name: string): Promise<boolean> {
  try {
    using client = await ControlClient.connect(name);
    await client.call("hello", {}, { timeoutMs: 1_000 });
    return true;
  } catch (error) {
    // It does not listen yet.
    if (error instanceof ControlError) return false;
    throw error;
  }
}

/** The child's words, where it would have said them itself: JSON lines on stdout, everything else on stderr. */
function passOnWords(log: string): void {
  for (const line of Deno.readTextFileSync(log).split("\n").filter((line) => line !== "")) {
    if (line.startsWith("{")) standardStreams.out(`${line}\n`);
    else standardStreams.err(`${line}\n`);
  }
  Deno.removeSync(log);
}

function knownCode(code: number): ExitCode {
  return Object.values(EXIT).find((known) => known === code) ?? EXIT.internal;
}
