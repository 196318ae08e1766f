/** The verdict on a guest's memory. */
import { EXIT, type ExitCode } from "../lib/errors.ts";
import type { GuestEvent } from "../lib/events.ts";

/** A guest with a lost or stale page is lost, however well it seems to run. */
export function exitForMemory({ guest, ram_check: check }: GuestEvent): ExitCode {
  return (guest.corrupt ?? 0) > 0 || (check?.bad_pages ?? 0) > 0 ? EXIT.guestLost : EXIT.completed;
}
