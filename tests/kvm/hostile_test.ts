/** Peers that do not keep to the protocol, with the ticket's key and without it, and hosts that lack something. */
import assert from "node:assert/strict";
import { parseTicket } from "../../lib/wire/ticket.ts";
import type { Host } from "../helpers/host.ts";
import { kvmTest } from "../helpers/kvm.ts";
import { errorOf, proveRuns, proveStays } from "../helpers/outcome.ts";
import { finished, type Holder, move, prepare, startGuest, startMove } from "../helpers/pair.ts";
import { heldBy } from "../helpers/proc.ts";
import { proveGuest, proveSummary } from "../helpers/proof.ts";
import { encodeFrame, type Frame, once, type Verdict, Wiretap, type WiretapOptions } from "../helpers/wiretap.ts";

const VM = ["--ram", "32M", "--rate", "20000"];
const PLAIN = ["--tls", "off"];
const HYBRID = ["--mode", "hybrid", "--precopy-timeout", "100ms", ...PLAIN];
const FULL = ["--mode", "full", ...PLAIN];

// ---- strangers: without the key ----

/** The first bytes of a ClientHello that announces more. */
const HALF_HELLO = new Uint8Array([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
const HALF_PREAMBLE = new TextEncoder().encode("GYGESP01 and no nonce");

function noise(): Uint8Array<ArrayBuffer> {
  return crypto.getRandomValues(new Uint8Array(512));
}

/** `n` connections to `ticket`'s port, each of which says `words` and then nothing. */
async function strangers(ticket: string, n: number, words: () => Uint8Array | null): Promise<Deno.TcpConn[]> {
  const { host: hostname, port } = parseTicket(ticket);
  const connections: Deno.TcpConn[] = [];
  for (let i = 0; i < n; i++) {
    const connection = await Deno.connect({ hostname, port });
    connections.push(connection);
    const text = words();
    // Who was dropped for those that came later does not get its word in.
    if (text) await connection.write(text).catch(() => {});
  }
  return connections;
}

for (const tls of ["on", "off"]) {
  kvmTest(
    `1,000 idle strangers, 200 that say half of something and 200 that make noise delay no source, TLS ${tls}`,
    async (host) => {
      const source = await startGuest(host, "src", VM);
      const destination = await prepare(host, "dst", ["--tls", tls]);
      const before = heldBy(destination.process.pid);
      const crowd = [
        ...await strangers(destination.ticket, 1_000, () => null),
        ...await strangers(destination.ticket, 100, () => HALF_HELLO),
        ...await strangers(destination.ticket, 100, () => HALF_PREAMBLE),
        ...await strangers(destination.ticket, 200, noise),
      ];
      const held = heldBy(destination.process.pid);
      assert.ok(held.fds - before.fds <= 300, `${held.fds - before.fds} descriptors for strangers`);
      assert.ok(held.threads - before.threads <= 24, `${held.threads - before.threads} threads for strangers`);
      assert.ok(held.privateMib - before.privateMib <= 24, `${held.privateMib - before.privateMib} MiB for strangers`);
      const began = performance.now();
      const moved = await move(host, source, destination, ["--mode", "full", "--tls", tls]);
      const tookMs = performance.now() - began;
      console.log(`among 1,400 strangers, TLS ${tls}: moved in ${tookMs.toFixed(0)} ms, ${held.fds} descriptors held`);
      assert.ok(tookMs < 5_000, `${tookMs} ms`);
      proveSummary(moved);
      for (const connection of crowd) connection.close();
      const notes = destination.process.events.filter((event) => event.type === "note");
      assert.ok(notes.length >= 1 && notes.length < 20, `${notes.length} notes`);
      await proveGuest(host, destination);
      host.assertEmpty();
    },
  );
}

// ---- with the key: what is altered on its way is what a hostile end could say ----

function cutInHalf({ text, payload }: Frame): Verdict {
  const whole = encodeFrame(text, payload);
  return { bytes: whole.slice(0, whole.length - Math.ceil((whole.length - 8) / 2)), cut: true };
}

function oversized({ text }: Frame): Verdict {
  const bytes = encodeFrame(text);
  new DataView(bytes.buffer).setUint32(4, 0xfffffff0, true);
  return { bytes };
}

function join(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

const ALTERATIONS: Record<string, (frame: Frame) => Verdict> = {
  "cut in half": cutInHalf,
  oversized,
  "no JSON": () => ({ bytes: encodeFrame('{"type":') }),
  "no UTF-8": () => ({
    bytes: join(new Uint8Array([4, 0, 0, 0, 0, 0, 0, 0]), new Uint8Array([0xff, 0xfe, 0xc0, 0xaf])),
  }),
  "of no known type": () => ({ bytes: encodeFrame('{"type":"resume"}') }),
  "without its fields": ({ type }) => ({
    bytes: encodeFrame(JSON.stringify({ type, round: -1, role: "x", state: "x" })),
  }),
  "another, before its time": ({ from }) => ({
    bytes: encodeFrame(from === "source" ? '{"type":"run"}' : '{"type":"running"}'),
  }),
};

const BEFORE_COMMIT = [
  "welcome",
  "offer",
  "accepted",
  "round",
  "round_done",
  "discard",
  "discarded",
  "handover",
  "state",
  "loaded",
];
/** These have no fields, so what lacks its fields is whole. */
const BARE = ["accepted", "discard", "run", "running"];

/** Each alteration in turn over one source: every one fails with 10, and the source lives through all of them. */
async function proveRefusals(
  host: Host,
  type: string,
  alterations: Record<string, (frame: Frame) => Verdict>,
): Promise<void> {
  const source = await startGuest(host, "src", VM);
  for (const [what, alter] of Object.entries(alterations)) {
    if (what === "without its fields" && BARE.includes(type)) continue;
    const destination = await prepare(host, "dst", PLAIN);
    await using tap = new Wiretap(destination.ticket, once(type, alter));
    const error = errorOf(await startMove(host, source, tap.ticket, HYBRID).endedWith(10));
    assert.equal(error.guest_location, "source", `"${type}" ${what}`);
    assert.match(error.message, /guest runs at the source/, `"${type}" ${what}`);
    await destination.process.endedWith(10);
    await proveRuns(host, source);
  }
  const destination = await prepare(host, "dst", PLAIN);
  proveSummary(await move(host, source, destination, FULL));
  await proveGuest(host, destination);
  host.assertEmpty();
}

for (const type of BEFORE_COMMIT) {
  kvmTest(
    `"${type}" malformed in every way fails with 10 and leaves the guest, which moves afterwards`,
    async (host) => {
      await proveRefusals(host, type, ALTERATIONS);
    },
  );
}

kvmTest("payloads that lie fail with 10 and leave the guest", async (host) => {
  const flipped = ({ text, payload }: Frame): Verdict => {
    const lie = payload.slice();
    lie[40] = (lie[40] ?? 0) ^ 0x5a;
    return { bytes: encodeFrame(text, lie) };
  };
  await proveRefusals(host, "state", {
    "a flipped bit": flipped,
    "nothing at all": ({ text }) => ({ bytes: encodeFrame(text) }),
    "half of it": ({ text, payload }) => ({ bytes: encodeFrame(text, payload.slice(0, payload.length / 2)) }),
  });
});

for (const type of ["round", "discard", "handover"]) {
  kvmTest(`a page set of noise in "${type}" fails with 10 and leaves the guest`, async (host) => {
    await proveRefusals(host, type, {
      noise: ({ text }) => ({ bytes: encodeFrame(text, noise()) }),
      nothing: ({ text }) => ({ bytes: encodeFrame(text) }),
    });
  });
}

for (const type of ["offer", "accepted", "round", "round_done", "discard", "discarded", "handover"]) {
  kvmTest(`"${type}" said twice fails with 10 and leaves the guest`, async (host) => {
    await proveRefusals(host, type, {
      twice: ({ text, payload }) => ({ bytes: join(encodeFrame(text, payload), encodeFrame(text, payload)) }),
    });
  });
}

kvmTest("an offer that does not tell the guest's RAM or page size fails, and leaves the guest", async (host) => {
  const source = await startGuest(host, "src", VM);
  const LIES = [[{ ram_bytes: 64 << 20 }, 10], [{ ram_bytes: 16 << 20 }, 10], [{ page_bytes: 2 << 20 }, 4], [{
    ram_bytes: 12345,
  }, 4], [{ vcpus: 2 }, 10]] as const;
  for (const [lie, code] of LIES) {
    const destination = await prepare(host, "dst", PLAIN);
    const options = once("offer", ({ text }) => {
      const offer = JSON.parse(text);
      return { bytes: encodeFrame(JSON.stringify({ ...offer, machine: { ...offer.machine, ...lie } })) };
    });
    await using tap = new Wiretap(destination.ticket, options);
    const error = errorOf(await startMove(host, source, tap.ticket, HYBRID).endedWith(code));
    assert.equal(error.guest_location, "source", JSON.stringify(lie));
    assert.notEqual((await destination.process.ended()).code, 0);
    await proveRuns(host, source);
  }
  await proveStays(host, source);
  host.assertEmpty();
});

/** After the commit point a broken message is a broken link: both ends come back, and the guest arrives. */
async function proveHeals(host: Host, options: WiretapOptions, args: string[]): Promise<void> {
  const source: Holder = await startGuest(host, "src", VM);
  const destination = await prepare(host, "dst", PLAIN);
  await using tap = new Wiretap(destination.ticket, options);
  const migrate = startMove(host, source, tap.ticket, args);
  const moved = await finished(source, destination, await migrate.endedWith(0));
  proveSummary(moved);
  await proveGuest(host, destination);
  host.assertEmpty();
}

for (const type of ["run", "running", "progress", "complete"]) {
  kvmTest(
    `"${type}" malformed, or said twice, after the commit point heals, and the guest arrives whole`,
    async (host) => {
      const twice = ({ text, payload }: Frame) => ({
        bytes: join(encodeFrame(text, payload), encodeFrame(text, payload)),
      });
      for (const alter of [ALTERATIONS["no JSON"], ALTERATIONS["cut in half"], twice]) {
        if (alter) await proveHeals(host, once(type, alter), [...FULL, "--bandwidth", "200Mbit"]);
      }
    },
  );
}

kvmTest("a source that ends with nonsense leaves a whole guest, and the destination's own account", async (host) => {
  const source = await startGuest(host, "src", VM);
  const destination = await prepare(host, "dst", PLAIN, { env: { GYGES_RECONNECT_S: "1" } });
  await using tap = new Wiretap(destination.ticket, once("finished", () => ({ bytes: encodeFrame("nonsense") })));
  await startMove(host, source, tap.ticket, FULL).endedWith(0);
  await source.process.endedWith(0);
  const summary = await destination.process.waitFor("summary");
  assert.deepEqual([summary.guest.location, summary.guest.corrupt], ["destination", 0]);
  await proveGuest(host, destination);
  host.assertEmpty();
});

for (const type of ["state", "loaded"]) {
  kvmTest(`"${type}" said twice puts the destination in doubt and heals, and the guest arrives whole`, async (host) => {
    const twice = ({ text, payload }: Frame) => ({
      bytes: join(encodeFrame(text, payload), encodeFrame(text, payload)),
    });
    await proveHeals(host, once(type, twice), FULL);
  });
}

// struct page_reply, struct page_request: magic, tag, first_page (u64), count, ...
const REPLY_LIES: Record<string, (head: DataView) => void> = {
  magic: (head) => head.setUint32(0, 0, true),
  tag: (head) => head.setUint32(4, head.getUint32(4, true) + 1, true),
  page: (head) => head.setBigUint64(8, head.getBigUint64(8, true) + 1n, true),
  "count of 0": (head) => head.setUint32(16, 0, true),
  "count beyond the request": (head) => head.setUint32(16, 0xffffffff, true),
  encoding: (head) => head.setUint32(20, 9, true),
  length: (head) => head.setUint32(24, head.getUint32(24, true) - 4096, true),
};
const REQUEST_LIES: Record<string, (request: DataView) => void> = {
  magic: (request) => request.setUint32(0, 0, true),
  page: (request) => request.setBigUint64(8, 1n << 50n, true),
  "count of 0": (request) => request.setUint32(16, 0, true),
  "count beyond any": (request) => request.setUint32(16, 0xffffffff, true),
};

/** Lies once, in the 20th reply or request. */
function lie(kind: "onReply" | "onRequest", tell: (view: DataView) => void): WiretapOptions {
  let n = 0;
  return { [kind]: (view: DataView) => ++n === 20 ? tell(view) : undefined };
}

for (const [kind, lies] of [["onReply", REPLY_LIES], ["onRequest", REQUEST_LIES]] as const) {
  const word = kind === "onReply" ? "reply" : "request";
  kvmTest(`a page ${word} with a wrong ${Object.keys(lies).join(", ")} in pre-copy fails with 10`, async (host) => {
    const source = await startGuest(host, "src", VM);
    for (const [what, tell] of Object.entries(lies)) {
      const destination = await prepare(host, "dst", PLAIN);
      await using tap = new Wiretap(destination.ticket, lie(kind, tell));
      const error = errorOf(
        await startMove(host, source, tap.ticket, [...HYBRID, "--bandwidth", "1Gbit"]).endedWith(10),
      );
      assert.equal(error.guest_location, "source", what);
      await destination.process.endedWith(10);
      await proveRuns(host, source);
    }
    await proveStays(host, source);
    host.assertEmpty();
  });

  for (const [what, tell] of Object.entries(lies)) {
    kvmTest(`a page ${word} with a wrong ${what} in post-copy is refused, heals, and damages nothing`, async (host) => {
      await proveHeals(host, lie(kind, tell), [...FULL, "--bandwidth", "400Mbit"]);
    });
  }
}

// ---- hosts that lack something ----

/** Runs `gyges ARGS --json` by a shell script, in which "$@" is the command. */
async function under(
  host: Host,
  wrap: string[],
  args: string[],
): Promise<{ code: number; last: ReturnType<typeof errorOf> }> {
  const { stdout, code } = await new Deno.Command(wrap[0] ?? "", {
    args: [...wrap.slice(1), new URL("../../dist/gyges", import.meta.url).pathname, ...args, "--json"],
    env: { GYGES_RUNTIME_DIR: host.runtimeDir },
    stdin: "null",
    stderr: "null",
    signal: AbortSignal.timeout(30_000),
  }).output();
  const last = JSON.parse(new TextDecoder().decode(stdout).trim().split("\n").at(-1) ?? "");
  return { code, last };
}

const HOLDERS = [["vm", "start", "src", "--ram", "32M"], ["prepare", "dst", "--micro"]];

kvmTest("a host without /dev/kvm is refused with 3 and the remedy", async (host) => {
  const hide = ["unshare", "--mount", "sh", "-ec", 'mount --bind /dev/null /dev/kvm; exec "$@"', "sh"];
  for (const args of HOLDERS) {
    const { code, last } = await under(host, hide, args);
    assert.deepEqual([code, last.check], [3, "kvm"], JSON.stringify(last));
    assert.match(last.message, /\/dev\/kvm.*: (run|load|give|as)/);
  }
  host.assertEmpty();
});

kvmTest("a user who may not use userfaultfd is refused with 3 and the remedy", async (host) => {
  // May use /dev/kvm, but has neither the capability nor the device.
  const drop = "[ ! -e /dev/userfaultfd ] || mount --bind /dev/null /dev/userfaultfd; " +
    'exec setpriv --bounding-set=-sys_ptrace "$@"';
  for (const args of HOLDERS) {
    const { code, last } = await under(host, ["unshare", "--mount", "sh", "-ec", drop, "sh"], args);
    assert.deepEqual([code, last.check], [3, "userfaultfd"], JSON.stringify(last));
    assert.match(last.message, /userfaultfd: .*: run as root: sysctl -w vm.unprivileged_userfaultfd=1/);
  }
  const nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
  await Deno.chown(host.runtimeDir, 65534, 65534);
  for (const args of HOLDERS) {
    const { code, last } = await under(host, nobody, args);
    assert.equal(code, 3, JSON.stringify(last));
    assert.match(last.message, last.check === "kvm" ? /usermod/ : /vm.unprivileged_userfaultfd=1/);
  }
  await Deno.chown(host.runtimeDir, 0, 0);
  host.assertEmpty();
});

kvmTest("a runtime directory that is full is refused with 3 and the remedy", async (host) => {
  const small = (fill: string) =>
    `mount -t tmpfs -o mode=0700,size=4k,nr_inodes=8 none "$GYGES_RUNTIME_DIR"; ${fill}; exec "$@"`;
  // No bytes; no inodes; inodes for all but the socket.
  const FILLS = [
    'cd "$GYGES_RUNTIME_DIR"; head -c 4096 /dev/zero > full',
    'cd "$GYGES_RUNTIME_DIR"; touch 1 2 3 4 5 6 7',
    'cd "$GYGES_RUNTIME_DIR"; touch 1 2 3 4 5',
  ];
  for (const fill of FILLS) {
    for (const args of HOLDERS) {
      const { code, last } = await under(host, ["unshare", "--mount", "sh", "-ec", small(fill), "sh"], args);
      assert.deepEqual([code, last.check], [3, "runtime-directory"], JSON.stringify(last));
      assert.match(last.message, /no space is left there: see df /);
    }
  }
  host.assertEmpty();
});

kvmTest("a port in use is refused with 3 and the remedy", async (host) => {
  using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { events } = await host.start(["prepare", "dst", "--micro", "--listen", `127.0.0.1:${taken.addr.port}`])
    .endedWith(3);
  const [error] = events;
  assert.ok(error?.type === "error");
  assert.equal(error.check, "listen");
  assert.match(error.message, /EADDRINUSE.*port 0 finds one/);
  host.assertEmpty();
});
