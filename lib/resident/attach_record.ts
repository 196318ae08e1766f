/**
 * What the destination of a QEMU's guest keeps in its directory from before the commit point until the last page is here,
 * so that another process can go on should this one die: who the source is and how it is known, and what has been done.
 */
import * as v from "valibot";
import { inRoom, type RuntimeDir } from "../control/runtime_dir.ts";
import { UsageError } from "../errors.ts";
import type { Loaded } from "../migration/loaded.ts";
import { PROTOCOL_VERSION, qemuSchema, statsSchema } from "../wire/messages.ts";

const recordSchema = v.object({
  /** Another version of Gyges may have another idea of all this, and of what the source says. */
  protocol: v.literal(PROTOCOL_VERSION),
  /** With its key: whoever has this can speak to the source. */
  ticket: v.string(),
  session: v.string(),
  machine: v.object({
    shape: qemuSchema,
    backends: v.nullable(v.array(v.object({
      id: v.string(),
      bytes: v.number(),
      share: v.boolean(),
      memPath: v.nullable(v.string()),
    }))),
  }),
  mode: v.picklist(["hybrid", "full", "precopy"]),
  transport: v.picklist(["tcp", "rdma"]),
  bandwidthBytesPerSecond: v.number(),
  prefetch: v.boolean(),
  prefetchConnections: v.number(),
  /** In hexadecimal digits. */
  regions: v.string(),
  precopyMs: v.number(),
  rounds: v.number(),
  loadedAt: v.number(),
  startMs: v.nullable(v.number()),
  stats: statsSchema,
});

/** How the source finds and knows the destination. */
export interface Credentials {
  ticket: string;
  session: string;
}

/** Replaces the record whole, or not at all. Throws PreflightError where there is no room for it. */
export async function writeRecord(directory: RuntimeDir, credentials: Credentials, loaded: Loaded): Promise<void> {
  const { regions, ...rest } = loaded;
  const record = {
    protocol: PROTOCOL_VERSION,
    ...credentials,
    ...rest,
    regions: regions.toHex(),
  } satisfies v.InferInput<typeof recordSchema>;
  const path = directory.attachPath;
  await inRoom(directory.path, () => {
    Deno.writeTextFileSync(`${path}.new`, JSON.stringify(record), { mode: 0o600 });
    Deno.renameSync(`${path}.new`, path);
  });
}

/** Throws UsageError for one that another version has written. */
export function readRecord(directory: RuntimeDir): Credentials & Loaded {
  const { regions, ...record } = parse(directory);
  return { ...record, regions: Uint8Array.fromHex(regions) };
}

/** Nobody needs to take over any more. */
export function forgetRecord(directory: RuntimeDir): void {
  try {
    Deno.removeSync(directory.attachPath);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

function parse(directory: RuntimeDir): v.InferOutput<typeof recordSchema> {
  try {
    return v.parse(recordSchema, JSON.parse(Deno.readTextFileSync(directory.attachPath)));
  } catch (cause) {
    if (!(cause instanceof SyntaxError) && !v.isValiError(cause)) throw cause;
    throw new UsageError(
      `Cannot attach "${directory.name}" as ${directory.attachPath} is not this version's: use the gyges that received ` +
        "the guest",
      { cause },
    );
  }
}
