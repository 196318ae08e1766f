/** Where a running QEMU has its guest's RAM: its memory backends, and the files that they are mapped from. */
import * as v from "valibot";
import { NativeError } from "../../ffi/native_error.ts";
import type { NativeProcess } from "../../ffi/process.ts";
import type { RamPiece } from "../../ffi/ram.ts";
import { PreflightError } from "../errors.ts";
import { formatBytes } from "../units.ts";
import type { QmpClient } from "./qmp.ts";
import { QmpCommandError } from "./qmp.ts";

/** RAM moves in units of this. */
const STEP_BYTES = 2 << 20;

/** One memory backend. */
export interface Backend {
  id: string;
  bytes: number;
  share: boolean;
  /** File, or folder of a file without a name; null: it has no file. */
  memPath: string | null;
}

export interface GuestRam {
  backends: Backend[];
  /** In the order of `backends`. */
  pieces: RamPiece[];
  /** What /proc calls the files. */
  files: string[];
}

const memdevSchema = v.array(v.object({ id: v.optional(v.string()), size: v.number(), share: v.boolean() }));
const sizesSchema = v.object({ "base-memory": v.number(), "plugged-memory": v.optional(v.number()) });

/** Every memory backend of the machine. */
export async function backendsOf(qmp: QmpClient): Promise<Backend[]> {
  const backends: Backend[] = [];
  for (const { id, size, share } of await qmp.ask(memdevSchema, "query-memdev")) {
    const name = id ?? "";
    backends.push({ id: name, bytes: size, share, memPath: id === undefined ? null : await memPathOf(qmp, name) });
  }
  return backends.sort((a, b) => a.id < b.id ? -1 : 1);
}

async function memPathOf(qmp: QmpClient, id: string): Promise<string | null> {
  try {
    return await qmp.ask(v.nullable(v.string()), "qom-get", { path: `/objects/${id}`, property: "mem-path" });
  } catch (error) {
    // A backend of another kind has no such property, and the machine's own is not among the objects.
    if (error instanceof QmpCommandError) return null;
    throw error;
  }
}

/** Why RAM on these backends cannot be moved page by page by Gyges, in words; null: it can. */
export function whyNotShared(backends: readonly Backend[], machineBytes: number): string | null {
  for (const { id, bytes, share, memPath } of backends) {
    const name = `memory backend "${id}"`;
    if (memPath === null) return `${name} is not a memory-backend-file: its ${formatBytes(bytes)} are private to QEMU`;
    if (!share) return `${name} has share=off: what is in its file is not what the guest has`;
    if (bytes % STEP_BYTES !== 0) return `${name} has ${bytes} bytes, which is no multiple of 2MiB`;
  }
  const total = backends.reduce((sum, { bytes }) => sum + bytes, 0);
  if (total >= machineBytes) return null;
  return `the guest has ${formatBytes(machineBytes)} of RAM and only ${formatBytes(total)} of it are in shared files`;
}

/** RAM of the machine, in bytes. */
export async function machineBytes(qmp: QmpClient): Promise<number> {
  const sizes = await qmp.ask(sizesSchema, "query-memory-size-summary");
  return sizes["base-memory"] + (sizes["plugged-memory"] ?? 0);
}

/** Finds the mappings of backends that are all in shared files. Throws PreflightError where one is not seen. */
export function mapRam(backends: Backend[], process: NativeProcess): GuestRam {
  const mappings = sharedMappings(mapsOf(process));
  const taken = new Set<Mapping>();
  const found = backends.map((backend) => {
    const mapping = mappingOf(backend, mappings.filter((candidate) => !taken.has(candidate)));
    if (!mapping) {
      throw notShared(`no shared mapping of memory backend "${backend.id}" is seen in process ${process.pid}`);
    }
    taken.add(mapping);
    return mapping;
  });
  return {
    backends,
    pieces: found.map((mapping) => pieceOf(process, mapping)),
    files: found.map(({ file }) => file),
  };
}

/** RAM that `mapping` of `process` is. */
export function pieceOf(process: NativeProcess, { start, first, fileOffset, bytes }: Mapping): RamPiece {
  return { path: `/proc/${process.pid}/map_files/${first}`, fileOffset, address: start, bytes };
}

/** Throws PreflightError. */
export function mapsOf(process: NativeProcess): string {
  try {
    return process.read("maps");
  } catch (cause) {
    if (!(cause instanceof NativeError)) throw cause;
    throw new PreflightError(cause.message, {
      check: "ptrace",
      remedy: "run gyges as root, or as QEMU's user with CAP_SYS_PTRACE",
      cause,
    });
  }
}

function notShared(why: string): PreflightError {
  return new PreflightError(`Cannot move the guest's pages as ${why}`, {
    check: "guest-ram",
    remedy: "start it by gyges run, or with -object memory-backend-file,id=ram0,size=SIZE,mem-path=/dev/shm,share=on " +
      "-machine memory-backend=ram0",
  });
}

// ---- /proc/PID/maps ----

/** A run of neighbouring mappings of one file: the kernel splits one where its parts are treated differently. */
export interface Mapping {
  start: bigint;
  bytes: number;
  fileOffset: number;
  /** Name of the first part under map_files. */
  first: string;
  device: string;
  inode: string;
  file: string;
}

const LINE = /^([0-9a-f]+)-([0-9a-f]+) rw.s ([0-9a-f]+) (\S+) (\d+)\s*(.*)$/;

/** The shared writable mappings of files, in order of address. */
export function sharedMappings(maps: string): Mapping[] {
  const mappings: Mapping[] = [];
  for (const line of maps.split("\n")) {
    const match = LINE.exec(line);
    if (!match) continue;
    const [, from = "", to = "", offset = "", device = "", inode = "", file = ""] = match;
    const start = BigInt(`0x${from}`);
    const bytes = Number(BigInt(`0x${to}`) - start);
    const fileOffset = Number(BigInt(`0x${offset}`));
    const last = mappings.at(-1);
    if (
      last && last.device === device && last.inode === inode && last.start + BigInt(last.bytes) === start &&
      last.fileOffset + last.bytes === fileOffset
    ) {
      last.bytes += bytes;
      continue;
    }
    const name = `${trimmed(from)}-${trimmed(to)}`;
    mappings.push({ start, bytes, fileOffset, first: name, device, inode, file });
  }
  return mappings;
}

/** map_files has its numbers without leading zeros. */
function trimmed(hex: string): string {
  return hex.replace(/^0+(?=.)/, "");
}

/** The mapping that a backend's RAM is: by the file's name, which has the backend's in it where QEMU chose it. */
function mappingOf({ id, bytes, memPath }: Backend, mappings: readonly Mapping[]): Mapping | null {
  const sized = mappings.filter((mapping) => mapping.bytes === bytes);
  const named = sized.filter(({ file }) => {
    const path = file.replace(/ \(deleted\)$/, "");
    return path === memPath || path.startsWith(`${memPath}/qemu_back_mem.${id}.`);
  });
  const [one, ...more] = named.length > 0 ? named : sized;
  return one && more.length === 0 ? one : null;
}
