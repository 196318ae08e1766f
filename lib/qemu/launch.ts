/** Starts QEMU processes that Gyges has a monitor of, and finds the one behind a monitor that is there already. */
import { NativeError } from "../../ffi/native_error.ts";
import { LISTEN_FD, NativeProcess, type ProcessFiles } from "../../ffi/process.ts";
import { monitorPathIn } from "../control/runtime_dir.ts";
import { PreflightError } from "../errors.ts";
import { launchArguments, splitCommand } from "./arguments.ts";
import { QmpClient, QmpLostError } from "./qmp.ts";

/** From QEMU's start to its monitor's answer; it may have to allocate all of a guest's RAM. */
const START_MS = 60_000;
/** For a process to end whose monitor has gone. */
const END_MS = 1_000;
/** Of its log, where it does not come up. */
const LAST_LINES = 5;
const LOG = "qemu.log";

export interface RunningQemu {
  process: NativeProcess;
  qmp: QmpClient;
}

export interface LaunchQemuOptions {
  /** The program, or what starts it as by exec, then its arguments as its user has them. */
  command: readonly string[];
  /** Private: for the monitor's socket and the log. */
  folder: string;
  /** Where its RAM files go; null: its RAM stays as its arguments have it. */
  ramFolder: string | null;
  incoming: boolean;
}

/** Throws UsageError for arguments that cannot work, PreflightError where QEMU does not come up. */
export async function launchQemu({ command, folder, ramFolder, incoming }: LaunchQemuOptions): Promise<RunningQemu> {
  const { start, args } = splitCommand(command);
  const socketPath = monitorPathIn(folder);
  const log = `${folder}/${LOG}`;
  const argv = [...start, ...launchArguments(args, { ramFolder, monitorFd: LISTEN_FD, incoming })];
  const helperPath = ramFolder === null ? null : `${folder}/faults.sock`;
  const process = await startProcess(argv, { log, socketPath, helperPath });
  try {
    const qmp = await monitorOf(process, socketPath, log);
    if (start.length > 1) await refuseParent(start[0] ?? "", { process, qmp });
    return { process, qmp };
  } catch (error) {
    process.kill();
    process[Symbol.dispose]();
    throw error;
  }
}

async function startProcess(argv: readonly string[], files: ProcessFiles) {
  try {
    return await NativeProcess.start(argv, files);
  } catch (cause) {
    if (!(cause instanceof NativeError)) throw cause;
    throw new PreflightError(cause.message, {
      check: "qemu",
      remedy: cause.code === "ENOENT" ? "run: apt-get install -y qemu-system-x86" : "give the path of a QEMU program",
      cause,
    });
  }
}

/** The socket has listened since before it was QEMU's. */
async function monitorOf(process: NativeProcess, path: string, log: string): Promise<QmpClient> {
  try {
    // It is ours alone: one that says nothing is slow, not taken.
    return await QmpClient.connect(path, START_MS);
  } catch (error) {
    if (!(error instanceof QmpLostError)) throw error;
    if (await process.ended(END_MS)) throw didNotStart("it ended", log);
    throw didNotStart(`it had no monitor after ${START_MS / 1000} s`, log);
  }
}

/** Throws PreflightError where `starter` has not become QEMU but has it as a child, whose memory is not its own. */
async function refuseParent(starter: string, { process, qmp }: RunningQemu): Promise<void> {
  if (process.read("cmdline").split("\0")[0] !== starter) return;
  await qmp.call("quit").catch(() => {});
  qmp[Symbol.dispose]();
  throw new PreflightError(`Cannot use ${starter} to start QEMU as it is process ${process.pid} and QEMU its child`, {
    check: "qemu",
    remedy: "use what becomes QEMU itself: setpriv --reuid USER --regid GROUP --init-groups, or QEMU's own -runas",
  });
}

function didNotStart(what: string, log: string): PreflightError {
  return new PreflightError(`QEMU did not start: ${what}${lastWords(log)}`, {
    check: "qemu",
    remedy: "mend its arguments; the same ones must start QEMU on this host by hand",
  });
}

/** What it has said at last, behind a comma; nothing for one that was not started in `folder`. */
export function lastWordsIn(folder: string): string {
  try {
    return lastWords(`${folder}/${LOG}`);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return "";
    throw error;
  }
}

function lastWords(log: string): string {
  const said = Deno.readTextFileSync(log).trim().split("\n").slice(-LAST_LINES).join("; ");
  return said === "" ? "" : `, having said: ${said}`;
}

/** The QEMU behind the monitor at `path`. Throws PreflightError, QmpLostError. */
export async function findQemu(path: string): Promise<RunningQemu> {
  let process: NativeProcess;
  try {
    process = NativeProcess.listeningOn(path);
  } catch (cause) {
    if (!(cause instanceof NativeError)) throw cause;
    throw new PreflightError(cause.message, {
      check: "qmp",
      remedy: "give the path of QEMU's monitor socket: -qmp unix:PATH,server=on,wait=off",
      cause,
    });
  }
  try {
    return { process, qmp: await QmpClient.connect(path) };
  } catch (error) {
    process[Symbol.dispose]();
    throw error;
  }
}
