/** What either side says of a move that failed: where the guest is, or that it is lost. */
import { EXIT, MigrationError } from "../errors.ts";
import type { PagerKind } from "../options.ts";
import type { Ticket } from "../wire/ticket.ts";

/** @param where what the guest does at the source, in words */
export function failedBeforeCommit(words: string, where: string, phase: string, cause: unknown): MigrationError {
  return new MigrationError(`${words}. The guest ${where}`, {
    phase,
    guestLocation: "source",
    exitCode: EXIT.failedBeforeCommit,
    cause,
  });
}

export function cannotBeContinued(words: string, stuck: string, phase: string, cause: unknown): MigrationError {
  return failedBeforeCommit(words, `is here, stopped and whole, but cannot be continued: ${stuck}`, phase, cause);
}

// ---- at the destination: its QEMU has ended before all of the guest's memory was here ----

export interface Loss {
  /** "The guest", or which. */
  guest: string;
  /** In words: what has ended, and how. */
  why: string;
  /** "3 pages". */
  pages: string;
  /** It has run here. If not, only the source knows whether it runs there. */
  ran: boolean;
}

export function lossWords({ guest, why, pages, ran }: Loss): string {
  return ran
    ? `${guest} is lost: ${why}, with ${pages} still at the source`
    : `${guest} is not here: ${why}, and is not known to have run it`;
}

/** The same with what there is to do, for the operator here. */
export function lossError(loss: Loss, phase: string): MigrationError {
  const { ran } = loss;
  const remedy = ran ? "Start it again" : "Start it again unless the source says that it runs there";
  return new MigrationError(`${lossWords(loss)}. ${remedy}`, {
    phase,
    guestLocation: ran ? "lost" : "unknown",
    exitCode: EXIT.guestLost,
  });
}

// ---- at the source: the destination's process is gone, or the link to it ----

/** @param words a sentence that says what became of the guest */
export function lossAtSource(words: string, cause?: unknown): MigrationError {
  return new MigrationError(`${words}. Start it again unless it has moved on; gyges vm stop ends the process here`, {
    phase: "serving",
    guestLocation: "lost",
    exitCode: EXIT.guestLost,
    cause,
  });
}

export function nobodyListens({ host, port }: Ticket): string {
  return `The guest is lost: nobody listens at ${host}:${port} any more, so the process that held it has ended, and when ` +
    "it was last heard pages were missing";
}

/** Whoever served them has died, and the QEMU that had them has ended. */
export function pagesGone(name: string): MigrationError {
  return new MigrationError(
    `The guest of "${name}" can never be whole at the destination: its QEMU here, which had the rest of its pages, has ` +
      "ended. Start it again, unless the destination says that every page is there",
    { phase: "serving", guestLocation: "destination-incomplete", exitCode: EXIT.guestLost },
  );
}

/** Whoever took the place of a source that died was told to stop before the destination had come back. */
export function stillAway(name: string): MigrationError {
  return new MigrationError(
    "Interrupted before the destination had come back. The guest waits there for pages that QEMU has here: gyges attach " +
      `${name} goes on`,
    { phase: "paused", guestLocation: "destination-incomplete", exitCode: EXIT.linkLost },
  );
}

/** What an operator can do where the guest outlives the process that received it. */
export function howToAttach({ host, port, name }: Ticket, pager: PagerKind): string {
  const died = `If the gyges that listened at ${host}:${port} has died`;
  return pager === "kernel"
    ? `${died}, its kernel brings the rest all the same, and tells this side: gyges monitor ${name} shows it there`
    : `${died}, its guest waits there in QEMU: run there gyges attach ${name}`;
}

/** @param advice for an operator whose guest can do without the destination's process */
export function linkLost(words: string, advice: string | null, cause: unknown): MigrationError {
  return new MigrationError(
    `The link to the destination is lost (${words}). The guest waits there for pages that only this process holds: ` +
      `keep it alive${advice === null ? "" : `. ${advice}`}`,
    { phase: "serving", guestLocation: "destination-incomplete", exitCode: EXIT.linkLost, cause },
  );
}
