import assert from "node:assert/strict";
import {
  COMMITTED_SOURCE_STATES,
  DESTINATION_TRANSITIONS,
  SOURCE_TRANSITIONS,
  StateMachine,
} from "../../lib/migration/states.ts";

const TABLES = { source: SOURCE_TRANSITIONS, destination: DESTINATION_TRANSITIONS };

for (const [side, table] of Object.entries(TABLES)) {
  const states = Object.keys(table);

  Deno.test(`${side} machine takes every transition of its table and throws for every other`, () => {
    for (const from of states) {
      for (const to of states) {
        const told: string[] = [];
        const machine = new StateMachine<string>(table, from, (state) => told.push(state));
        const legal = (table as Record<string, readonly string[]>)[from]?.includes(to) ?? false;
        assert.equal(machine.can(to), legal);
        if (legal) machine.to(to, "a test");
        else assert.throws(() => machine.to(to, "a test"), /Illegal transition from/);
        assert.equal(machine.state, legal ? to : from);
        assert.deepEqual(told, legal ? [to] : []);
      }
    }
  });

  Deno.test(`${side} machine can reach every state, and leaves neither completed nor failed`, () => {
    const reached = new Set([states[0] ?? ""]);
    for (const state of reached) {
      for (const next of (table as Record<string, readonly string[]>)[state] ?? []) reached.add(next);
    }
    assert.deepEqual([...reached].sort(), states.toSorted());
    assert.deepEqual(table.completed, []);
    assert.deepEqual(table.failed, []);
  });
}

Deno.test("a committed source state leads to no other but the one for a guest that was given back", () => {
  const reached = new Set(COMMITTED_SOURCE_STATES);
  for (const state of reached) for (const next of SOURCE_TRANSITIONS[state]) reached.add(next);
  assert.deepEqual([...reached].sort(), [...COMMITTED_SOURCE_STATES, "failed"].sort());
});

Deno.test("no way leads from a running destination back to one that may forget the guest", () => {
  const reached = new Set(["running" as const]) as Set<keyof typeof DESTINATION_TRANSITIONS>;
  for (const state of reached) for (const next of DESTINATION_TRANSITIONS[state]) reached.add(next);
  assert.deepEqual([...reached].sort(), ["completed", "paused", "running"]);
});
