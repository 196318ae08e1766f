/** Guests that stand still while they move, so that all of their RAM can be compared. */
import assert from "node:assert/strict";
import { join } from "node:path";
import type { Held, QemuPair } from "./pair.ts";
import { differingPages, ramFileOf } from "./stamps.ts";

/** A guest that works, and is stopped by the monitor of somebody else. */
export async function stopped(pair: QemuPair, args: readonly string[] = []): Promise<Held> {
  const home = await pair.start(args);
  await pair.order(home.name, "stop");
  return home;
}

export async function proveStopped(pair: QemuPair, name: string, status = "paused"): Promise<void> {
  const answer = JSON.stringify(await pair.order(name, "query-status"));
  assert.match(answer, new RegExp(`"status":"${status}"`));
  assert.match(answer, /"running":false/);
}

/** Moves it from `home`, stopped, and lets it run there; the pages of its RAM that differ before that. */
export async function movedStopped(pair: QemuPair, home: Held, args: readonly string[], env = {}): Promise<number[]> {
  const before = join(pair.folder, "ram");
  await Deno.copyFile(ramFileOf(pair.qemuOf(home.name)), before);
  const to = await pair.prepare({ env });
  let found: number[] = [];
  await pair.move(home, to, args, async () => {
    await to.process.reached("completed");
    await proveStopped(pair, to.name);
    found = differingPages(before, ramFileOf(pair.qemuOf(to.name)));
    await pair.order(to.name, "cont");
  });
  return found;
}
