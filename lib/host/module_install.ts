/** Puts the module's source and what loads it into a system, so that it is there after a boot, whatever the kernel. */
import { PreflightError } from "../errors.ts";
import { type ModuleSource, moduleSource } from "./module_source.ts";
import { RAM_FOLDER } from "./ram_folder.ts";

/** One path of the system, and what became of it. */
export interface InstalledFile {
  /** With the root in front. */
  path: string;
  change: "written" | "unchanged" | "removed";
}

export interface InstalledModule {
  version: string;
  files: InstalledFile[];
  /** What is left to do, in order. */
  next: string[];
}

const UNIT = `${RAM_FOLDER.slice(1).replaceAll("/", "-")}.mount`;
const UNITS = "/etc/systemd/system";

/** systemd mounts at boot; the kernel has the file system's module loaded by its alias, so nothing else loads it. */
const UNIT_TEXT = `# Written by gyges module install.
[Unit]
Description=Guest memory of Gyges (gygesfs)

[Mount]
What=gyges
Where=${RAM_FOLDER}
Type=gygesfs
Options=mode=0700,nosuid,nodev,noexec
DirectoryMode=0700

[Install]
WantedBy=multi-user.target
`;

/** Installs under `root`, @default "/". Throws PreflightError where it cannot be written. */
export function installModule(root = "/"): InstalledModule {
  const base = root.replace(/\/+$/, "");
  const source = moduleSource();
  try {
    const files = [
      ...installSource(source, `${base}/usr/src/gyges-${source.version}`),
      writeFile(`${base}${UNITS}/${UNIT}`, UNIT_TEXT),
      linkTo(`${base}${UNITS}/multi-user.target.wants/${UNIT}`, `${UNITS}/${UNIT}`),
    ];
    return { version: source.version, files, next: nextSteps(source, base) };
  } catch (cause) {
    if (!(cause instanceof Error) || !("code" in cause)) throw cause;
    throw new PreflightError(`Cannot install the module: ${cause.message}`, {
      check: "module-install",
      remedy: base === "" ? "run it as root, on a system that can be written" : "name a directory that can be written",
      cause,
    });
  }
}

function nextSteps({ version }: ModuleSource, base: string): string[] {
  const inside = base === "" ? "" : "in the installed system: ";
  return [
    `${inside}apt-get install -y dkms linux-headers-$(uname -r)`,
    `${inside}dkms install gyges/${version}`,
    `${inside}systemctl daemon-reload && systemctl start ${UNIT}`,
  ];
}

/** Makes `folder` hold the source and nothing else. */
function installSource({ files }: ModuleSource, folder: string): InstalledFile[] {
  const written = Object.entries(files).map(([path, text]) => writeFile(`${folder}/${path}`, text));
  const strays = [...walk(folder)].filter((path) => files[path] === undefined).map((path): InstalledFile => {
    Deno.removeSync(`${folder}/${path}`);
    return { path: `${folder}/${path}`, change: "removed" };
  });
  return [...written, ...strays];
}

/** Every file below `folder`, by its path from there. */
function* walk(folder: string, prefix = ""): Generator<string> {
  for (const { name, isDirectory } of [...Deno.readDirSync(`${folder}/${prefix}`)]) {
    if (isDirectory) yield* walk(folder, `${prefix}${name}/`);
    else yield `${prefix}${name}`;
  }
}

function writeFile(path: string, text: string): InstalledFile {
  if (holds(path, text)) return { path, change: "unchanged" };
  Deno.mkdirSync(folderOf(path), { recursive: true });
  // By rename: a build or a boot never sees half of it.
  Deno.writeTextFileSync(`${path}.new`, text, { mode: 0o644 });
  Deno.renameSync(`${path}.new`, path);
  return { path, change: "written" };
}

function holds(path: string, text: string): boolean {
  try {
    return Deno.lstatSync(path).isFile && Deno.readTextFileSync(path) === text;
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return false;
    throw cause;
  }
}

function linkTo(path: string, target: string): InstalledFile {
  if (linkAt(path) === target) return { path, change: "unchanged" };
  Deno.mkdirSync(folderOf(path), { recursive: true });
  if (linkAt(path) !== null) Deno.removeSync(path);
  Deno.symlinkSync(target, path);
  return { path, change: "written" };
}

/** What the link at `path` holds; null where there is none. */
function linkAt(path: string): string | null {
  try {
    return Deno.readLinkSync(path);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return null;
    throw cause;
  }
}

function folderOf(path: string): string {
  return path.slice(0, path.lastIndexOf("/"));
}
