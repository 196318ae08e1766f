/** The user pager over RDMA: one-sided READs from user space, over soft-RoCE. */
import assert from "node:assert/strict";
import type { GygesEvent } from "../../lib/events.ts";
import { stopGuest } from "../helpers/pair.ts";
import { proveReport } from "../helpers/proof.ts";
import { GygesHost } from "./gyges_host.ts";
import { KERNELS, type Lab, type LabHost, labTest } from "./lab.ts";
import { account, move, prepareAt, proveWhole, startGuest } from "./moves.ts";

const USER = ["--pager", "user"];
const RDMA = { rdma: true } as const;
const FULL = ["--mode", "full"];

for (const kernel of KERNELS) {
  labTest(
    "the user pager moves a guest by RDMA in full mode, and back in hybrid mode",
    { kernel, ...RDMA },
    async (lab) => {
      const [one, two] = [lab.host(1), lab.host(2)];
      const [guest, there] = await Promise.all([startGuest(one, USER), prepareAt(two, "there", USER)]);
      const full = await account(`${kernel}, full`, guest, there, move(one, guest, there, FULL));
      assert.deepEqual([full.pager, full.transport], ["user", "rdma"]);
      assert.ok(full.zero_pages > 0, "registering RAM fills its holes, and they must still be known to be zero");

      const back = await prepareAt(one, "back", USER);
      const hybrid = move(two, there, back, ["--mode", "hybrid", "--precopy-timeout", "2s", "--transport", "rdma"]);
      const summary = await account(`${kernel}, hybrid`, there, back, hybrid);
      assert.equal(summary.transport, "rdma");
      await proveWhole(one, back, summary);
    },
  );
}

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
  let guest = await startGuest(one, USER, { under: LITTLE_MEMLOCK });
  for (
    const [args, under, why] of [
      [[], [], /over TCP.*not from the source: .*the locked-memory limit is 64 KiB/],
      [[], WITHOUT_LIBRARIES, /over TCP.*not at the destination: librdmacm\.so\.1 cannot be opened/],
      [[], [], /over TCP.*not from the source: librdmacm\.so\.1 cannot be opened/],
      [[], LITTLE_MEMLOCK, /over TCP.*Cannot connect to .* by RDMA: \d+ KiB cannot be pinned/],
      [["--transport", "tcp"], [], /over TCP.*--transport tcp was given at the source/],
    ] as const
  ) {
    const name = `to-${crypto.randomUUID().slice(0, 8)}`;
    const there = await prepareAt(to, name, USER, { under });
    const migrate = move(from, guest, there, [...FULL, ...args]);
    const summary = await account("6.12, over TCP for want of RDMA", guest, there, migrate);
    assert.equal(summary.transport, "tls");
    assert.match(notes((await migrate.ended()).events), why);
    assert.match(notes(there.process.events), why);
    [from, to, guest] = [to, from, there];
  }
  proveReport(await stopGuest(new GygesHost(from), guest));
}

/** A source that was told to use RDMA and cannot leaves the guest where it is, and the ticket unused. */
async function refused(one: LabHost, two: LabHost, under: readonly string[], words: RegExp): Promise<void> {
  const guest = await startGuest(one, USER, { under });
  const there = await prepareAt(two, "unused", USER);
  const { events } = await move(one, guest, there, [...FULL, "--transport", "rdma"]).endedWith(3);
  const error = events.at(-1);
  assert.ok(error?.type === "error");
  assert.match(error.message, words);
  assert.ok(!there.process.states.includes("preparing"), "the ticket was used up");
  there.process.signal("SIGINT");
  await there.process.ended();
  proveReport(await stopGuest(new GygesHost(one), guest));
}
