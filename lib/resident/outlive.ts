/** A process that has a guest, or pages of one, is not ended by an error that nobody caught: the guest would go with it. */
import type { GygesEvent } from "../events.ts";

/** Until it is disposed of, such an error is told to `onEvent`, as a warning, and the process goes on. */
export function outliveErrors(onEvent: (event: GygesEvent) => void): Disposable {
  const tell = (event: Event, cause: unknown) => {
    event.preventDefault();
    const words = cause instanceof Error ? cause.stack ?? cause.message : String(cause);
    try {
      onEvent({
        type: "note",
        level: "warning",
        detail: `Internal error, please report it; the guest goes on: ${words}`,
      });
    } catch {
      // Where nobody listens any more this has nobody to tell, and would come back here for ever.
    }
  };
  const onError = (event: ErrorEvent) => tell(event, event.error);
  const onRejection = (event: PromiseRejectionEvent) => tell(event, event.reason);
  globalThis.addEventListener("error", onError);
  globalThis.addEventListener("unhandledrejection", onRejection);
  return {
    [Symbol.dispose]() {
      globalThis.removeEventListener("error", onError);
      globalThis.removeEventListener("unhandledrejection", onRejection);
    },
  };
}
