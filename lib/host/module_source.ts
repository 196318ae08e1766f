/** What this program knows of the kernel module that it carries. */
import { createHash } from "node:crypto";
import { MODULE_FILES, UAPI_PATH } from "./module_files.ts";

export interface ModuleSource {
  /** Text by path. */
  files: Readonly<Record<string, string>>;
  version: string;
  /** Of all that is compiled; a loaded module tells its own. */
  hash: string;
  /** Version of the interface, GYGES_ABI_VERSION. */
  abi: number;
}

/** The source that this program carries. */
export function moduleSource(files: Readonly<Record<string, string>> = MODULE_FILES): ModuleSource {
  return { files, version: versionOf(files), hash: hashOf(files), abi: abiOf(files) };
}

/** As kernel/Kbuild counts it: SHA-256 of what sha256sum prints of the sources, the first 16 digits. */
function hashOf(files: Readonly<Record<string, string>>): string {
  const lines = Object.keys(files)
    .filter((path) => /\.[ch]$/.test(path) && !path.endsWith(".mod.c"))
    .sort((a, b) => a < b ? -1 : 1)
    .map((path) => `${sha256(files[path] ?? "")}  ./${path}\n`);
  return sha256(lines.join("")).slice(0, 16);
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

function versionOf(files: Readonly<Record<string, string>>): string {
  return found(/^MODULE_VERSION\("([^"]+)"\);$/m, files["main.c"]);
}

function abiOf(files: Readonly<Record<string, string>>): number {
  return Number(found(/^#define GYGES_ABI_VERSION\s+(\d+)$/m, files[UAPI_PATH]));
}

function found(pattern: RegExp, text = ""): string {
  const match = pattern.exec(text)?.[1];
  if (match === undefined) throw new Error(`The module's source has no ${pattern.source}`);
  return match;
}
