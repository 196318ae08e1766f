/** Loads and unloads the kernel module, with its file system. */
import { insertModule, mountGygesfs, removeModule, unmountGygesfs, usersOf } from "../../ffi/kernel_module.ts";
import { NativeError } from "../../ffi/native_error.ts";
import { runTool } from "../../ffi/tool.ts";
import { makePrivate } from "../control/runtime_dir.ts";
import { PreflightError } from "../errors.ts";
import { type HostView, isThere, lineOf, THIS_HOST } from "./host_view.ts";
import { buildModule, type BuildModuleOptions, exists } from "./module_build.ts";
import { MODULE, type ModuleStatus, moduleStatus } from "./module_status.ts";
import { RAM_FOLDER } from "./ram_folder.ts";
import { findProgram, installRemedy } from "./packages.ts";

/** What a process held goes a moment after its end. */
const SETTLE_TRIES = 20;
const SETTLE_MS = 100;

/** What gyges.ko needs loaded before it. */
const DEPENDENCY = "rdma_cm";

export interface LoadModuleOptions extends Omit<BuildModuleOptions, "kernel"> {
  /** A gyges.ko to load instead of one that is built here, as one that was signed. */
  file?: string;
}

export interface LoadedModule {
  /** Everything done, in order, for people. */
  done: string[];
  status: ModuleStatus;
}

/** Has the module loaded and gygesfs mounted, whatever of it there is already. Throws PreflightError. */
export async function loadModule({ file, ...options }: LoadModuleOptions = {}): Promise<LoadedModule> {
  requireRoot("load");
  const done: string[] = [];
  const before = moduleStatus();
  if (before.loaded) {
    requireSame(before);
    done.push(`gyges ${before.version} is loaded`);
  } else {
    const path = file ?? await built(options, done);
    await loadDependencies();
    await insert(path);
    done.push(`loaded ${path}`);
  }
  mount(done);
  return { done, status: moduleStatus() };
}

async function built(options: BuildModuleOptions, done: string[]): Promise<string> {
  const { path, built } = await buildModule(options);
  if (built) done.push(`built ${path}`);
  return path;
}

function requireRoot(verb: string): void {
  if (Deno.uid() === 0) return;
  throw new PreflightError(`Cannot ${verb} a kernel module as user ${Deno.uid()}`, {
    check: "root",
    remedy: `as root run: gyges module ${verb}`,
  });
}

function requireSame({ source, carried, source_matches }: ModuleStatus): void {
  if (source_matches) return;
  throw new PreflightError(
    `Cannot load the module as another build of it is loaded: source ${source ?? "unknown"}, this is ${carried.source}`,
    { check: "module", remedy: "run: gyges module unload && gyges module load" },
  );
}

async function loadDependencies(): Promise<void> {
  if (isThere(THIS_HOST, `/sys/module/${DEPENDENCY}`)) return;
  const modprobe = findProgram("modprobe");
  if (modprobe === null) throw noDependency("there is no modprobe", installRemedy(KMOD));
  const log = Deno.makeTempFileSync({ prefix: "gyges-modprobe-" });
  try {
    if (await runTool([modprobe, DEPENDENCY], { log }) === 0) return;
    const kernel = Deno.osRelease();
    throw noDependency(
      `modprobe says: ${Deno.readTextFileSync(log).trim()}`,
      installRemedy({
        debian: `linux-image-${kernel}`,
        fedora: `kernel-modules-${kernel}`,
        suse: "kernel-default",
        arch: "linux",
      }),
    );
  } finally {
    Deno.removeSync(log);
  }
}

const KMOD = { debian: "kmod", fedora: "kmod", suse: "kmod", arch: "kmod" };

function noDependency(why: string, remedy: string): PreflightError {
  return new PreflightError(`Cannot load ${DEPENDENCY}, which the module needs: ${why}`, { check: "module", remedy });
}

async function insert(path: string): Promise<void> {
  if (!exists(path)) {
    throw new PreflightError(`Cannot load ${path} as there is no such file`, {
      check: "module",
      remedy: "leave --file out, and it is built",
    });
  }
  try {
    await insertModule(path);
  } catch (cause) {
    if (!(cause instanceof NativeError)) throw cause;
    const { found, remedy } = whyNotLoaded(cause.code, THIS_HOST);
    throw new PreflightError(`Cannot load ${path}: ${found} (${cause.code})`, { check: "module", remedy, cause });
  }
}

const SIGN = "sign it (gyges module install has DKMS do so: then run mokutil --import /var/lib/dkms/mok.pub, and " +
  "reboot), or turn Secure Boot off in the firmware";

