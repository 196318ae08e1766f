/** The user pager where RDMA is not to be had, and what it says then. */
import assert from "node:assert/strict";
import type { GygesEvent } from "../../lib/events.ts";
import { proveReport } from "../helpers/proof.ts";
import { type Lab, type LabHost, labTest } from "./lab.ts";
import { account, endGuest, move, prepareAt, startGuest } from "./moves.ts";

const USER = ["--pager", "user"];
const SMALL = ["--ram", "16M"];
const RDMA = { rdma: true, gyges: true } as const;
const FULL = ["--mode", "full"];

/** Where the RDMA libraries are, hidden from what is run; other processes of the host still see them. */
const WITHOUT_LIBRARIES = [
  "unshare",
  "--mount",
  "sh",
  "-c",
  'for library in /usr/lib/x86_64-linux-gnu/librdmacm.so.1; do mount --bind /dev/null "$library"; done; exec "$@"',
  "sh",
];
/** Root's right to lock any amount of memory is taken away, and so is the amount. */
const LITTLE_MEMLOCK = ["setpriv", "--bounding-set", "-ipc_lock", "prlimit", "--memlock=65536:65536"];

function notes(events: readonly GygesEvent[]): string {
  return events.flatMap((event) => event.type === "note" ? event.detail : []).join("\n");
}

labTest("what RDMA lacks is said with its remedy, and auto moves over TCP then", { kernel: "6.12", ...RDMA }, lacks);

async function lacks(lab: Lab): Promise<void> {
  const [one, two] = [lab.host(1), lab.host(2)];
  await refused(one, two, WITHOUT_LIBRARIES, /librdmacm\.so\.1 cannot be opened.*apt-get install -y librdmacm1/);
  await refused(one, two, LITTLE_MEMLOCK, /the locked-memory limit is 64 KiB.*ulimit -l unlimited.*--transport tcp/);

  // Back and forth: what one destination lacks its guest's next source lacks too.
  let [from, to] = [one, two];
  let guest = await startGuest(one, [...USER, ...SMALL], { under: LITTLE_MEMLOCK });
  for (
    const [under, why] of [
      [[], /over TCP.*not from the source: .*the locked-memory limit is 64 KiB/],
      [WITHOUT_LIBRARIES, /over TCP.*not at the destination: librdmacm\.so\.1 cannot be opened/],
      [[], /over TCP.*not from the source: librdmacm\.so\.1 cannot be opened/],
      [LITTLE_MEMLOCK, /over TCP.*Cannot connect to .* by RDMA: \d+ KiB cannot be pinned/],
    ] as const
  ) {
    const name = `to-${crypto.randomUUID().slice(0, 8)}`;
    const there = await prepareAt(to, name, USER, { under });
    const migrate = move(from, guest, there, FULL);
    const summary = await account("6.12, over TCP for want of RDMA", guest, there, migrate);
    assert.equal(summary.transport, "tls");
    assert.match(notes((await migrate.ended()).events), why);
    assert.match(notes(there.process.events), why);
    [from, to, guest] = [to, from, there];
  }
  proveReport(await endGuest(guest));
}

/** A source that was told to use RDMA and cannot leaves the guest where it is, and the ticket unused. */
async function refused(one: LabHost, two: LabHost, under: readonly string[], words: RegExp): Promise<void> {
  const [guest, there] = await Promise.all([
    startGuest(one, [...USER, ...SMALL], { under }),
    prepareAt(two, "unused", USER),
  ]);
  const { events } = await move(one, guest, there, [...FULL, "--transport", "rdma"]).endedWith(3);
  const error = events.at(-1);
  assert.ok(error?.type === "error");
  assert.match(error.message, words);
  assert.ok(!there.process.states.includes("preparing"), "the ticket was used up");
  there.process.signal("SIGINT");
  await there.process.ended();
  proveReport(await endGuest(guest));
}

/**
 * All pages that the guest verifies; below are those that it keeps its account in. Of one page it might be that the guest
 * writes it as it is stopped, and again at the destination, unread.
 */
const VERIFIED = "100+3996";

labTest("dirty pages that are not sent are found", { kernel: "6.12", ...RDMA }, async (lab) => {
  const [one, two] = [lab.host(1), lab.host(2)];
  const [guest, there] = await Promise.all([
    startGuest(one, [...USER, ...SMALL, "--rate", "2000", "--write-ratio", "1"], {
      env: { GYGES_INJECT: `skip-dirty@${VERIFIED}` },
    }),
    prepareAt(two, "there", USER),
  ]);
  const args = ["--mode", "hybrid", "--precopy-timeout", "3s", "--transport", "rdma"];
  await move(one, guest, there, args).ended();
  const { guest: report, ram_check } = await endGuest(there);
  assert.ok((report.corrupt ?? 0) + (ram_check?.bad_pages ?? 0) > 0);
});
