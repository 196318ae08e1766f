import assert from "node:assert/strict";
import { UsageError } from "../../lib/errors.ts";
import { formatTicket, newKey, parseTicket, type Ticket } from "../../lib/wire/ticket.ts";

const KEY = "A".repeat(42) + "8";
const GOOD = `gyges://192.0.2.7:7000/dst#${KEY}`;

Deno.test("parseTicket() reads what formatTicket() wrote, for names, addresses, TLS on and off", () => {
  for (const host of ["192.0.2.7", "node-1.example", "2001:db8::1", "127.0.0.1"]) {
    for (const tls of [true, false]) {
      const ticket: Ticket = { host, port: 7000, name: "erp-1.a_b", tls, key: newKey() };
      assert.deepEqual(parseTicket(formatTicket(ticket)), ticket);
      assert.deepEqual(parseTicket(`  ${formatTicket(ticket)}\n`), ticket);
    }
  }
});

Deno.test("newKey() gives 32 bytes that differ each time", () => {
  const keys = Array.from({ length: 50 }, () => newKey().join());
  assert.equal(new Set(keys).size, 50);
  assert.equal(newKey().length, 32);
});

const BAD: readonly [what: string, ticket: string, words: RegExp][] = [
  ["is empty", "", /must begin with "gyges:\/\/"/],
  ["has another scheme", GOOD.replace("gyges", "https"), /must begin with/],
  ["lost its key to the shell", "gyges://192.0.2.7:7000/dst", /quote it for the shell/],
  ["has a key cut short", GOOD.slice(0, -5), /its key has 38 characters and must have 43/],
  ["has a key too long", `${GOOD}A`, /has 44 characters/],
  ["has a key with foreign characters", `${GOOD.slice(0, -1)}!`, /characters/],
  ["has no port", GOOD.replace(":7000", ""), /is not gyges:\/\/HOST:PORT\/NAME/],
  ["has port 0", GOOD.replace("7000", "0"), /its port is 0 and must be 1 to 65535/],
  ["has port 65536", GOOD.replace("7000", "65536"), /its port is 65536/],
  ["has no name", GOOD.replace("/dst", "/"), /is not gyges/],
  ["has a name that cannot be one", GOOD.replace("/dst", "/..%2f"), /is not gyges/],
  ["has an unknown option", GOOD.replace("/dst", "/dst?tls=no"), /is not gyges/],
  ["has a user", GOOD.replace("192", "root@192"), /is not gyges/],
];

for (const [what, ticket, words] of BAD) {
  Deno.test(`parseTicket() refuses a ticket that ${what}, without showing its key`, () => {
    assert.throws(() => parseTicket(ticket), (error) => {
      assert.ok(error instanceof UsageError);
      assert.match(error.message, words);
      assert.ok(!error.message.includes("AAAAAAAA"), error.message);
      return true;
    });
  });
}

Deno.test("control: the ticket that the bad ones are made from is good", () => {
  assert.equal(parseTicket(GOOD).port, 7000);
});
