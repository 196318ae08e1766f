/** What the destination says of a guest whose QEMU has ended before all of its memory was here. */
import { EXIT, MigrationError } from "../errors.ts";

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
