/** Compiles the kernel module that this program carries, for one kernel; what was compiled once is kept. */
import { NativeError } from "../../ffi/native_error.ts";
import { runTool } from "../../ffi/tool.ts";
import { makePrivate } from "../control/runtime_dir.ts";
import { PreflightError, UsageError } from "../errors.ts";
import { type HostView, THIS_HOST } from "./host_view.ts";
import { type ModuleSource, moduleSource } from "./module_source.ts";
import { findProgram, installRemedy, sameEverywhere } from "./packages.ts";

export interface BuildModuleOptions {
  /** What uname -r says of the kernel. @default the running one's */
  kernel?: string;
  /** Its headers. @default /lib/modules/KERNEL/build */
  headers?: string;
  /** Where what is built is kept. @default a private directory of this user */
  cache?: string;
  signal?: AbortSignal;
}

export interface BuiltModule {
  /** Of gyges.ko, which is named by kernel and source. */
  path: string;
  kernel: string;
  source: string;
  /** It was built now; false: it was there. */
  built: boolean;
}

const SYSTEM_CACHE = "/var/cache/gyges";
/** Lines of make's output that are shown where it fails. */
const LAST_LINES = 4;

/**
 * The module for a kernel, built unless it is there. Throws UsageError for a name that no kernel has, PreflightError for
 * what this host lacks, or where the compiler gives up.
 */
export async function buildModule(options: BuildModuleOptions = {}): Promise<BuiltModule> {
  const source = moduleSource();
  const { kernel = Deno.osRelease(), signal } = options;
  if (!/^[\w.+~-]+$/.test(kernel) || kernel.startsWith(".")) {
    throw new UsageError(`Cannot build for a kernel "${kernel}": give what uname -r says of it`);
  }
  const cache = options.cache ?? ownCache();
  const path = modulePath(cache, kernel, source);
  if (exists(path)) return { path, kernel, source: source.hash, built: false };
  const headers = checkHeaders(kernel, options.headers);
  const make = checkTools(headers);
  makeFolder(cache);
  const work = `${cache}/build-${kernel}-${source.hash}-${Deno.pid}`;
  try {
    unpackSource(source, work);
    await compile({ make, work, headers, kernel, log: `${cache}/build-${kernel}.log`, ...(signal && { signal }) });
    Deno.renameSync(`${work}/gyges.ko`, path);
  } finally {
    removeFolder(work);
  }
  return { path, kernel, source: source.hash, built: true };
}

function modulePath(cache: string, kernel: string, { hash }: ModuleSource): string {
  return `${cache}/gyges-${kernel}-${hash}.ko`;
}

/** Where this user's modules are kept: what is in it is loaded into the kernel, so nobody else may write there. */
function ownCache(): string {
  if (Deno.uid() === 0) return privateFolder(SYSTEM_CACHE);
  const home = Deno.env.get("XDG_CACHE_HOME") ?? (Deno.env.get("HOME") && `${Deno.env.get("HOME")}/.cache`);
  if (!home?.startsWith("/")) {
    throw new PreflightError("Cannot keep what is built as there is neither HOME nor XDG_CACHE_HOME", {
      check: "module-cache",
      remedy: "name a directory: --cache DIR",
    });
  }
  return privateFolder(`${home}/gyges-module`);
}

function privateFolder(path: string): string {
  makeFolder(path.slice(0, path.lastIndexOf("/")));
  return inCache(path, () => {
    makePrivate(path);
    return path;
  });
}

function makeFolder(path: string): void {
  inCache(path, () => Deno.mkdirSync(path, { recursive: true }));
}

function inCache<T>(path: string, use: () => T): T {
  try {
    return use();
  } catch (cause) {
    if (!(cause instanceof Error)) throw cause;
    const reason = cause instanceof PreflightError ? cause.message : `Cannot write to ${path}: ${cause.message}`;
    throw new PreflightError(reason, {
      check: "module-cache",
      remedy: "or name another directory: --cache DIR",
      cause,
    });
  }
}

export function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound || cause instanceof Deno.errors.NotADirectory) return false;
    throw cause;
  }
}

export function defaultHeaders(kernel: string): string {
  return `/lib/modules/${kernel}/build`;
}

