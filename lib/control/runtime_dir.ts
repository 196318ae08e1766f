/**
 * The directory that a running process owns: `/run/gyges/NAME/`, or `$XDG_RUNTIME_DIR/gyges/NAME/` without root.
 *
 *   owner         {"pid", "startTicks"}; locked with flock(2) by the owner for as long as it lives
 *   control.sock  its control socket
 *   log           what a detached process had to say
 *
 * Who holds the lock owns the name: the kernel gives it back when the process dies, however it dies. Others never touch
 * the lock; they look at pid and start time instead, so that looking cannot get in the way of a claim.
 */
import * as v from "valibot";
import { PreflightError, UsageError } from "../errors.ts";
import { isAlive, type ProcessId, thisProcess } from "./process_id.ts";

const NAME = /^[a-z0-9_][a-z0-9._-]{0,63}$/;
/** "ram" is where gygesfs is mounted. */
const RESERVED: readonly string[] = ["ram"];
/** sun_path holds 108 bytes with its NUL. */
const MAX_SOCKET_PATH_BYTES = 107;
const OWNER_FILE = "owner";
/** Left alone when a stale directory is cleared. */
const LOG_FILE = "log";

const ownerSchema = v.object({ pid: v.pipe(v.number(), v.integer()), startTicks: v.pipe(v.number(), v.integer()) });

/** `name` if it can name a process. Throws UsageError. */
export function checkName(name: string): string {
  if (!NAME.test(name)) {
    throw new UsageError(
      `Cannot use the name "${name}": write 1 to 64 of a-z, 0-9, ".", "_" and "-", the first no "." and no "-"`,
    );
  }
  if (RESERVED.includes(name)) throw new UsageError(`Cannot use the name "${name}" as Gyges keeps it: choose another`);
  return name;
}

/** Where this user's processes have their directories; $GYGES_RUNTIME_DIR overrides. Throws PreflightError. */
export function runtimeBase(): string {
  const chosen = Deno.env.get("GYGES_RUNTIME_DIR");
  if (chosen) return chosen;
  if (Deno.uid() === 0) return "/run/gyges";
  const session = Deno.env.get("XDG_RUNTIME_DIR");
  if (session) return `${session}/gyges`;
  throw new PreflightError("Cannot find a directory for control sockets as XDG_RUNTIME_DIR is not set", {
    check: "runtime-directory",
    remedy: "log in by a session that sets it, or export GYGES_RUNTIME_DIR=DIRECTORY (yours, mode 0700)",
  });
}

function refuse(message: string, remedy: string, cause?: unknown): PreflightError {
  return new PreflightError(message, { check: "runtime-directory", remedy, cause });
}

/** Throws PreflightError unless `path` is a directory, ours, and closed to everybody else. */
function checkPrivate(path: string): void {
  const info = Deno.lstatSync(path);
  if (!info.isDirectory) throw refuse(`Cannot use ${path} as it is no directory`, `remove it: rm ${path}`);
  const uid = Deno.uid();
  if (info.uid !== uid) {
    throw refuse(
      `Cannot use ${path} as it belongs to user ${info.uid}, and this is user ${uid}`,
      `remove it as user ${info.uid}`,
    );
  }
  const mode = (info.mode ?? 0) & 0o777;
  if ((mode & 0o077) !== 0) {
    throw refuse(`Cannot use ${path} as its mode is 0${mode.toString(8)} and must be 0700`, `run: chmod 0700 ${path}`);
  }
}

/** Makes `path` as a private directory, or accepts the one that is there if it is private. */
function makePrivate(path: string): void {
  try {
    Deno.mkdirSync(path, { mode: 0o700 });
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) {
      throw refuse(`Cannot create ${path} as its parent is missing`, `run: mkdir -m 0700 ${parentOf(path)}`, cause);
    }
    if (cause instanceof Deno.errors.PermissionDenied) {
      throw refuse(`Cannot create ${path}: permission denied`, "run as root", cause);
    }
    if (!(cause instanceof Deno.errors.AlreadyExists)) throw cause;
  }
  checkPrivate(path);
}

function parentOf(path: string): string {
  return path.slice(0, path.lastIndexOf("/"));
}

/** The process that says it owns `directory`; null when none does. It may be dead by now: see `isAlive`. */
export function readOwner(directory: string): ProcessId | null {
  try {
    return v.parse(ownerSchema, JSON.parse(Deno.readTextFileSync(`${directory}/${OWNER_FILE}`)));
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound || cause instanceof Deno.errors.NotADirectory) return null;
    // Empty or half written: its owner is at this very moment claiming it, or died doing so.
    if (cause instanceof SyntaxError || v.isValiError(cause)) return null;
    throw cause;
  }
}

