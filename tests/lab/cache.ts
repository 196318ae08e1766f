/** Where the lab keeps what it downloads and unpacks: outside the tree, one for all trees, safe to remove at any time. */
import { createHash } from "node:crypto";
import { join } from "node:path";

/** $GYGES_LAB_CACHE, or gyges-lab in the user's cache directory. */
export const CACHE = Deno.env.get("GYGES_LAB_CACHE") ??
  join(Deno.env.get("XDG_CACHE_HOME") ?? join(Deno.env.get("HOME") ?? "/root", ".cache"), "gyges-lab");

/**
 * The path of `name` in the cache, which `make` fills if it is not there. It appears by rename, whole or not at all,
 * and two runs that start at once take turns.
 * @param make writes what is wanted to the path that it is given
 */
export async function cached(name: string, make: (path: string) => Promise<void>): Promise<string> {
  const path = join(CACHE, name);
  if (exists(path)) return path;
  await Deno.mkdir(join(path, ".."), { recursive: true });
  using lock = await Deno.open(join(CACHE, "lock"), { create: true, write: true });
  await lock.lock(true);
  if (exists(path)) return path;
  const scratch = await Deno.makeTempDir({ dir: CACHE, prefix: "new." });
  try {
    const fresh = join(scratch, "it");
    await make(fresh);
    await Deno.rename(fresh, path);
  } finally {
    await Deno.remove(scratch, { recursive: true });
  }
  return path;
}

/** A short name for what was made of `parts`. */
export function digest(...parts: readonly Uint8Array[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest("hex").slice(0, 16);
}

export function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return false;
    throw cause;
  }
}

/** What a tool printed. Throws with its complaint when it fails. */
export async function tool(program: string, args: readonly string[], options: ToolOptions = {}): Promise<string> {
  const { cwd, env, timeoutMs = 300_000 } = options;
  const { code, stdout, stderr } = await new Deno.Command(program, {
    args: [...args],
    stdin: "null",
    signal: AbortSignal.timeout(timeoutMs),
    ...(cwd !== undefined && { cwd }),
    ...(env !== undefined && { env }),
  }).output();
  const text = new TextDecoder();
  if (code !== 0) throw new Error(`${program} ${args.join(" ")} ended with ${code}: ${text.decode(stderr)}`);
  return text.decode(stdout);
}

export interface ToolOptions {
  cwd?: string;
  /** On top of this process's own environment. */
  env?: Record<string, string>;
  /** @default 300_000 */
  timeoutMs?: number;
}
