/**
 * The source's side of a move that QEMU makes by itself: QEMU sends RAM and state to QEMU. Once it goes on post-copy it can
 * never run the guest here again: that, and not `run`, is the commit point then.
 */
import type { SourceState } from "../events.ts";
import type { Machine } from "../machine/machine.ts";
import type { MigrateOptions, Mode } from "../options.ts";
import type { OwnMigration } from "../qemu/own_migration.ts";
import { type QemuVersion, QmpCommandError } from "../qemu/qmp.ts";
import type { MessageOf, WithSet } from "../wire/messages.ts";
import type { Peer } from "../wire/peer.ts";
import type { SourceAccount } from "./source_account.ts";
import type { StateMachine } from "./states.ts";
import { DEADLINE_MS } from "./timing.ts";

/** The migration that this is part of. */
export interface OwnMove {
  mode: Mode;
  options: Pick<
    MigrateOptions,
    "bandwidthBytesPerSecond" | "downtimeLimitMs" | "precopyTimeoutMs" | "switchThresholdMs"
  >;
  machine: Machine;
  states: StateMachine<SourceState>;
  account: SourceAccount;
  /** Aborted by a cancel. */
  signal: AbortSignal;
  note: (detail: string) => void;
  peer: Peer;
  /** Sends `message` with an empty page set: which pages are where is QEMU's affair. */
  sendNothing: (message: WithSet) => Promise<void>;
  roundDone: () => Promise<MessageOf<"round_done">>;
}

/** Until the destination has the guest, loaded, and is to be told to run it. In state "serving" the guest is its own. */
export async function handOverByItself(own: OwnMigration, move: OwnMove): Promise<void> {
  const { mode, machine, states, account, signal, peer } = move;
  const { bandwidthBytesPerSecond, downtimeLimitMs, precopyTimeoutMs, switchThresholdMs } = move.options;
  const limitMs = mode === "full" ? 0 : precopyTimeoutMs;
  await machine.prepareSave();
  states.to("precopy", `QEMU sends pages for ${limitMs / 1000} s at most while the guest runs`);
  const startedAt = performance.now();
  await move.sendNothing({ type: "round", round: 1, deadline_ms: Math.round(limitMs) });
  await own.start({ mode, bandwidthBytesPerSecond, downtimeLimitMs }, versionOf(machine));
  const { why, rounds, whole } = await own.untilSwitch({ mode, limitMs, thresholdMs: switchThresholdMs, signal });
  account.rounds = rounds;
  move.note(`QEMU's pre-copy ends: ${why}`);
  await peer.send({ type: "end_round" });
  await move.roundDone();
  if (mode !== "full") account.precopyMs = performance.now() - startedAt;
  states.to("handover", "the destination waits for QEMU's word");
  await move.sendNothing({ type: "handover" });
  await peer.send({ type: "state", more: false });
  await peer.expect("loaded", DEADLINE_MS.handover);
  signal.throwIfAborted();
  machine.giveAway();
  if (whole) account.handoverMs = performance.now() - startedAt - account.precopyMs;
  else await goPostcopy(own, move);
}

async function goPostcopy(own: OwnMigration, { states, account }: OwnMove): Promise<void> {
  const stoppedAt = performance.now();
  try {
    await own.startPostcopy();
  } catch (error) {
    // Whether QEMU has heard it is not known: then it may have.
    if (!(error instanceof QmpCommandError)) states.to("serving", "QEMU has perhaps gone on post-copy");
    throw error;
  }
  states.to("serving", "QEMU has gone on post-copy: the guest belongs to the destination");
  await own.untilStopped();
  account.handoverMs = performance.now() - stoppedAt;
}

function versionOf({ shape }: Machine): QemuVersion {
  if (shape.kind !== "qemu") throw new Error("Only a QEMU moves its guest by itself");
  return shape.version;
}
