import assert from "node:assert/strict";
import { exitCodeOf, InterruptedError } from "../../cli/exit.ts";
import { Output } from "../../cli/output.ts";
import { fittedLine, plainLine } from "../../cli/progress.ts";
import { table } from "../../cli/render.ts";
import { Interrupts } from "../../cli/signals.ts";
import type { Terminal } from "../../cli/terminal.ts";
import { EXIT, HandshakeError, MigrationError, PreflightError, UsageError } from "../../lib/errors.ts";
import type { GuestReport, Sample, StateEvent } from "../../lib/events.ts";

class FakeTerminal implements Terminal {
  stdout = "";
  stderr = "";
  readonly outClosed = false;
  isBehind = false;
  readonly #columns: number | null;

  constructor(columns: number | null = null) {
    this.#columns = columns;
  }

  out(text: string): void {
    this.stdout += text;
  }

  err(text: string): void {
    this.stderr += text;
  }

  columns(): number | null {
    return this.#columns;
  }
}

const GUEST: GuestReport = {
  location: "destination",
  running: true,
  vcpus: 1,
  ram_bytes: 2 ** 28,
  passes: 12,
  verified_pages: 123_456,
  written_pages: 61_000,
  corrupt: 0,
  first_corrupt_page: null,
  largest_stall_ns: 4_200_000,
  clock_backsteps: 0,
};

const SAMPLE: Sample = {
  type: "sample",
  name: "vm1",
  side: "destination",
  state: "running",
  mode: "hybrid",
  elapsed_ns: 1e9,
  total_pages: 65_536,
  present_pages: 40_632,
  missing_pages: 24_904,
  precopy_round: 3,
  pulled_pages: 40_000,
  wire_bytes: 2e8,
  wire_bytes_per_second: 118e6,
  demand_faults: 412,
  fault_latency_ns: { n: 412, p50: 5_600, p90: 60_000, p99: 120_000, p999: 200_000, max: 300_000 },
  eta_ns: 850e6,
  guest: GUEST,
};

Deno.test("fittedLine() never fills the last column, whatever the width", () => {
  const idle: Sample = { ...SAMPLE, side: "idle", state: "idle", mode: null };
  for (const sample of [SAMPLE, { ...SAMPLE, state: "precopy" as const, eta_ns: null, demand_faults: 0 }, idle]) {
    for (let columns = 1; columns <= 200; columns++) {
      const line = fittedLine(sample, columns);
      assert.ok(line.length <= Math.max(1, columns - 1), `${line.length} in ${columns}: ${line}`);
      assert.doesNotMatch(line, /NaN|undefined|Infinity/);
    }
  }
});

