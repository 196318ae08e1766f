/** The built file, in every form that `./build.sh build` could make here, and one way to run it. */
import { fileURLToPath } from "node:url";

/** One packing of the program; both must pass the same tests. */
export interface BuiltFile {
  form: "launcher" | "compiled";
  /** Absolute path. */
  path: string;
}

/** What a finished run left. */
export interface RunResult {
  code: number;
  stdout: string;
  stderr: string;
}

/** @property env the whole environment of the run, which inherits nothing; default: as this process */
export interface RunOptions {
  env?: Record<string, string>;
  cwd?: string;
  /** User and group id to run as; needs root. */
  uid?: number;
  /** Milliseconds until the run is killed, which makes its code 137 or so. @default 60_000 */
  timeoutMs?: number;
}

function inDist(name: string): string {
  return fileURLToPath(new URL(`../../dist/${name}`, import.meta.url));
}

function exists(path: string): boolean {
  try {
    return Deno.lstatSync(path).isFile;
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return false;
    throw cause;
  }
}

/** Every form there is. Throws if nothing was built: a test of a missing file must not pass. */
export function builtFiles(): BuiltFile[] {
  const all: BuiltFile[] = [
    { form: "launcher", path: inDist("gyges") },
    { form: "compiled", path: inDist("gyges-compiled") },
  ];
  const found = all.filter((file) => exists(file.path));
  if (found.length === 0) throw new Error("There is no dist/gyges: run ./build.sh build");
  return found;
}

/** Runs `path` to its end. */
export async function run(path: string, args: string[], options: RunOptions = {}): Promise<RunResult> {
  const { env, cwd, uid, timeoutMs = 60_000 } = options;
  const output = await new Deno.Command(path, {
    args,
    stdin: "null",
    signal: AbortSignal.timeout(timeoutMs),
    ...(env !== undefined && { env, clearEnv: true }),
    ...(cwd !== undefined && { cwd }),
    ...(uid !== undefined && { uid, gid: uid }),
  }).output();
  const text = new TextDecoder();
  return { code: output.code, stdout: text.decode(output.stdout), stderr: text.decode(output.stderr) };
}
