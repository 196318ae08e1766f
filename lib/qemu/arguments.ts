/** QEMU's command line: what Gyges adds to it so that a guest can move, and what it refuses. */
import { UsageError } from "../errors.ts";

export interface LaunchOptions {
  /** Where RAM files go: QEMU makes one without a name for each memory backend. null: RAM stays as it is. */
  ramFolder: string | null;
  /** Descriptor of a listening socket, for a monitor for Gyges alone. */
  monitorFd: number;
  /** Waits for a guest instead of booting one. */
  incoming: boolean;
}

/** Id of the backend that is added to a machine that names none. */
export const BACKEND_ID = "gyges-ram";
const DEFAULT_RAM = "128M";
/** Arguments that make the monitor, told apart by its id. */
export const MONITOR_ID = "gyges-monitor";
/** Other words before a command's program are of whatever starts it: setpriv, numactl. */
const PROGRAM = /(^|\/)qemu-(system-\w+|kvm)$/;

/** Options that change who the process is, or what it is for, under Gyges's hands. */
const REFUSED: Readonly<Record<string, string>> = {
  "-daemonize": "leave it out: Gyges keeps QEMU in the background by itself",
  "-incoming": "leave it out: Gyges adds it at the destination",
  "-snapshot": "leave it out: what it writes to disks exists on this host alone",
  "-loadvm": "leave it out: a guest that arrives is not loaded from a snapshot",
  "-readconfig": "write its settings as arguments: Gyges has to see them",
};

/** Devices that hold on to memory or hardware of this host. */
const REFUSED_DEVICES: readonly (readonly [pattern: RegExp, why: string])[] = [
  [/^vfio/, "a passed-through device pins all guest RAM and cannot move: detach it first"],
  [
    /^vhost-(user|vdpa)|^virtio-(blk|net|fs|scsi)-vhost/,
    "another process maps guest RAM: use a virtio device of QEMU's own",
  ],
];

interface Option {
  name: string;
  value: string;
}

/** A command line as what starts QEMU and its program, and QEMU's arguments. Pure. */
export function splitCommand(command: readonly string[]): { start: string[]; args: string[] } {
  const end = Math.max(0, command.findIndex((word) => PROGRAM.test(word))) + 1;
  return { start: command.slice(0, end), args: command.slice(end) };
}

/**
 * `args` (without the program) with shared RAM files, a monitor and, for a destination, -incoming. Pure. Throws
 * UsageError for what cannot work.
 */
export function launchArguments(args: readonly string[], options: LaunchOptions): string[] {
  const list = args.map((arg) => arg.startsWith("--") ? arg.slice(1) : arg);
  refuse(list);
  const { ramFolder, monitorFd, incoming } = options;
  const out = ramFolder === null ? list : sharedRam(list, ramFolder);
  out.push("-chardev", `socket,id=${MONITOR_ID},fd=${monitorFd},server=on,wait=off`);
  out.push("-mon", `chardev=${MONITOR_ID},mode=control`);
  if (incoming) out.push("-incoming", "defer", "-S");
  return out;
}

/** The same with all RAM in shared files. */
function sharedRam(list: readonly string[], ramFolder: string): string[] {
  const out: string[] = [];
  let backends = 0;
  for (let i = 0; i < list.length; i++) {
    const arg = list[i] ?? "";
    const value = list[i + 1] ?? "";
    if (arg === "-mem-path") i++;
    else if (arg === "-object" && isBackend(value)) {
      out.push("-object", sharedBackend(value, ramFolder));
      backends++;
      i++;
    } else out.push(arg);
  }
  if (backends === 0) {
    const object = { "qom-type": "memory-backend-file", id: BACKEND_ID, size: ramSize(list) };
    out.push("-object", written({ ...object, "mem-path": ramFolder, share: "on" }));
    out.push("-machine", `memory-backend=${BACKEND_ID}`);
  }
  return out;
}

function refuse(args: readonly string[]): void {
  for (const [i, arg] of args.entries()) {
    const why = REFUSED[arg];
    if (why !== undefined) throw new UsageError(`Cannot move a guest of a QEMU with ${arg}: ${why}`);
    if (arg !== "-device" && arg !== "-chardev" && arg !== "-netdev") continue;
    const { driver } = driverOf(args[i + 1] ?? "");
    const found = REFUSED_DEVICES.find(([pattern]) => pattern.test(driver));
    if (found) throw new UsageError(`Cannot move a guest with ${arg} ${driver}: ${found[1]}`);
  }
}

function driverOf(value: string): { driver: string } {
  if (!value.startsWith("{")) return { driver: value.split(",")[0] ?? "" };
  const { driver, type } = parseJson(value);
  return { driver: driver ?? type ?? "" };
}

function isBackend(value: string): boolean {
  const type = value.startsWith("{") ? parseJson(value)["qom-type"] ?? "" : value.split(",")[0] ?? "";
  return type.replace(/^qom-type=/, "").startsWith("memory-backend-");
}

/** The backend with the same id and size in a shared file. */
function sharedBackend(value: string, folder: string): string {
  const given = value.startsWith("{") ? parseJson(value) : parseOptions(value, "qom-type");
  const { seal: _seal, hugetlb: _hugetlb, hugetlbsize: _size, ...rest } = given;
  return written({ ...rest, "qom-type": "memory-backend-file", "mem-path": folder, share: "on" });
}

function written({ "qom-type": type, ...rest }: Record<string, string>): string {
  return [type, ...Object.entries(rest).map(([key, value]) => `${key}=${escaped(value)}`)].join(",");
}

/** QEMU's key=value,... with ",," for a comma; the first may lack its key. */
export function parseOptions(text: string, firstKey: string): Record<string, string> {
  const parts = text.replaceAll(",,", "\0").split(",").map((part) => part.replaceAll("\0", ","));
  const found: Record<string, string> = {};
  for (const [i, part] of parts.entries()) {
    const { name, value } = keyed(part);
    if (value === null) found[i === 0 ? firstKey : name] = i === 0 ? name : "on";
    else found[name] = value;
  }
  return found;
}

function keyed(part: string): Option | { name: string; value: null } {
  const at = part.indexOf("=");
  return at < 0 ? { name: part, value: null } : { name: part.slice(0, at), value: part.slice(at + 1) };
}

function parseJson(text: string): Record<string, string> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value !== "object" || value === null) throw new SyntaxError("it is no object");
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, item === true ? "on" : String(item)]));
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new UsageError(`Cannot read QEMU's argument ${text}: ${error.message}`);
  }
}

/** What -m says, in words that a backend's size takes. */
function ramSize(args: readonly string[]): string {
  const at = args.lastIndexOf("-m");
  const { size = DEFAULT_RAM } = at < 0 ? {} : parseOptions(args[at + 1] ?? "", "size");
  // A bare number is MiB to -m and bytes to an object.
  return /^\d+$/.test(size) ? `${size}M` : size;
}

function escaped(text: string): string {
  return text.replaceAll(",", ",,");
}
