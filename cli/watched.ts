/** What every command that holds or moves a guest does with events and signals. */
import type { GygesEvent } from "../lib/events.ts";
import type { RunOptions } from "../lib/resident/serve.ts";
import type { ActionContext } from "./action.ts";
import { standardStreams } from "./terminal.ts";

/** Does `work` with its events shown and signals heeded. `lookWith`: the command that shows how it stands. */
export async function watched<T>(
  lookWith: string,
  { output }: ActionContext,
  work: (run: Required<RunOptions>) => Promise<T>,
): Promise<T> {
  const [{ Interrupts }, { takesOutput }] = await Promise.all([
    import("./signals.ts"),
    import("../lib/host/native.ts"),
  ]);
  // Where its library cannot be had this says so, and no word to come.
  takesOutput(2);
  standardStreams.neverWait(takesOutput);
  using interrupts = new Interrupts({ say: (text) => output.say(text), lookWith, onHangup: "go on" });
  return await work({
    signal: interrupts.signal,
    onEvent(event: GygesEvent) {
      interrupts.observe(event);
      output.event(event);
    },
  });
}