/** Why the kernel refused the module, from the error's code. */
export function whyNotLoaded(code: string, host: HostView): { found: string; remedy: string } {
  switch (code) {
    case "EKEYREJECTED":
    case "ENOKEY":
    case "ENODATA":
    case "EBADMSG":
      return {
        found: "the kernel takes only modules with a signature that it knows, as with Secure Boot",
        remedy: SIGN,
      };
    case "EPERM":
      return refused(host);
    case "ENOEXEC":
      return {
        found: "it was built for another kernel than the running one",
        remedy: "remove the file and run: gyges module load",
      };
    case "ENOENT":
      return {
        found: "the running kernel lacks symbols that it needs, or has other versions of them",
        remedy: "see dmesg; then remove the file and run: gyges module load",
      };
    case "EEXIST":
      return { found: "a module of that name is loaded", remedy: "run: gyges module status" };
    default:
      return { found: "the kernel does not take it", remedy: "see what it says of it: dmesg | tail" };
  }
}

function refused(host: HostView): { found: string; remedy: string } {
  if (lineOf(host, "/proc/sys/kernel/modules_disabled") === "1") {
    return {
      found: "this kernel loads no more modules until it is booted again",
      remedy: "see kernel.modules_disabled",
    };
  }
  const lockdown = lineOf(host, "/sys/kernel/security/lockdown");
  if (lockdown !== null && !lockdown.includes("[none]")) {
    return {
      found: `the kernel is locked down (${lockdown}), as with Secure Boot, and it is not signed`,
      remedy: SIGN,
    };
  }
  return {
    found: "this root may load no modules, as in a container",
    remedy: "run gyges module load on the host itself, with CAP_SYS_MODULE",
  };
}

function mount(done: string[]): void {
  if (moduleStatus().mounts.includes(RAM_FOLDER)) {
    done.push(`gygesfs is mounted at ${RAM_FOLDER}`);
    return;
  }
  makePrivate(RAM_FOLDER.slice(0, RAM_FOLDER.lastIndexOf("/")));
  makePrivate(RAM_FOLDER);
  try {
    mountGygesfs(RAM_FOLDER);
  } catch (cause) {
    if (!(cause instanceof NativeError)) throw cause;
    throw new PreflightError(cause.message, {
      check: "mount",
      remedy: "see what the kernel says: dmesg | tail",
      cause,
    });
  }
  done.push(`mounted gygesfs at ${RAM_FOLDER}`);
}

/** Unmounts gygesfs wherever it is and unloads the module; what was done. Throws PreflightError while it is in use. */
export async function unloadModule(): Promise<LoadedModule> {
  requireRoot("unload");
  const done: string[] = [];
  const { loaded, mounts } = moduleStatus();
  if (!loaded) return { done: ["gyges is not loaded"], status: moduleStatus() };
  // The last mounted first: they may be one above the other.
  for (const folder of mounts.toReversed()) {
    await unmount(folder);
    done.push(`unmounted ${folder}`);
  }
  await remove();
  done.push("unloaded gyges");
  return { done, status: moduleStatus() };
}

async function unmount(folder: string): Promise<void> {
  const cause = await settled(() => unmountGygesfs(folder), () => usersOf(folder).length > 0);
  if (!cause) return;
  const users = usersOf(folder);
  throw inUse(
    users.length > 0
      ? `it is used by ${users.map(whoText).join(", ")}`
      : `${folder} cannot be unmounted: ${cause.detail}`,
    "end these first: guests by gyges vm stop NAME, see gyges vm list",
    cause,
  );
}

/** Does `undo`, again while it is busy and `held` does not say why; null: it is done, else what is in the way. */
async function settled(undo: () => void | Promise<void>, held: () => boolean): Promise<NativeError | null> {
  for (let tries = SETTLE_TRIES;; tries--) {
    try {
      await undo();
      return null;
    } catch (cause) {
      if (!(cause instanceof NativeError)) throw cause;
      if (!["EBUSY", "EAGAIN"].includes(cause.code) || tries === 1 || held()) return cause;
    }
    await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
  }
}

function whoText(user: string): string {
  const [pid = "", ...words] = user.split(" ");
  return `process ${pid} (${words.join(" ")})`;
}

function inUse(why: string, remedy: string, cause: unknown): PreflightError {
  return new PreflightError(`Cannot unload the module as ${why}`, { check: "module", remedy, cause });
}

async function remove(): Promise<void> {
  const cause = await settled(() => removeModule(MODULE), () => false);
  // Without it somebody was faster.
  if (!cause || cause.code === "ENOENT") return;
  if (cause.code !== "EAGAIN" && cause.code !== "EBUSY") {
    throw inUse(`the kernel refuses: ${cause.detail}`, "see what it says: dmesg | tail", cause);
  }
  const { references } = moduleStatus();
  throw inUse(
    `the kernel counts ${references ?? "some"} references to it, though nothing is mounted here`,
    "look for mounts of gygesfs in containers: grep gygesfs /proc/[0-9]*/mounts",
    cause,
  );
}
