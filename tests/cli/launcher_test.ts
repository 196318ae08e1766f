/** The built file by itself: what it unpacks, what it refuses to execute, what it needs. */
import assert from "node:assert/strict";
import { builtFiles, run, type RunResult } from "../helpers/binary.ts";

const VERSION = /^gyges \d+\.\d+\.\d+ \((launcher|compiled)\)\n$/;
const MAX_BYTES = 60_000_000;
/** A user without a home or any file; also unlikely to be in use, because its fallback directory is removed. */
const STRANGER = 64_123;
const STRANGER_FALLBACK = `/var/tmp/gyges-${STRANGER}`;

const isRoot = Deno.uid() === 0;
const launcher = builtFiles().find((file) => file.form === "launcher")?.path;

/** A test of what only root can set up. */
function rootTest(name: string, body: () => Promise<void>): void {
  if (!isRoot) console.log(`skip: ${name}: needs root to act as other users`);
  Deno.test({ name, ignore: !isRoot, fn: body });
}

/** A directory with a copy of the launcher alone in it, and an empty cache home. Everybody may look in. */
class Place {
  readonly path = Deno.makeTempDirSync({ prefix: "gyges-launcher-" });
  readonly binary = `${this.path}/gyges`;
  readonly cache = `${this.path}/cache`;
  readonly store = `${this.cache}/gyges`;

  constructor() {
    if (launcher === undefined) throw new Error("There is no launcher form: run ./build.sh build");
    Deno.chmodSync(this.path, 0o755);
    Deno.copyFileSync(launcher, this.binary);
    Deno.chmodSync(this.binary, 0o755);
    Deno.mkdirSync(this.cache, { mode: 0o700 });
  }

  version(env: Record<string, string> = {}, uid?: number): Promise<RunResult> {
    const options = { env: { XDG_CACHE_HOME: this.cache, ...env }, cwd: "/" };
    return run(this.binary, ["--version"], uid === undefined ? options : { ...options, uid });
  }

  /** The one directory in the store that holds `name`. */
  packWith(name: string): string {
    for (const entry of Deno.readDirSync(this.store)) {
      const pack = `${this.store}/${entry.name}`;
      if ([...Deno.readDirSync(pack)].some((file) => file.name === name)) return pack;
    }
    throw new Error(`${name} was not unpacked`);
  }

  entries(): string[] {
    return [...Deno.readDirSync(this.store)].map((entry) => entry.name).sort();
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.path, { recursive: true });
  }
}

function assertRuns(result: RunResult): void {
  assert.deepEqual({ code: result.code, stderr: result.stderr }, { code: 0, stderr: "" });
  assert.match(result.stdout, VERSION);
}

function assertRefused(result: RunResult, words: RegExp): void {
  assert.equal(result.code, 3, result.stderr);
  assert.equal(result.stdout, "");
  assert.match(result.stderr, words);
  assert.match(result.stderr, /XDG_CACHE_HOME/, "the message names a remedy");
}

function inode(path: string): number | null {
  return Deno.lstatSync(path).ino;
}

async function mountTmpfs(path: string, options: string): Promise<Disposable> {
  const mounted = await run("mount", ["-t", "tmpfs", "-o", options, "tmpfs", path]);
  assert.equal(mounted.code, 0, mounted.stderr);
  return {
    [Symbol.dispose]: () => {
      new Deno.Command("umount", { args: ["--lazy", path] }).outputSync();
    },
  };
}

function strangerFallback(): Disposable {
  const remove = () => {
    try {
      Deno.removeSync(STRANGER_FALLBACK, { recursive: true });
    } catch (cause) {
      if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    }
  };
  remove();
  return { [Symbol.dispose]: remove };
}

for (const { form, path } of builtFiles()) {
  Deno.test(`${form}: --version names version and form`, async () => {
    const result = await run(path, ["--version"]);
    assertRuns(result);
    assert.ok(result.stdout.includes(`(${form})`), result.stdout);
  });

  Deno.test(`${form}: at most 60 MB`, () => {
    assert.ok(Deno.statSync(path).size <= MAX_BYTES, `${Deno.statSync(path).size} bytes`);
  });

  Deno.test(`${form}: copied alone, it runs with an empty home and no PATH`, async () => {
    const home = Deno.makeTempDirSync({ prefix: "gyges-home-" });
    try {
      Deno.copyFileSync(path, `${home}/gyges`);
      assertRuns(await run(`${home}/gyges`, ["--version"], { env: { HOME: home }, cwd: home }));
    } finally {
      Deno.removeSync(home, { recursive: true });
    }
  });
}

Deno.test("exit codes of the program pass through", async () => {
  using place = new Place();
  const result = await run(place.binary, ["no-such-command"], { env: { XDG_CACHE_HOME: place.cache } });
  assert.equal(result.code, 2, result.stderr);
});

