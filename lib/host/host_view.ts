/** A host's files of /proc, /sys and the like, so that a test can show another host than its own. */
import { listHostFolder, readHostFile } from "./native.ts";

export interface HostView {
  /** Text of a file; null where there is none or it cannot be read. */
  read(path: string): string | null;
  /** Names in a folder, sorted; none where there is no such folder. */
  list(path: string): string[];
}

/** The host that this program runs on. */
export const THIS_HOST: HostView = { read: readHostFile, list: listHostFolder };

/** The first line of a file without blanks around it; null where there is none. */
export function lineOf(host: HostView, path: string): string | null {
  return host.read(path)?.split("\n")[0]?.trim() ?? null;
}

/** Whether there is something at `path`, a file or a folder with something in it. */
export function isThere(host: HostView, path: string): boolean {
  return host.read(path) !== null || host.list(path).length > 0;
}
