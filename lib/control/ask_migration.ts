/** Asks the process that holds a guest to move it, and stays true to what really happened to the guest. */
import { EXIT, MigrationError, UsageError } from "../errors.ts";
import type { GygesEvent, SourceState } from "../events.ts";
import { type ControlClient, ControlError } from "./client.ts";
import { isOwned, runtimeBase, type Survivor, survivorOf, survivorWords } from "./runtime_dir.ts";

const COMMITTED: readonly (SourceState | undefined)[] = ["serving", "paused", "completed"];
const RETRY_MS = 20;
/** A process that dies closes its socket first, and lets go of its name a moment later. */
const DYING_MS = 1_000;

export interface AskMigrationOptions {
  params: unknown;
  onEvent: (event: GygesEvent) => void;
  /** Aborting asks for a cancel; what is awaited is still the migration's own end. */
  signal?: AbortSignal;
}

/** Resolves with the summary. Rejects with the migration's own error, or with what the end of its process means. */
export async function askMigration(client: ControlClient, options: AskMigrationOptions): Promise<unknown> {
  let state: SourceState | undefined;
  let over = false;
  const onEvent = (event: GygesEvent) => {
    if (event.type === "state" && event.side === "source") state = toSourceState(event.state);
    options.onEvent(event);
  };
  // Not by closing the connection: whether the cancel came before the commit point only the other process knows.
  const interrupt = () => void cancelUntil(client, () => over);
  options.signal?.throwIfAborted();
  options.signal?.addEventListener("abort", interrupt, { once: true });
  try {
    return await client.call("migrate", options.params, { onEvent });
  } catch (error) {
    if (error instanceof ControlError && error.failure === "lost" && await hasDied(client.name)) {
      throw orphaned(await survivorOf(client.name), client.name, state, error);
    }
    throw error;
  } finally {
    over = true;
    options.signal?.removeEventListener("abort", interrupt);
  }
}

function toSourceState(state: string): SourceState | undefined {
  const states: readonly SourceState[] = ["precopy", "stopped", "handover", "serving", "completed", "failed", "paused"];
  return states.find((known) => known === state);
}

/** A cancel that comes before the migration has begun is told again; one that comes too late changes nothing. */
async function cancelUntil(client: ControlClient, over: () => boolean): Promise<void> {
  while (!over()) {
    try {
      return void await client.call("cancel");
    } catch (error) {
      if (!(error instanceof UsageError)) return;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

async function hasDied(name: string): Promise<boolean> {
  const deadline = performance.now() + DYING_MS;
  while (isOwned(`${runtimeBase()}/${name}`)) {
    if (performance.now() > deadline) return false;
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
  return true;
}

/** What it means that the process that held the guest, or its pages, is gone. A QEMU may have outlived it. */
function orphaned(
  survivor: Survivor | null,
  name: string,
  state: SourceState | undefined,
  cause: Error,
): MigrationError {
  const phase = state ?? "setup";
  const incomplete = { phase, guestLocation: "destination-incomplete", exitCode: EXIT.linkLost, cause } as const;
  if (survivor?.how === "waits") return new MigrationError(survivorWords(survivor), incomplete);
  if (COMMITTED.includes(state)) {
    const words = survivor
      ? `The process of "${name}" died after the commit point. Its QEMU is still there, with every page that the ` +
        "destination does not have, and by the kernel pager they go on coming. Look there with gyges monitor"
      : `The process of "${name}" died after the commit point, with every page that the destination does not have. ` +
        "Look there with gyges monitor: a guest that is paused cannot be completed any more";
    return new MigrationError(words, incomplete);
  }
  if (survivor) {
    // What came after the last that was heard may have been the commit point.
    const where = state === "handover"
      ? { guestLocation: "unknown", exitCode: EXIT.linkLost } as const
      : { guestLocation: "source", exitCode: EXIT.failedBeforeCommit } as const;
    return new MigrationError(survivorWords(survivor), { phase, ...where, cause });
  }
  return new MigrationError(
    `The guest is lost: the process of "${name}", which held it, died before the commit point. Start it again`,
    { phase, guestLocation: "lost", exitCode: EXIT.guestLost, cause },
  );
}
