/** The archive that a kernel unpacks as its first root: cpio in "newc" form. */

export interface CpioEntry {
  /** From the archive's root, without a leading slash; its directory comes before it. */
  path: string;
  /** None: a directory. */
  data?: Uint8Array;
}

const DIRECTORY = 0o040755;
const PROGRAM = 0o100755;
const MAGIC = "070701";

/** The whole archive. Everything in it is root's and of time 0, so that the same input gives the same bytes. */
export function cpio(entries: readonly CpioEntry[]): Uint8Array<ArrayBuffer> {
  const parts: Uint8Array[] = [];
  entries.forEach(({ path, data }, index) => {
    parts.push(...record({ path, inode: index + 1, mode: data ? PROGRAM : DIRECTORY, data: data ?? new Uint8Array() }));
  });
  parts.push(...record({ path: "TRAILER!!!", inode: 0, mode: 0, data: new Uint8Array() }));
  return concat(parts);
}

function record(entry: { path: string; inode: number; mode: number; data: Uint8Array }): Uint8Array[] {
  const name = new TextEncoder().encode(`${entry.path}\0`);
  // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name's size, checksum
  const fields = [entry.inode, entry.mode, 0, 0, 1, 0, entry.data.length, 0, 0, 0, 0, name.length, 0];
  const header = new TextEncoder().encode(MAGIC + fields.map((n) => n.toString(16).padStart(8, "0")).join(""));
  return [padded(concat([header, name])), padded(entry.data)];
}

/** Headers and contents each begin at a multiple of 4. */
function padded(bytes: Uint8Array): Uint8Array {
  return bytes.length % 4 === 0 ? bytes : concat([bytes, new Uint8Array(4 - bytes.length % 4)]);
}

function concat(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
