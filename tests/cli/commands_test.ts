/** The command line of the built file, as far as it goes without a migration; exit codes one by one. */
import assert from "node:assert/strict";
import { COMMANDS } from "../../cli/facts.ts";
import { ControlServer, type Handlers } from "../../lib/control/server.ts";
import { RuntimeDir } from "../../lib/control/runtime_dir.ts";
import {
  EXIT,
  type ExitCode,
  type GuestLocation,
  HandshakeError,
  MigrationError,
  PreflightError,
  UsageError,
} from "../../lib/errors.ts";
import { builtFiles, run, type RunResult } from "../helpers/binary.ts";
import { needsKvm } from "../helpers/kvm.ts";

/** A runtime directory of the test's own, and the built file in it. */
class Bench implements Disposable {
  readonly base = Deno.makeTempDirSync({ prefix: "gyges-cli-" });
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
  }

  /** Runs the words of `line`. */
  gyges(line: string, env: Record<string, string> = {}): Promise<RunResult> {
    const inherited = Deno.env.toObject();
    return run(this.#path, line.split(" ").filter((word) => word !== ""), {
      env: { ...inherited, GYGES_RUNTIME_DIR: this.base, ...env },
    });
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.base, { recursive: true });
  }
}

/** The last line of stdout, which must be an error object. */
function errorOf(result: RunResult): Record<string, unknown> {
  const last = JSON.parse(result.stdout.trimEnd().split("\n").at(-1) ?? "");
  assert.equal(last.type, "error");
  assert.equal(last.code, result.code);
  return last;
}