Deno.test("a warm start unpacks nothing; this is its time", async () => {
  using place = new Place();
  assertRuns(await place.version());
  const before = inode(`${place.packWith("deno")}/deno`);
  const times: number[] = [];
  for (let i = 0; i < 10; i++) {
    const start = performance.now();
    assertRuns(await place.version());
    times.push(performance.now() - start);
  }
  const deno: number[] = [];
  for (let i = 0; i < 10; i++) {
    const start = performance.now();
    await run(Deno.execPath(), ["eval", "0"]);
    deno.push(performance.now() - start);
  }
  const median = (all: number[]) => all.sort((a, b) => a - b)[5]?.toFixed(0);
  console.log(`gyges --version: ${median(times)} ms, plain Deno: ${median(deno)} ms (medians of 10)`);
  assert.equal(inode(`${place.packWith("deno")}/deno`), before);
});

Deno.test("first starts at once do not collide and leave one copy", async () => {
  using place = new Place();
  const results = await Promise.all([1, 2, 3, 4].map(() => place.version()));
  results.forEach(assertRuns);
  assert.equal(place.entries().length, 2, place.entries().join(" "));
});

const DAMAGES: [string, (pack: { deno: string; app: string }) => void][] = [
  ["truncated", ({ deno }) => {
    Deno.chmodSync(`${deno}/deno`, 0o700);
    Deno.truncateSync(`${deno}/deno`, 1000);
    Deno.chmodSync(`${deno}/deno`, 0o500);
  }],
  ["longer", ({ app }) => {
    Deno.chmodSync(`${app}/main.js`, 0o600);
    Deno.writeTextFileSync(`${app}/main.js`, "//", { append: true });
    Deno.chmodSync(`${app}/main.js`, 0o400);
  }],
  ["changed but of the same size", ({ app }) => {
    const size = Deno.statSync(`${app}/main.js`).size;
    Deno.chmodSync(`${app}/main.js`, 0o600);
    Deno.writeTextFileSync(`${app}/main.js`, "x".repeat(size));
    Deno.chmodSync(`${app}/main.js`, 0o400);
  }],
  ["gone", ({ app }) => Deno.removeSync(`${app}/libgyges.so`)],
  ["writable by others", ({ deno }) => Deno.chmodSync(`${deno}/deno`, 0o522)],
  ["a link", ({ deno }) => {
    Deno.removeSync(`${deno}/deno`);
    Deno.symlinkSync("/bin/false", `${deno}/deno`);
  }],
  ["in a directory that others may enter", ({ deno }) => Deno.chmodSync(deno, 0o755)],
  ["behind a linked directory", ({ deno }) => {
    Deno.renameSync(deno, `${deno}-moved`);
    Deno.symlinkSync(`${deno}-moved`, deno);
  }],
  ["without Deno's cache directory", ({ app }) => Deno.removeSync(`${app}/cache`, { recursive: true })],
];

for (const [damage, inflict] of DAMAGES) {
  Deno.test(`a file that is ${damage} is unpacked again, not executed`, async () => {
    using place = new Place();
    assertRuns(await place.version());
    const deno = place.packWith("deno"), app = place.packWith("main.js");
    const before = [inode(deno), inode(app)];
    inflict({ deno, app });
    assertRuns(await place.version());
    assert.notDeepEqual([inode(deno), inode(app)], before, "one pack was made anew");
    assertRuns(await place.version());
  });
}

rootTest("a file of another user is unpacked again, not executed", async () => {
  using place = new Place();
  assertRuns(await place.version());
  const deno = place.packWith("deno");
  Deno.chownSync(`${deno}/deno`, 65534, 65534);
  assertRuns(await place.version());
  assert.equal(Deno.lstatSync(`${deno}/deno`).uid, 0);
});

Deno.test("a store that others may enter is refused", async () => {
  using place = new Place();
  assertRuns(await place.version());
  Deno.chmodSync(place.store, 0o755);
  assertRefused(await place.version(), /refused: .* mode 0755/);
  Deno.chmodSync(place.store, 0o700);
  assertRuns(await place.version());
});

Deno.test("a store that is a link is refused", async () => {
  using place = new Place();
  Deno.mkdirSync(`${place.path}/elsewhere`, { mode: 0o700 });
  Deno.symlinkSync(`${place.path}/elsewhere`, place.store);
  assertRefused(await place.version(), /refused: .* a link/);
  assert.deepEqual([...Deno.readDirSync(`${place.path}/elsewhere`)], []);
});

rootTest("a store of another user is refused", async () => {
  using place = new Place();
  assertRuns(await place.version());
  Deno.chownSync(place.store, 65534, 65534);
  assertRefused(await place.version(), /refused: .* uid 65534, not to uid 0/);
});

Deno.test("a refusal with --json is one object on stdout", async () => {
  using place = new Place();
  Deno.mkdirSync(place.store, { mode: 0o700 });
  Deno.chmodSync(place.store, 0o777);
  const result = await run(place.binary, ["vm", "list", "--json"], { env: { XDG_CACHE_HOME: place.cache } });
  assert.equal(result.code, 3);
  const event: unknown = JSON.parse(result.stdout);
  assert.partialDeepStrictEqual(event, { type: "error", code: 3, name: "PreflightError" });
});

