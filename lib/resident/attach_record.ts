/**
 * What either end of a QEMU's move keeps in its directory from before the commit point until the last page is there, so
 * that another process can go on should this one die: who the other end is and how it is known, and what has been done.
 */
import * as v from "valibot";
import { inRoom, type RuntimeDir } from "../control/runtime_dir.ts";
import { UsageError } from "../errors.ts";
import type { Left, Loaded } from "../migration/loaded.ts";
import { PROTOCOL_VERSION, qemuSchema, statsSchema } from "../wire/messages.ts";
import { formatTicket, parseTicket } from "../wire/ticket.ts";

const common = {
  /** Another version of Gyges may have another idea of all this, and of what the other end says. */
  protocol: v.literal(PROTOCOL_VERSION),
  /** With its key: whoever has this can speak to the other end. */
  ticket: v.string(),
  session: v.string(),
  mode: v.picklist(["hybrid", "full", "precopy"]),
  bandwidthBytesPerSecond: v.number(),
  prefetchConnections: v.number(),
};

const destinationSchema = v.object({
  ...common,
  side: v.literal("destination"),
  machine: v.object({
    shape: qemuSchema,
    backends: v.nullable(v.array(v.object({
      id: v.string(),
      bytes: v.number(),
      share: v.boolean(),
      memPath: v.nullable(v.string()),
    }))),
  }),
  transport: v.picklist(["tcp", "rdma"]),
  prefetch: v.boolean(),
  /** In hexadecimal digits. */
  regions: v.string(),
  precopyMs: v.number(),
  rounds: v.number(),
  loadedAt: v.number(),
  startMs: v.nullable(v.number()),
  stats: statsSchema,
});

const sourceSchema = v.object({
  ...common,
  side: v.literal("source"),
  stopped: v.boolean(),
  /** QEMU is left stopped, not ended, once its guest has moved. */
  keepSource: v.boolean(),
  figures: v.object({
    settled: v.object({
      pager: v.picklist(["user", "kernel", "native"]),
      transport: v.picklist(["tcp", "rdma"]),
    }),
    told: statsSchema,
    presentPages: v.number(),
    precopyMs: v.number(),
    rounds: v.number(),
    handoverMs: v.number(),
  }),
});

const recordSchema = v.variant("side", [destinationSchema, sourceSchema]);
type SourceRecord = v.InferOutput<typeof sourceSchema>;

/** How the source finds and knows the destination. */
export interface Credentials {
  ticket: string;
  session: string;
}

/** What a process that died has left, at the end where it was. */
export type AttachRecord = { side: "destination"; credentials: Credentials; loaded: Loaded } | {
  side: "source";
  left: Left;
  keepSource: boolean;
};

/** Replaces the record whole, or not at all. Throws PreflightError where there is no room for it. */
export async function writeRecord(directory: RuntimeDir, credentials: Credentials, loaded: Loaded): Promise<void> {
  const { regions, ...rest } = loaded;
  await write(directory, {
    protocol: PROTOCOL_VERSION,
    side: "destination",
    ...credentials,
    ...rest,
    regions: regions.toHex(),
  });
}

/** The same at the source. */
export async function writeSourceRecord(
  directory: RuntimeDir,
  { ticket, ...left }: Left,
  { keepSource }: Pick<SourceRecord, "keepSource">,
): Promise<void> {
  const record = {
    protocol: PROTOCOL_VERSION,
    side: "source",
    ticket: formatTicket(ticket),
    keepSource,
    ...left,
  } as const;
  await write(directory, record);
}

async function write(directory: RuntimeDir, record: v.InferInput<typeof recordSchema>): Promise<void> {
  const path = directory.attachPath;
  await inRoom(directory.path, () => {
    Deno.writeTextFileSync(`${path}.new`, JSON.stringify(record), { mode: 0o600 });
    Deno.renameSync(`${path}.new`, path);
  });
}

/** Throws UsageError for one that another version has written. */
export function readRecord(directory: RuntimeDir): AttachRecord {
  const record = parse(directory);
  if (record.side === "source") {
    const { ticket, keepSource, ...left } = record;
    return { side: "source", left: { ...left, ticket: parseTicket(ticket) }, keepSource };
  }
  const { ticket, session, regions, ...loaded } = record;
  const credentials = { ticket, session };
  return { side: "destination", credentials, loaded: { ...loaded, regions: Uint8Array.fromHex(regions) } };
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
