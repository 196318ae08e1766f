/** Exit codes of `gyges`; an API, see README "Exit codes". Any other code is a failure. */
export const EXIT = {
  completed: 0,
  internal: 1,
  usage: 2,
  hostUnable: 3,
  peerRefused: 4,
  failedBeforeCommit: 10,
  linkLost: 11,
  guestLost: 12,
  interrupted: 130,
} as const;

export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

/** Where the guest is, as far as the speaker can prove; "here": held by this process, which is in no migration. */
export type GuestLocation = "here" | "source" | "destination" | "destination-incomplete" | "lost" | "none" | "unknown";

/** Base of every error that Gyges throws on purpose: it knows its exit code. */
export abstract class GygesError extends Error {
  abstract readonly exitCode: ExitCode;
}

/** The command line, or a request to a running process, cannot be right. */
export class UsageError extends GygesError {
  override readonly name = "UsageError";
  readonly exitCode = EXIT.usage;
}

export interface PreflightErrorOptions extends ErrorOptions {
  /** Name of the check as `gyges doctor` prints it. */
  check: string;
  /** What the operator can do about it. */
  remedy: string;
}

/** This host cannot do what was asked; `remedy` says what mends it. */
export class PreflightError extends GygesError {
  override readonly name = "PreflightError";
  readonly exitCode = EXIT.hostUnable;
  readonly check: string;
  readonly remedy: string;

  constructor(message: string, options: PreflightErrorOptions) {
    super(`${message}: ${options.remedy}`, options);
    this.check = options.check;
    this.remedy = options.remedy;
  }
}

export interface HandshakeErrorOptions extends ErrorOptions {
  field: string;
  ours: string;
  theirs: string;
}

/** The two ends do not fit, or the peer refused; both values are named. */
export class HandshakeError extends GygesError {
  override readonly name = "HandshakeError";
  readonly exitCode = EXIT.peerRefused;
  readonly field: string;
  readonly ours: string;
  readonly theirs: string;

  constructor(message: string, options: HandshakeErrorOptions) {
    super(message, options);
    this.field = options.field;
    this.ours = options.ours;
    this.theirs = options.theirs;
  }
}

export interface MigrationErrorOptions extends ErrorOptions {
  phase: string;
  guestLocation: GuestLocation;
  exitCode: ExitCode;
}

/** A migration ended without completing; the guest is at `guestLocation`. */
export class MigrationError extends GygesError {
  override readonly name = "MigrationError";
  readonly exitCode: ExitCode;
  readonly phase: string;
  readonly guestLocation: GuestLocation;

  constructor(message: string, options: MigrationErrorOptions) {
    super(message, options);
    this.phase = options.phase;
    this.guestLocation = options.guestLocation;
    this.exitCode = options.exitCode;
  }
}