function inUse(name: string, directory: string): UsageError {
  const owner = readOwner(directory);
  const who = owner ? `process ${owner.pid} has it` : "another process is claiming it";
  return new UsageError(
    `Cannot take the name "${name}" as ${who}: choose another name, or stop that one with: gyges vm stop ${name}`,
  );
}

function openOwnerFile(directory: string): Deno.FsFile | null {
  try {
    return Deno.openSync(`${directory}/${OWNER_FILE}`, { read: true, write: true, create: true, mode: 0o600 });
  } catch (cause) {
    // The last owner removed the directory between our mkdir and this open.
    if (cause instanceof Deno.errors.NotFound) return null;
    throw cause;
  }
}

/** Whether `file` is still what `path` names; a former owner may have unlinked it while we waited for its lock. */
function isStillAt(file: Deno.FsFile, path: string): boolean {
  try {
    const there = Deno.lstatSync(path);
    const here = file.statSync();
    return there.ino === here.ino && there.dev === here.dev;
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return false;
    throw cause;
  }
}

function clearLeftovers(directory: string): boolean {
  let cleared = false;
  for (const entry of Deno.readDirSync(directory)) {
    if (entry.name === OWNER_FILE || entry.name === LOG_FILE) continue;
    Deno.removeSync(`${directory}/${entry.name}`, { recursive: true });
    cleared = true;
  }
  return cleared;
}

function writeOwner(file: Deno.FsFile): void {
  file.truncateSync(0);
  file.seekSync(0, Deno.SeekMode.Start);
  file.writeSync(new TextEncoder().encode(`${JSON.stringify(thisProcess())}\n`));
}

/** A claimed name. Disposing of it removes the directory. */
export class RuntimeDir implements Disposable {
  readonly name: string;
  readonly path: string;
  /** What a dead process had left behind was cleared away. */
  readonly clearedStale: boolean;
  #owner: Deno.FsFile | null;

  private constructor(name: string, path: string, owner: Deno.FsFile, clearedStale: boolean) {
    this.name = name;
    this.path = path;
    this.clearedStale = clearedStale;
    this.#owner = owner;
  }

  /**
   * Takes `name` for this process. Throws UsageError when a living process has it or the name cannot be one,
   * PreflightError when the directory is not ours, not private or cannot be made.
   */
  static claim(name: string, base: string = runtimeBase()): RuntimeDir {
    const path = `${base}/${checkName(name)}`;
    if (new TextEncoder().encode(socketPathIn(path)).length > MAX_SOCKET_PATH_BYTES) {
      throw new UsageError(`Cannot make a socket in ${path} as its path is too long: choose a shorter name`);
    }
    makePrivate(base);
    // An owner that leaves removes the directory; each turn of this loop met one leaving.
    for (let turn = 0; turn < 10; turn++) {
      makePrivate(path);
      const file = openOwnerFile(path);
      if (!file) continue;
      if (!file.tryLockSync(true)) {
        file.close();
        throw inUse(name, path);
      }
      if (!isStillAt(file, `${path}/${OWNER_FILE}`)) {
        file.close();
        continue;
      }
      const stale = file.statSync().size > 0;
      const cleared = clearLeftovers(path);
      writeOwner(file);
      return new RuntimeDir(name, path, file, stale || cleared);
    }
    throw inUse(name, path);
  }

  get socketPath(): string {
    return socketPathIn(this.path);
  }

  get logPath(): string {
    return logPathIn(this.path);
  }

  [Symbol.dispose](): void {
    const owner = this.#owner;
    this.#owner = null;
    if (!owner) return;
    try {
      Deno.removeSync(this.path, { recursive: true });
    } catch (cause) {
      // Somebody cleaned up by hand; the name is free all the same.
      if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    } finally {
      owner.close();
    }
  }
}

export function socketPathIn(directory: string): string {
  return `${directory}/control.sock`;
}

export function logPathIn(directory: string): string {
  return `${directory}/${LOG_FILE}`;
}

export interface RunningProcess extends ProcessId {
  name: string;
}

/** Living owners under `base`, by name. Directories of the dead are passed over. */
export function listRunning(base: string = runtimeBase()): RunningProcess[] {
  const running: RunningProcess[] = [];
  for (const name of directoriesIn(base)) {
    const owner = readOwner(`${base}/${name}`);
    if (owner && isAlive(owner)) running.push({ name, ...owner });
  }
  return running.sort((a, b) => (a.name < b.name ? -1 : 1));
}

function directoriesIn(base: string): string[] {
  try {
    return [...Deno.readDirSync(base)].filter((entry) => entry.isDirectory && NAME.test(entry.name)).map((e) => e.name);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return [];
    throw cause;
  }
}