/** The headers of `kernel`. Throws PreflightError where there are none, or those of another kernel. */
function checkHeaders(kernel: string, given: string | undefined): string {
  const headers = given ?? defaultHeaders(kernel);
  if (!exists(`${headers}/Makefile`)) {
    const remedy = given === undefined ? headersRemedy(kernel) : `give the directory of the headers of ${kernel}`;
    throw new PreflightError(`Cannot build for Linux ${kernel} as its headers are not at ${headers}`, {
      check: "kernel-headers",
      remedy,
    });
  }
  // Not include/config/kernel.release, where Debian's 6.1 has a name of its own.
  const generated = THIS_HOST.read(`${headers}/include/generated/utsrelease.h`) ?? "";
  const release = /^#define UTS_RELEASE "([^"]+)"/m.exec(generated)?.[1] ?? null;
  if (release !== null && release !== kernel) {
    throw new PreflightError(`Cannot build for Linux ${kernel} as the headers at ${headers} are of ${release}`, {
      check: "kernel-headers",
      remedy: `${headersRemedy(kernel)}, or give --kernel ${release}`,
    });
  }
  return absolute(headers);
}

export function headersRemedy(kernel: string, host: HostView = THIS_HOST): string {
  return installRemedy({
    debian: `linux-headers-${kernel}`,
    fedora: `kernel-devel-${kernel}`,
    suse: "kernel-default-devel",
    arch: "linux-headers",
  }, host);
}

function absolute(path: string): string {
  return path.startsWith("/") ? path : `${Deno.cwd()}/${path}`;
}

/** The path of make. Throws PreflightError unless it and the kernel's compiler are there. */
function checkTools(headers: string): string {
  // Debian's headers name the compiler that the kernel was built with.
  const compiler = /\bgcc-\d+/.exec(THIS_HOST.read(`${headers}/.kernelvariables`) ?? "")?.[0] ?? "gcc";
  const [make] = ["make", compiler].map((name) => {
    const path = findProgram(name);
    if (path !== null) return path;
    throw new PreflightError(`Cannot build the module as there is no ${name}`, {
      check: "compiler",
      remedy: installRemedy(sameEverywhere(name)),
    });
  });
  return make ?? "make";
}

/** Writes the source to `folder`, a new one. */
export function unpackSource({ files }: ModuleSource, folder: string): void {
  for (const [path, text] of Object.entries(files)) {
    const file = `${folder}/${path}`;
    Deno.mkdirSync(file.slice(0, file.lastIndexOf("/")), { recursive: true });
    Deno.writeTextFileSync(file, text);
  }
}

interface CompileOptions {
  make: string;
  work: string;
  headers: string;
  kernel: string;
  log: string;
  signal?: AbortSignal;
}

async function compile({ make, work, headers, kernel, log, signal }: CompileOptions): Promise<void> {
  Deno.writeTextFileSync(log, "");
  const argv = [make, "-C", work, `KDIR=${headers}`, `-j${navigator.hardwareConcurrency}`];
  const code = await runTool(argv, { log, ...(signal && { signal }) }).catch((cause) => {
    if (!(cause instanceof NativeError)) throw cause;
    throw new PreflightError(cause.message, { check: "compiler", remedy: "see what is wrong with make", cause });
  });
  if (code === 0 && exists(`${work}/gyges.ko`)) return;
  throw new PreflightError(
    `The module does not build for Linux ${kernel}: ${complaintIn(Deno.readTextFileSync(log))}`,
    {
      check: "module-build",
      remedy: `see ${log}; the module is made for Linux 6.1 and 6.12`,
    },
  );
}

/** What make's output says went wrong. */
export function complaintIn(output: string): string {
  const lines = output.split("\n").map((line) => line.trim()).filter((line) => line !== "");
  const errors = lines.filter((line) => /\berror\b|\*\*\*|not found/i.test(line));
  return (errors.length > 0 ? errors.slice(0, LAST_LINES) : lines.slice(-LAST_LINES)).join("; ");
}

function removeFolder(path: string): void {
  try {
    Deno.removeSync(path, { recursive: true });
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
  }
}