async function sh(script: string, ...args: string[]): Promise<{ code: number; text: string }> {
  const { code, stdout, stderr } = await new Deno.Command("bash", { args: ["-c", script, ...args] }).output();
  return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

for (const { form, path } of builtFiles()) {
  const declare = (as: typeof needsKvm) => (name: string, body: (bench: Bench) => Promise<void>) =>
    as(`${form}: ${name}`, async () => {
      using bench = new Bench(path);
      await body(bench);
    });
  const test = declare(Deno.test);
  /** `vm start` looks for KVM before all else. */
  const kvmTest = declare(needsKvm);

  test("help of every command is on stdout with code 0 and touches nothing", async (bench) => {
    for (const words of [[], ...COMMANDS]) {
      const { code, stdout, stderr } = await bench.gyges([...words, "--help"].join(" "), { GYGES_LIB: "/nowhere" });
      assert.deepEqual([code, stderr], [0, ""]);
      assert.match(stdout, new RegExp(`Usage: gyges ${words.join(" ")}`));
    }
    assert.deepEqual([...Deno.readDirSync(bench.base)], []);
  });

  test("a command line that cannot be right ends with 2, words on stderr only", async (bench) => {
    for (const line of ["", "vm", "nonsense", "vm start", "vm start vm1 --ram 1", "doctor --loud", "vm stop ../x"]) {
      const { code, stdout, stderr } = await bench.gyges(line);
      assert.deepEqual([code, stdout], [2, ""], line);
      assert.match(stderr, /^gyges: .+\n$/, line);
    }
  });

  test("with --json errors are one object on stdout and stderr is silent", async (bench) => {
    for (const line of ["vm start --json", "vm status nobody --json", "migrate x --vm vm1 --json"]) {
      const result = await bench.gyges(line);
      assert.deepEqual([result.code, result.stderr], [2, ""], line);
      assert.equal(typeof errorOf(result).message, "string");
    }
  });

  test("a process that is not there, died, or does not listen is told apart", async (bench) => {
    const absent = await bench.gyges("vm status nobody");
    assert.deepEqual([absent.code, absent.stdout], [2, ""]);
    assert.match(absent.stderr, /no process of that name runs/);

    Deno.mkdirSync(`${bench.base}/dead`, { mode: 0o700 });
    Deno.writeTextFileSync(`${bench.base}/dead/owner`, '{"pid":1}\n');
    const stale = await bench.gyges("vm status dead");
    assert.equal(stale.code, 2);
    assert.match(stale.stderr, /its process 1 died/);

    using _mute = await RuntimeDir.claim("mute", bench.base);
    const silent = await bench.gyges("vm status mute");
    assert.equal(silent.code, 1);
    assert.match(silent.stderr, new RegExp(`process ${Deno.pid} does not listen`));
  });

  test("vm list passes over the dead and shows nothing as an empty list", async (bench) => {
    Deno.mkdirSync(`${bench.base}/dead`, { mode: 0o700 });
    Deno.writeTextFileSync(`${bench.base}/dead/owner`, '{"pid":1}\n');
    const json = await bench.gyges("vm list --json");
    assert.deepEqual([json.code, json.stdout, json.stderr], [0, "", ""]);
    const text = await bench.gyges("vm list");
    assert.match(text.stdout, /No guest is held here/);
  });

  kvmTest("a name in use is refused with its owner's pid, detached or not", async (bench) => {
    using claimed = await RuntimeDir.claim("vm1", bench.base);
    await using _server = new ControlServer(claimed.socketPath, new Map());
    for (const detach of ["", "--detach"]) {
      const result = await bench.gyges(`vm start vm1 --ram 16MiB ${detach} --json`);
      assert.equal(result.code, 2, result.stdout);
      assert.match(String(errorOf(result).message), new RegExp(`process ${Deno.pid} has it`));
    }
  });

  test("every error of a running process ends the command with its own code", async (bench) => {
    const migration = (exitCode: ExitCode, guestLocation: GuestLocation) =>
      new MigrationError("It failed", { phase: "serving", guestLocation, exitCode });
    const errors: [Error, number, GuestLocation][] = [
      [new TypeError("bug"), EXIT.internal, "unknown"],
      [new UsageError("No"), EXIT.usage, "unknown"],
      [new PreflightError("No KVM", { check: "kvm", remedy: "modprobe kvm" }), EXIT.hostUnable, "unknown"],
      [new HandshakeError("Sizes", { field: "ram", ours: "1", theirs: "2" }), EXIT.peerRefused, "source"],
      [migration(EXIT.failedBeforeCommit, "source"), EXIT.failedBeforeCommit, "source"],
      [migration(EXIT.linkLost, "destination-incomplete"), EXIT.linkLost, "destination-incomplete"],
      [migration(EXIT.guestLost, "lost"), EXIT.guestLost, "lost"],
      [migration(EXIT.interrupted, "source"), EXIT.interrupted, "source"],
    ];
    let thrown = new Error();
    using claimed = await RuntimeDir.claim("vm1", bench.base);
    const handlers: Handlers = new Map([["cancel", () => Promise.reject(thrown)]]);
    await using _server = new ControlServer(claimed.socketPath, handlers);
    for (const [error, code, location] of errors) {
      thrown = error;
      const json = await bench.gyges("cancel vm1 --json");
      assert.deepEqual([json.code, errorOf(json).guest_location, json.stderr], [code, location, ""]);
      const text = await bench.gyges("cancel vm1");
      assert.deepEqual([text.code, text.stdout], [code, ""]);
      assert.ok(text.stderr.startsWith(`gyges: ${error.message}`), text.stderr);
    }
  });

  kvmTest("a runtime directory that others can enter is refused with 3 and the remedy", async (bench) => {
    Deno.chmodSync(bench.base, 0o755);
    const result = await bench.gyges("vm start vm1 --ram 16MiB --json");
    assert.equal(result.code, 3, result.stdout);
    const { check, remedy } = errorOf(result);
    assert.deepEqual([check, remedy], ["runtime-directory", `run: chmod 0700 ${bench.base}`]);
    const doctor = await bench.gyges("doctor");
    assert.equal(doctor.code, 3);
    assert.match(doctor.stdout, /FAIL {2}runtime-directory/);
  });

  test("doctor finds this host fit, a check a line, and leaves nothing behind", async (bench) => {
    const result = await bench.gyges("doctor --json");
    const checks = result.stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
    const failed = checks.filter((check) => check.status === "fail");
    assert.equal(result.code, failed.length === 0 ? 0 : 3);
    for (const check of checks) {
      assert.deepEqual(Object.keys(check), ["type", "name", "status", "found", "needed", "remedy"]);
      assert.equal(check.remedy === null, check.status === "ok", check.name);
    }
    const names =
      "kernel kvm kvm-capabilities kvm-extras memfd userfaultfd tls locked-memory memory runtime-directory " +
      "rdma-libraries rdma-device kernel-headers module";
    // One a device, where there is one on Ethernet.
    assert.deepEqual(checks.map((check) => check.name).filter((name) => name !== "rdma-mtu"), names.split(" "));
    assert.deepEqual([...Deno.readDirSync(bench.base)], []);
  });

  test("completion scripts load, and bash completes with the program itself", async (bench) => {
    const script = `${bench.base}/completion.bash`;
    const { code, stdout } = await bench.gyges("completion bash");
    assert.equal(code, 0);
    Deno.writeTextFileSync(script, stdout);
    assert.deepEqual(await sh('bash -n "$0"', script), { code: 0, text: "" });
    const complete = 'PATH=$1:$PATH; source "$0"; COMP_WORDS=(gyges vm sta); COMP_CWORD=2; COMP_LINE="gyges vm sta"; ' +
      'COMP_POINT=12; "$(complete -p gyges | sed "s/.*-F \\([^ ]*\\).*/\\1/")"; printf "%s\\n" "${COMPREPLY[@]}"';
    Deno.symlinkSync(path, `${bench.base}/gyges`);
    const offered = await sh(complete, script, bench.base);
    assert.deepEqual(offered.text.split(/\s+/).filter((word) => word !== "").sort(), ["start", "status"]);
    for (const shell of ["zsh", "fish"]) {
      const other = await bench.gyges(`completion ${shell}`);
      assert.deepEqual([other.code, other.stderr], [0, ""]);
      assert.match(other.stdout, /gyges/);
    }
  });

  test("man writes a page for every command that man(1) can format", async (bench) => {
    const directory = `${bench.base}/man1`;
    assert.equal((await bench.gyges(`man ${directory}`)).code, 0);
    const pages = [...Deno.readDirSync(directory)].map((entry) => entry.name).sort();
    const expected = ["gyges.1", ...COMMANDS.map((words) => `gyges-${words.join("-")}.1`)];
    assert.deepEqual(pages, expected.sort());
    const formatted = await sh('command -v groff >/dev/null || exit 77; groff -man -Tascii -ww -z "$0"/*.1', directory);
    if (formatted.code === 77) console.log("skip: formatting of man pages: there is no groff here");
    else assert.deepEqual(formatted, { code: 0, text: "" });
  });

  test("a reader that goes away does not make an error", async () => {
    const { code, text } = await sh('"$0" --help | head -1; echo "${PIPESTATUS[0]}"', path);
    assert.equal(code, 0);
    assert.match(text, /\n0\n$/);
  });
}
