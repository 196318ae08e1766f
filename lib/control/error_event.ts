/** Errors as they cross a socket or go to stdout with `--json`, and the way back into the classes of lib/errors.ts. */
import {
  EXIT,
  type ExitCode,
  type GuestLocation,
  GygesError,
  HandshakeError,
  MigrationError,
  PreflightError,
  UsageError,
} from "../errors.ts";
import type { ErrorEvent } from "../events.ts";

/** An error of a class that only the other process knows; `kind` is its name there. */
export class RemoteError extends GygesError {
  override readonly name = "RemoteError";
  readonly exitCode: ExitCode;
  readonly kind: string;

  constructor(message: string, kind: string, exitCode: ExitCode) {
    super(message);
    this.kind = kind;
    this.exitCode = exitCode;
  }
}

function isExitCode(code: number): code is ExitCode {
  return Object.values(EXIT).some((known) => known === code);
}

/** `error` as the object that crosses; `guestLocation` is used where the error itself does not know. */
export function toErrorEvent(error: unknown, guestLocation: GuestLocation = "unknown"): ErrorEvent {
  const message = error instanceof Error ? error.message : String(error);
  const event: ErrorEvent = {
    type: "error",
    code: error instanceof GygesError ? error.exitCode : EXIT.internal,
    name: error instanceof RemoteError ? error.kind : error instanceof Error ? error.name : "Error",
    message,
    guest_location: locationOf(error) ?? guestLocation,
  };
  if (error instanceof PreflightError) return { ...event, check: error.check, remedy: error.remedy };
  if (error instanceof HandshakeError) {
    return { ...event, field: error.field, ours: error.ours, theirs: error.theirs };
  }
  return event;
}

/** Two ends that do not fit find out before the commit point, so the guest has not moved. */
function locationOf(error: unknown): GuestLocation | null {
  if (error instanceof MigrationError) return error.guestLocation;
  return error instanceof HandshakeError ? "source" : null;
}

/** The error behind `event`: same class where it is one of ours, same code always. */
export function fromErrorEvent(event: ErrorEvent): GygesError {
  const code: ExitCode = isExitCode(event.code) ? event.code : EXIT.internal;
  switch (event.name) {
    case "UsageError":
      return new UsageError(event.message);
    case "PreflightError": {
      const remedy = event.remedy ?? "run `gyges doctor`";
      // The constructor puts the remedy at the end of the message again.
      const suffix = `: ${remedy}`;
      const message = event.message.endsWith(suffix) ? event.message.slice(0, -suffix.length) : event.message;
      return new PreflightError(message, { check: event.check ?? "unknown", remedy });
    }
    case "HandshakeError":
      return new HandshakeError(event.message, {
        field: event.field ?? "unknown",
        ours: event.ours ?? "",
        theirs: event.theirs ?? "",
      });
    case "MigrationError":
      return new MigrationError(event.message, {
        phase: "unknown",
        guestLocation: event.guest_location,
        exitCode: code,
      });
    default:
      return new RemoteError(event.message, event.name, code);
  }
}