rootTest("without a home, or one that cannot be used, /var/tmp/gyges-UID serves", async () => {
  using place = new Place();
  const shared = `${place.path}/shared`;
  Deno.mkdirSync(shared);
  Deno.chmodSync(shared, 0o777);
  const homes: [string, Record<string, string>][] = [
    ["unset", {}],
    ["empty", { HOME: "", XDG_CACHE_HOME: "" }],
    ["relative", { HOME: "relative", XDG_CACHE_HOME: "" }],
    ["missing", { HOME: "/nonexistent", XDG_CACHE_HOME: "" }],
    ["not writable", { HOME: place.path, XDG_CACHE_HOME: "" }],
    ["one that others can change", { XDG_CACHE_HOME: shared }],
  ];
  for (const [what, env] of homes) {
    using _fallback = strangerFallback();
    const clean = what === "unset" ? { env: {}, cwd: "/", uid: STRANGER } : { env, cwd: "/", uid: STRANGER };
    assertRuns(await run(place.binary, ["--version"], clean));
    const stat = Deno.lstatSync(STRANGER_FALLBACK);
    assert.deepEqual([stat.uid, (stat.mode ?? 0) & 0o777], [STRANGER, 0o700], `home ${what}`);
  }
});

rootTest("a trap set at /var/tmp/gyges-UID is refused", async () => {
  using place = new Place();
  for (const [mode, words] of [[0o755, /refused: .* uid 0, not to uid 64123/], [0o700, /refused: /]] as const) {
    using _fallback = strangerFallback();
    Deno.mkdirSync(STRANGER_FALLBACK, { mode });
    assertRefused(await run(place.binary, ["--version"], { env: {}, cwd: "/", uid: STRANGER }), words);
  }
});

rootTest("a home on a noexec file system is passed over", async () => {
  using place = new Place();
  using _fallback = strangerFallback();
  using _mount = await mountTmpfs(place.cache, `noexec,size=200m,uid=${STRANGER},mode=0700`);
  assertRuns(await place.version({}, STRANGER));
  assert.ok(Deno.lstatSync(STRANGER_FALLBACK).isDirectory);
});

rootTest("a full disk leaves nothing and is explained", async () => {
  using place = new Place();
  using _mount = await mountTmpfs(place.cache, "size=20m,mode=0700");
  assertRefused(await place.version(), new RegExp(`no room in ${place.store}: unpacking needs \\d{8,} bytes`));
  assert.deepEqual(place.entries(), []);
});

Deno.test("what a killed unpacking left, and versions out of use, are removed; a version in use stays", async () => {
  using place = new Place();
  const [unused, inUse] = ["a".repeat(64), "b".repeat(64)];
  for (const name of [".new-12345", unused, inUse]) {
    Deno.mkdirSync(`${place.store}/${name}`, { recursive: true, mode: 0o700 });
    Deno.writeTextFileSync(`${place.store}/${name}/deno`, "half");
  }
  Deno.chmodSync(place.store, 0o700);
  const holder = new Deno.Command("flock", {
    args: ["--no-fork", "--shared", `${place.store}/${inUse}`, "sleep", "60"],
  }).spawn();
  try {
    while ((await run("flock", ["--nonblock", `${place.store}/${inUse}`, "true"])).code === 0);
    assertRuns(await place.version());
  } finally {
    holder.kill();
    await holder.status;
  }
  const entries = place.entries();
  assert.equal(entries.length, 3, entries.join(" "));
  assert.ok(entries.includes(inUse));
});

Deno.test("a damaged gyges file says so and executes nothing", async () => {
  using place = new Place();
  const file = Deno.openSync(place.binary, { read: true, write: true });
  file.seekSync(20_000_000, Deno.SeekMode.Start);
  file.writeSync(new Uint8Array(4096));
  file.close();
  const result = await place.version();
  assert.equal(result.code, 3, result.stderr);
  assert.match(result.stderr, /damaged .*copy it again/);
  assert.deepEqual(place.entries(), []);
});

Deno.test("variables and files meant for other Deno programs change nothing", async () => {
  using place = new Place();
  Deno.writeTextFileSync(`${place.cache}/package.json`, "{ this is not JSON");
  Deno.writeTextFileSync(`${place.cache}/deno.json`, "{ this is not JSON");
  const env = { DENO_DIR: "/nonexistent", DENO_V8_FLAGS: "--no-such-flag", NODE_OPTIONS: "--no-such-option" };
  assertRuns(await place.version(env));
});

Deno.test("a cache path with blanks, commas, quotes and braces is no trouble", async () => {
  using place = new Place();
  const cache = `${place.path}/a, "b" {self}`;
  Deno.mkdirSync(cache, { mode: 0o700 });
  assertRuns(await place.version({ XDG_CACHE_HOME: cache }));
  assert.ok(Deno.lstatSync(`${cache}/gyges`).isDirectory);
});

Deno.test("a comma in its own path is refused, with the remedy", async () => {
  using place = new Place();
  Deno.renameSync(place.binary, `${place.path}/gy,ges`);
  const result = await run(`${place.path}/gy,ges`, ["--version"], { env: { XDG_CACHE_HOME: place.cache } });
  assert.equal(result.code, 3);
  assert.match(result.stderr, /comma .*move this file/);
});
