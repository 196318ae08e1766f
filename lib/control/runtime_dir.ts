/**
 * The directory that a running process owns: `/run/gyges/NAME/`, or `$XDG_RUNTIME_DIR/gyges/NAME/` without root.
 *
 *   owner         {"pid"}; locked exclusively with flock(2) by the owner for as long as it lives
 *   control.sock  its control socket
 *   attach.json   while a QEMU's guest is at the destination and its memory is not, at either end: what a process needs
 *                 that takes over when the owner dies, secrets included. With it there, nothing is cleared away.
 *   qmp.sock      monitor of the QEMU that was started for the guest, or a link to another's
 *   log           what a detached process had to say; where it failed it stays until the name is used again
 *
 * Who holds the lock owns the name: the kernel takes it back when the process dies, however it dies, and no pid can be
 * mistaken for another. Whoever wants to know whether the owner lives tries for a shared lock and drops it at once.
 */
import * as v from "valibot";
import { PreflightError, UsageError } from "../errors.ts";

const NAME = /^[a-z0-9_][a-z0-9._-]{0,63}$/;
/** "ram" is where gygesfs is mounted. */
const RESERVED: readonly string[] = ["ram"];
/** sun_path holds 108 bytes with its NUL. */
const MAX_SOCKET_PATH_BYTES = 107;
const OWNER_FILE = "owner";
/** Left alone when a directory is cleared. */
const LOG_FILE = "log";
const ATTACH_FILE = "attach.json";
/** Tries of a claim that meets others looking or leaving, each over within microseconds. */
const CLAIM_TURNS = 20;
const CLAIM_PAUSE_MS = 5;

