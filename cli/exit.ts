/** From an error to the code that the process exits with; the codes are in lib/errors.ts and the README. */
import { EXIT, type ExitCode, GygesError } from "../lib/errors.ts";

/** An operator's Ctrl-C or a SIGTERM that was heeded. */
export class InterruptedError extends GygesError {
  override readonly name = "InterruptedError";
  readonly exitCode = EXIT.interrupted;
}

/** Codes that only errors thrown on purpose may ask for; anything else is a bug of ours. */
export function exitCodeOf(error: unknown): ExitCode {
  return error instanceof GygesError ? error.exitCode : EXIT.internal;
}

/** What the operator may do about `code`, for codes whose errors do not say it themselves; null otherwise. */
export function adviceFor(code: ExitCode): string | null {
  switch (code) {
    case EXIT.internal:
      return "This is an error in Gyges: please report it, with what you typed. GYGES_DEBUG=1 shows where it happened";
    case EXIT.hostUnable:
      return "`gyges doctor` shows what this host can do";
    case EXIT.failedBeforeCommit:
      return "The guest runs at the source: the migration may be tried again";
    case EXIT.linkLost:
      return "Keep the source alive: it holds pages that the guest still needs";
    case EXIT.guestLost:
      return "The guest is lost: start it again";
    case EXIT.completed:
    case EXIT.usage:
    case EXIT.peerRefused:
    case EXIT.interrupted:
      return null;
    default:
      return code satisfies never;
  }
}