Deno.test("fittedLine() gives up the least important first", () => {
  assert.equal(fittedLine(SAMPLE, 20), "vm1: running  61%");
  assert.equal(fittedLine(SAMPLE, 45), "vm1: running  61%  118 MB/s  ETA 850 ms");
  assert.match(
    fittedLine(SAMPLE, 120),
    /^vm1: running {2}61% {2}\[#+\.+\] {2}118 MB\/s .* 412 faults {2}p50 5.6 us p99 120 us$/,
  );
});

Deno.test("before the switch nobody knows a share, so none is shown", () => {
  const precopy: Sample = { ...SAMPLE, state: "precopy", missing_pages: 0, present_pages: 65_536, eta_ns: 0 };
  assert.equal(plainLine(precopy), "vm1: precopy round 3  118 MB/s  40,000 pages pulled");
  assert.doesNotMatch(fittedLine(precopy, 200), /%|\[/);
});

Deno.test("plainLine() says a corrupt guest aloud", () => {
  const idle: Sample = { ...SAMPLE, side: "idle", state: "idle", mode: null };
  assert.match(plainLine(idle), /guest runs {2}memory good/);
  assert.match(plainLine({ ...idle, guest: { ...GUEST, corrupt: 3 } }), /3 PAGES CORRUPT/);
});

Deno.test("off a terminal samples come as lines, at most one a second in one state", () => {
  const terminal = new FakeTerminal();
  const output = new Output({ json: false, terminal });
  for (let i = 0; i < 100; i++) output.event(SAMPLE);
  assert.equal(terminal.stderr, `${plainLine(SAMPLE)}\n`);
  output.event({ ...SAMPLE, state: "completed" });
  assert.match(terminal.stderr, /\nvm1: completed {2}100% .*\n$/);
  assert.equal(terminal.stdout, "");
});

Deno.test("on a terminal samples redraw one line, which other text removes first", () => {
  const terminal = new FakeTerminal(40);
  const output = new Output({ json: false, terminal });
  output.event(SAMPLE);
  output.event(SAMPLE);
  output.say("hello");
  const drawn = `\r\x1b[K${fittedLine(SAMPLE, 40)}`;
  assert.equal(terminal.stderr, `${drawn}${drawn}\r\x1b[Khello\n`);
});

Deno.test("samples, and nothing else, are left out while much waits to be read", () => {
  for (const json of [false, true]) {
    const terminal = new FakeTerminal();
    const output = new Output({ json, terminal });
    terminal.isBehind = true;
    output.event(SAMPLE);
    assert.deepEqual([terminal.stdout, terminal.stderr], ["", ""]);
    output.event({ type: "ticket", ticket: "gyges://h:1/vm1#k" });
    assert.match(terminal.stdout, /gyges:/);
    terminal.isBehind = false;
    output.event(SAMPLE);
    assert.match(terminal.stdout + terminal.stderr, /vm1/);
  }
});

Deno.test("the ticket stands alone on a line of stdout, diagnostics go to stderr", () => {
  const terminal = new FakeTerminal();
  const output = new Output({ json: false, terminal });
  output.event({ type: "ticket", ticket: "gyges://h:1/vm1#k" });
  output.event({ type: "state", side: "destination", state: "listening", detail: "" });
  output.event({ type: "promise", total_ns_at_most: 12.3e9, detail: "full mode at 1 Gbit" });
  assert.equal(terminal.stdout, "gyges://h:1/vm1#k\n");
  assert.equal(terminal.stderr, "destination: listening\nTotal time at most 12.3 s: full mode at 1 Gbit\n");
});

Deno.test("with --json every line on stdout is an object, and stderr is silent", () => {
  const terminal = new FakeTerminal(80);
  const output = new Output({ json: true, terminal });
  output.event(SAMPLE);
  output.event({ type: "guest", name: "vm1", guest: GUEST });
  output.say("for people");
  output.result("for people");
  output.error(new PreflightError("Cannot open /dev/kvm", { check: "kvm", remedy: "modprobe kvm" }));
  output.end();
  const objects = terminal.stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(objects.map((object) => object.type), ["sample", "guest", "error"]);
  const { code, check, remedy, name } = objects[2];
  assert.deepEqual([code, check, remedy, name], [3, "kvm", "modprobe kvm", "PreflightError"]);
  assert.equal(terminal.stderr, "");
});

Deno.test("error() tells people what they may do", () => {
  const words = (error: unknown) => {
    const terminal = new FakeTerminal();
    new Output({ json: false, terminal }).error(error);
    assert.equal(terminal.stdout, "");
    return terminal.stderr;
  };
  assert.equal(words(new UsageError("No such thing")), "gyges: No such thing\n");
  assert.match(words(new TypeError("oops")), /^gyges: oops\n.*please report it/);
  const lost = { phase: "serving", guestLocation: "destination-incomplete", exitCode: EXIT.linkLost } as const;
  assert.match(words(new MigrationError("Link lost", lost)), /Keep the source alive/);
});

Deno.test("exitCodeOf() gives every error its documented code", () => {
  const migration = (exitCode: (typeof EXIT)[keyof typeof EXIT]) =>
    new MigrationError("x", { phase: "x", guestLocation: "unknown", exitCode });
  const codes: [unknown, number][] = [
    [new Error("bug"), 1],
    ["a string", 1],
    [new UsageError("x"), 2],
    [new PreflightError("x", { check: "x", remedy: "x" }), 3],
    [new HandshakeError("x", { field: "x", ours: "x", theirs: "x" }), 4],
    [migration(EXIT.failedBeforeCommit), 10],
    [migration(EXIT.linkLost), 11],
    [migration(EXIT.guestLost), 12],
    [migration(EXIT.interrupted), 130],
    [new InterruptedError("x"), 130],
  ];
  for (const [error, code] of codes) assert.equal(exitCodeOf(error), code);
});

Deno.test("Ctrl-C aborts before the commit point and explains after it", () => {
  const said: string[] = [];
  const state = (side: StateEvent["side"], state: StateEvent["state"]): StateEvent => ({
    type: "state",
    side,
    state,
    detail: "",
  });
  for (const [side, held] of [["source", "serving"], ["source", "paused"], ["destination", "running"]] as const) {
    using interrupts = new Interrupts({ say: (text) => said.push(text), lookWith: "gyges monitor vm1" });
    interrupts.observe(state(side, held));
    interrupts.interrupt();
    assert.equal(interrupts.signal.aborted, false);
    assert.match(said.at(-1) ?? "", /so this goes on .*gyges monitor vm1$/);
    interrupts.observe(state(side, "completed"));
    interrupts.interrupt();
    assert.ok(interrupts.signal.reason instanceof InterruptedError);
  }
  for (const early of ["setup", "precopy", "stopped", "handover"] as const) {
    using interrupts = new Interrupts({ say: () => {}, lookWith: "" });
    interrupts.observe(state("source", early));
    interrupts.interrupt();
    assert.equal(interrupts.signal.aborted, true, early);
  }
});

Deno.test("a terminal that is closed ends what only looks on, and neither a guest nor a move", () => {
  const said: string[] = [];
  const say = (text: string) => void said.push(text);
  using goesOn = new Interrupts({ say, lookWith: "gyges monitor vm1", onHangup: "go on" });
  goesOn.hangUp();
  assert.equal(goesOn.signal.aborted, false);
  assert.match(said.at(-1) ?? "", /goes on without it.*gyges monitor vm1$/);
  using looksOn = new Interrupts({ say, lookWith: "" });
  looksOn.hangUp();
  assert.equal(looksOn.signal.aborted, true);
});

Deno.test("table() lines numbers up to the right", () => {
  assert.equal(table(["NAME", "PAGES"], [["a", "7"], ["long", "123"]]), "NAME  PAGES\na         7\nlong    123");
});
