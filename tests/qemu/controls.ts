/** Positive controls: a move that damages memory, of which the guest must tell. */
import assert from "node:assert/strict";
import { QemuPair, type Shape } from "./pair.ts";
import { stampedRun } from "./stamps.ts";

/** Moves a guest one of whose pages comes as zeros, which it finds. */
export async function proveZeroPageIsFound(shape: Shape): Promise<void> {
  await using pair = await QemuPair.open(shape);
  const home = await pair.start();
  const { first } = stampedRun(pair.qemuOf(home.name));
  const to = await pair.prepare({ env: { GYGES_INJECT: `zero-page@${first}` } });
  await pair.move(home, to, ["--mode", "full"]);
  await pair.console.untilCorrupt();
  assert.match(pair.console.corruptions[0] ?? "", /zero$/);
}

/** Moves a guest with its last writes left out, which it finds, unless it has made none in the moment before the stop. */
export async function proveLostWriteIsFound(shape: Shape): Promise<void> {
  for (let tries = 3; tries > 0; tries--) {
    const [found] = await moveWithoutLastWrites(shape);
    if (found === undefined) continue;
    assert.match(found, /stale$/);
    return;
  }
  assert.fail("in three moves of which the last writes were not sent the guest missed none");
}

/** What damage the guest has found when it powers off. */
async function moveWithoutLastWrites(shape: Shape): Promise<readonly string[]> {
  await using pair = await QemuPair.open(shape);
  const home = await pair.start();
  const { first, pages } = stampedRun(pair.qemuOf(home.name));
  const to = await pair.prepare();
  // The source's side runs in the process that holds the guest, so here in one that has the fault armed.
  await home.process[Symbol.asyncDispose]();
  const qmp = pair.host.monitorOf(home.name);
  // Two rounds at least: what is written in the first may be sent in it after that.
  const rounds = ["--precopy-timeout", "8s", "--switch-threshold", "2ms"];
  const migrate = pair.host.start(["migrate", to.ticket, "--qmp", qmp, ...rounds], {
    env: { GYGES_INJECT: `skip-dirty@${first}+${pages}` },
  });
  await migrate.waitFor("note", ({ detail }) => /^Writes are tracked by .* write protection/.test(detail));
  await migrate.endedWith(0);
  pair.console.moveTo(to.log);
  // It would be long in coming to the page, but before it powers off it looks at all. (Its end may overtake the answer.)
  await pair.host.start(["vm", "stop", to.name]).ended();
  await pair.console.untilEnded();
  return pair.console.corruptions;
}