const ownerSchema = v.object({ pid: v.pipe(v.number(), v.integer()) });

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
export function makePrivate(path: string): void {
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

const NO_ROOM: readonly unknown[] = ["ENOSPC", "EDQUOT", "EROFS"];

/** What `make` makes under `base`. Throws PreflightError where the file system has no room for it. */
export async function inRoom<T>(base: string, make: () => T | Promise<T>): Promise<T> {
  try {
    return await make();
  } catch (cause) {
    if (!(cause instanceof Error && "code" in cause && NO_ROOM.includes(cause.code))) throw cause;
    const what = cause.code === "EROFS" ? "it cannot be written" : "no space is left there";
    throw refuse(`Cannot use ${base} as ${what}`, `see df ${base} and df -i ${base}, and make room`, cause);
  }
}

function parentOf(path: string): string {
  return path.slice(0, path.lastIndexOf("/"));
}

/** Pid that the owner of `directory` wrote down; null when none did. Whether it lives is for `isOwned` to say. */
export function ownerPid(directory: string): number | null {
  try {
    return v.parse(ownerSchema, JSON.parse(Deno.readTextFileSync(`${directory}/${OWNER_FILE}`))).pid;
  } catch (cause) {
    if (isMissing(cause)) return null;
    // Empty or half written: its owner is at this very moment claiming it, or died doing so.
    if (cause instanceof SyntaxError || v.isValiError(cause)) return null;
    throw cause;
  }
}

/** Whether a living process owns `directory`. */
export function isOwned(directory: string): boolean {
  try {
    using file = Deno.openSync(`${directory}/${OWNER_FILE}`);
    return !file.tryLockSync(false);
  } catch (cause) {
    if (isMissing(cause)) return false;
    throw cause;
  }
}

function isMissing(cause: unknown): boolean {
  return cause instanceof Deno.errors.NotFound || cause instanceof Deno.errors.NotADirectory;
}

/** The error for a name that a living process has. */
export function inUse(name: string, directory: string): UsageError {
  return new UsageError(
    `Cannot take the name "${name}" as ${who(directory)}: choose another name, or stop that one with: ` +
      `gyges vm stop ${name}`,
  );
}

function who(directory: string): string {
  const pid = ownerPid(directory);
  return pid ? `process ${pid} has it` : "another process is claiming it";
}

function notToAttach(name: string, why: string): UsageError {
  return new UsageError(`Cannot attach "${name}" as ${why}`);
}

function removeSocket(directory: string): void {
  if (exists(socketPathIn(directory))) Deno.removeSync(socketPathIn(directory));
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

function clearLeftovers(directory: string): void {
  for (const entry of Deno.readDirSync(directory)) {
    if (entry.name === OWNER_FILE || entry.name === LOG_FILE) continue;
    Deno.removeSync(`${directory}/${entry.name}`, { recursive: true });
  }
}

function writeOwner(file: Deno.FsFile): void {
  file.truncateSync(0);
  file.seekSync(0, Deno.SeekMode.Start);
  file.writeSync(new TextEncoder().encode(`${JSON.stringify({ pid: Deno.pid })}\n`));
}

/**
 * A QEMU that has outlived its process: "waits" for the rest of its guest's memory, or for the word to run it, which
 * `gyges attach` may bring; or "stays", and needs nobody.
 */
export interface Survivor {
  name: string;
  how: "waits" | "stays";
  /** Of its monitor. */
  monitorPath: string;
}

/** Null: the process of `name` lives, or has left nothing that lives. */
export async function survivorOf(name: string, base: string = runtimeBase()): Promise<Survivor | null> {
  const directory = `${base}/${name}`;
  const monitorPath = monitorPathIn(directory);
  if (isOwned(directory)) return null;
  const waits = hasAttachRecord(directory);
  // Whoever has linked to the monitor of another's QEMU did not start it.
  if (!waits && !isSocket(monitorPath)) return null;
  return await listens(monitorPath) ? { name, how: waits ? "waits" : "stays", monitorPath } : null;
}

async function listens(path: string): Promise<boolean> {
  try {
    using _ = await Deno.connect({ transport: "unix", path });
    return true;
  } catch (cause) {
    if (isMissing(cause) || cause instanceof Deno.errors.ConnectionRefused) return false;
    // A monitor takes one client at a time, and has few wait.
    if (cause instanceof Deno.errors.WouldBlock) return true;
    throw cause;
  }
}

/** What there is to know of a survivor, and to do. */
export function survivorWords({ name, how, monitorPath }: Survivor): string {
  return how === "waits"
    ? `The process of "${name}" has died, and its guest waits: run gyges attach ${name}`
    : `The process of "${name}" has died, and its QEMU is still there: gyges describe --qmp ${monitorPath} shows it, ` +
      `gyges migrate TICKET --qmp ${monitorPath} moves a guest that runs in it`;
}

/** Whether the owner of `directory` has left, or would leave, a guest to be attached. */
export function hasAttachRecord(directory: string): boolean {
  return exists(attachPathIn(directory));
}

function exists(path: string): boolean {
  return lstat(path) !== null;
}

function isSocket(path: string): boolean {
  return lstat(path)?.isSocket ?? false;
}

function lstat(path: string): Deno.FileInfo | null {
  try {
    return Deno.lstatSync(path);
  } catch (cause) {
    if (isMissing(cause)) return null;
    throw cause;
  }
}

interface Claim {
  owner: Deno.FsFile;
  clearedStale: boolean;
}

/**
 * One try to own the directory at `path`, and to `clear` it. "owned": a living process has it. "again": somebody was just looking, or the
 * last owner was just leaving.
 */
function tryClaim(path: string, clear: (path: string) => void): Claim | "owned" | "again" {
  const owner = openOwnerFile(path);
  if (!owner) return "again";
  let claimed = false;
  try {
    if (!owner.tryLockSync(true)) return owner.tryLockSync(false) ? "again" : "owned";
    if (!isStillAt(owner, `${path}/${OWNER_FILE}`)) return "again";
    const clearedStale = owner.statSync().size > 0;
    clear(path);
    writeOwner(owner);
    claimed = true;
    return { owner, clearedStale };
  } finally {
    if (!claimed) owner.close();
  }
}

/**
 * A claimed name. Disposing of it removes the directory, but for the log of a detached process, and with all in it where
 * a guest is left to be attached.
 */
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
  static async claim(name: string, base: string = runtimeBase()): Promise<RuntimeDir> {
    const path = `${base}/${checkName(name)}`;
    if (new TextEncoder().encode(socketPathIn(path)).length > MAX_SOCKET_PATH_BYTES) {
      throw new UsageError(`Cannot make a socket in ${path} as its path is too long: choose a shorter name`);
    }
    return await inRoom(base, () => RuntimeDir.#claim(name, base, path));
  }

  static async #claim(name: string, base: string, path: string): Promise<RuntimeDir> {
    makePrivate(base);
    const survivor = await survivorOf(name, base);
    if (survivor) {
      throw new UsageError(`Cannot take the name "${name}". ${survivorWords(survivor)}, or choose another name`);
    }
    return await RuntimeDir.#take(name, path, () => {
      makePrivate(path);
      return tryClaim(path, clearLeftovers);
    });
  }

  /**
   * Takes over the name of a process that died in the move of a guest whose memory was not yet all at the destination. Throws UsageError when the
   * process lives, or left no guest.
   */
  static async adopt(name: string, base: string = runtimeBase()): Promise<RuntimeDir> {
    const path = `${base}/${checkName(name)}`;
    if (isOwned(path)) throw notToAttach(name, `${who(path)}, which lives: see gyges monitor ${name}`);
    if (!hasAttachRecord(path)) {
      const survivor = await survivorOf(name, base);
      const why = survivor
        ? `nothing is left to bring. ${survivorWords(survivor)}`
        : "no process of that name has died here in a move past the commit point";
      throw notToAttach(name, why);
    }
    checkPrivate(path);
    return await RuntimeDir.#take(name, path, () => tryClaim(path, removeSocket));
  }

  static async #take(name: string, path: string, attempt: () => ReturnType<typeof tryClaim>): Promise<RuntimeDir> {
    for (let turn = 1; turn <= CLAIM_TURNS; turn++) {
      const outcome = attempt();
      if (outcome === "owned") break;
      if (outcome !== "again") return new RuntimeDir(name, path, outcome.owner, outcome.clearedStale);
      await new Promise((resolve) => setTimeout(resolve, CLAIM_PAUSE_MS));
    }
    throw inUse(name, path);
  }

  get socketPath(): string {
    return socketPathIn(this.path);
  }

  get attachPath(): string {
    return attachPathIn(this.path);
  }

  get logPath(): string {
    return logPathIn(this.path);
  }

  [Symbol.dispose](): void {
    const owner = this.#owner;
    this.#owner = null;
    if (!owner) return;
    try {
      if (hasAttachRecord(this.path)) return;
      clearLeftovers(this.path);
      Deno.removeSync(`${this.path}/${OWNER_FILE}`);
      removeIfEmpty(this.path);
    } catch (cause) {
      // Somebody cleaned up by hand; the name is free all the same.
      if (!isMissing(cause)) throw cause;
    } finally {
      owner.close();
    }
  }
}

