/** What can go wrong with a QEMU besides its monitor. */
import { EXIT, GygesError } from "../errors.ts";

/** CPU and device state could not be taken from, or given to, a QEMU. */
export class MachineStateError extends GygesError {
  override readonly name = "MachineStateError";
  readonly exitCode = EXIT.internal;
}
