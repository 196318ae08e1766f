/**
 * GYGES_INJECT=FAULT@PAGE, or FAULT@PAGE+PAGES, arms one fault in this process, for tests that must see a detector fire.
 * `uncaught@MS` damages no memory: so many milliseconds from its start on the process has errors that nobody catches.
 */
import { INJECT, inject, type InjectedFault, UNDRAINED } from "../../ffi/inject.ts";
import { UsageError } from "../errors.ts";
import type { GygesEvent } from "../events.ts";

const VARIABLE = "GYGES_INJECT";
const UNCAUGHT = "uncaught";

/** Arms what the environment asks for, and says so loudly. Throws UsageError for what it cannot read. */
export function armInjection(onEvent: (event: GygesEvent) => void): void {
  const text = Deno.env.get(VARIABLE);
  if (text === undefined) return;
  const [fault = "", where = ""] = text.split("@");
  const [, page, pages = 1] = /^(\d{1,12})(?:\+(\d{1,12}))?$/.exec(where) ?? [];
  if (fault === UNCAUGHT && page !== undefined) {
    setTimeout(failUncaught, Number(page));
    return;
  }
  if (!isFault(fault) || page === undefined) {
    const faults = [...Object.keys(INJECT), UNDRAINED, UNCAUGHT].join(", ");
    throw new UsageError(
      `Cannot read ${VARIABLE}="${text}": it must be FAULT@PAGE[+PAGES] with FAULT one of ${faults}`,
    );
  }
  inject(fault, Number(page), Number(pages));
  onEvent({
    type: "note",
    level: "warning",
    detail: `${VARIABLE} is set: the guest's memory will be damaged on purpose (${fault} at page ${where})`,
  });
}

function isFault(text: string): text is InjectedFault {
  return text in INJECT || text === UNDRAINED;
}

/** In both ways that there are. */
function failUncaught(): void {
  void Promise.reject(new Error("rejected on purpose"));
  throw new Error("thrown on purpose");
}
