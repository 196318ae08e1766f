import assert from "node:assert/strict";
import type { GygesEvent } from "../../lib/events.ts";
import { StrangerNotes } from "../../lib/resident/stranger_notes.ts";

Deno.test("the first stranger is told of at once, the rest by number, and nobody after the end", () => {
  const told: GygesEvent[] = [];
  let silent = 0;
  const notes = new StrangerNotes({ silent: () => silent, onEvent: (event) => told.push(event) });
  for (const why of ["no key", "no key either", "nor this one"]) notes.refused(why);
  silent = 4;
  notes[Symbol.dispose]();
  notes.refused("its handshake outlived the door");
  notes[Symbol.dispose]();
  assert.deepEqual(told.map((event) => event.type === "note" && event.detail), [
    "A connection was refused: no key",
    "Of the connections that came, 2 more were refused, and 4 said nothing whole and were dropped",
  ]);
});