function removeIfEmpty(directory: string): void {
  if ([...Deno.readDirSync(directory)].length === 0) Deno.removeSync(directory);
}

/** Waits until no living process owns `name`; false if one still does after `timeoutMs`. */
export async function untilFree(name: string, timeoutMs: number, base: string = runtimeBase()): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  while (isOwned(`${base}/${checkName(name)}`)) {
    if (performance.now() > deadline) return false;
    await new Promise((resolve) => setTimeout(resolve, CLAIM_PAUSE_MS));
  }
  return true;
}

/** Removes the log that process `name` left, and with it the directory. */
export function forgetLog(name: string, base: string = runtimeBase()): void {
  const directory = `${base}/${checkName(name)}`;
  try {
    Deno.removeSync(logPathIn(directory));
    removeIfEmpty(directory);
  } catch (cause) {
    if (!isMissing(cause)) throw cause;
  }
}

export function socketPathIn(directory: string): string {
  return `${directory}/control.sock`;
}

export function attachPathIn(directory: string): string {
  return `${directory}/${ATTACH_FILE}`;
}

export function monitorPathIn(directory: string): string {
  return `${directory}/qmp.sock`;
}

export function logPathIn(directory: string): string {
  return `${directory}/${LOG_FILE}`;
}

export interface RunningProcess {
  name: string;
  /** null while it is still claiming its name. */
  pid: number | null;
}

/** Living owners under `base`, by name. Directories of the dead are passed over. */
export function listRunning(base: string = runtimeBase()): RunningProcess[] {
  return directoriesIn(base)
    .filter((name) => isOwned(`${base}/${name}`))
    .sort()
    .map((name) => ({ name, pid: ownerPid(`${base}/${name}`) }));
}

/** What the dead have left under `base`, by name. */
export async function listSurvivors(base: string = runtimeBase()): Promise<Survivor[]> {
  const all = await Promise.all(directoriesIn(base).sort().map((name) => survivorOf(name, base)));
  return all.filter((survivor) => survivor !== null);
}

function directoriesIn(base: string): string[] {
  try {
    return [...Deno.readDirSync(base)].filter((entry) => entry.isDirectory && NAME.test(entry.name)).map((e) => e.name);
  } catch (cause) {
    if (isMissing(cause)) return [];
    throw cause;
  }
}
