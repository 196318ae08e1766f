/** gyges module as far as it goes without loading anything: what it says where something is missing, and what it installs. */
import assert from "node:assert/strict";
import { moduleSource } from "../../lib/host/module_source.ts";
import { moduleStatus } from "../../lib/host/module_status.ts";
import { builtFiles, run, type RunResult } from "../helpers/binary.ts";

/** A kernel that nobody has. */
const KERNEL = "6.12.0-nobody";

for (const { form, path } of builtFiles()) {
  const test = (name: string, body: (folder: string, gyges: (line: string) => Promise<RunResult>) => Promise<void>) =>
    Deno.test(`${form}: ${name}`, async () => {
      const folder = Deno.makeTempDirSync({ prefix: "gyges-module-" });
      try {
        await body(folder, (line) => run(path, line.split(" ")));
      } finally {
        Deno.removeSync(folder, { recursive: true });
      }
    });

  test("module status tells what is loaded, and its exit code says whether anything is", async (_folder, gyges) => {
    const { loaded } = moduleStatus();
    const json = await gyges("module status --json");
    assert.deepEqual([json.code, json.stderr], [loaded ? 0 : 3, ""]);
    const { hash, version, abi } = moduleSource();
    assert.partialDeepStrictEqual(JSON.parse(json.stdout), {
      type: "module",
      kernel: Deno.osRelease(),
      loaded,
      carried: { version, source: hash, abi },
    });
    const text = await gyges("module status");
    assert.deepEqual([text.code, text.stderr], [json.code, ""]);
    assert.match(text.stdout, loaded ? /loaded, \d+ references/ : new RegExp(`not loaded.* source ${hash}`));
  });

  test("module build names the package of headers that are missing, and leaves nothing", async (folder, gyges) => {
    const { code, stdout, stderr } = await gyges(`module build --kernel ${KERNEL} --cache ${folder}/cache`);
    assert.deepEqual([code, stdout], [3, ""]);
    assert.match(stderr, new RegExp(`headers are not at /lib/modules/${KERNEL}/build: .*${KERNEL}`));
    assert.deepEqual([...Deno.readDirSync(folder)], []);
    const json = await gyges(`module build --kernel ${KERNEL} --json`);
    const error = JSON.parse(json.stdout);
    assert.deepEqual([json.code, error.type, error.check], [3, "error", "kernel-headers"]);
  });

  test("module build refuses headers of another kernel, and a kernel that is a path", async (folder, gyges) => {
    Deno.mkdirSync(`${folder}/headers/include/generated`, { recursive: true });
    Deno.writeTextFileSync(`${folder}/headers/Makefile`, "");
    Deno.writeTextFileSync(`${folder}/headers/include/generated/utsrelease.h`, '#define UTS_RELEASE "6.1.0-other"\n');
    const other = await gyges(`module build --kernel ${KERNEL} --headers ${folder}/headers --cache ${folder}/cache`);
    assert.equal(other.code, 3, other.stderr);
    assert.match(other.stderr, /are of 6\.1\.0-other: .*--kernel 6\.1\.0-other/);
    assert.equal((await gyges(`module build --kernel ../../tmp --cache ${folder}/cache`)).code, 2);
  });

  test("module build names the package of a compiler that is missing", async (folder, gyges) => {
    Deno.mkdirSync(`${folder}/headers`);
    Deno.writeTextFileSync(`${folder}/headers/Makefile`, "");
    Deno.writeTextFileSync(`${folder}/headers/.kernelvariables`, "CC = $(CROSS_COMPILE)gcc-3\n");
    const { code, stderr } = await gyges(
      `module build --kernel ${KERNEL} --headers ${folder}/headers --cache ${folder}/cache`,
    );
    assert.equal(code, 3, stderr);
    assert.match(stderr, /there is no gcc-3: run: .* gcc-3/);
  });

  test("module build shows what the compiler said, keeps its log, and nothing else", async (folder, gyges) => {
    Deno.mkdirSync(`${folder}/headers`);
    Deno.writeTextFileSync(`${folder}/headers/Makefile`, "modules:\n\t@echo fs.c:1: error: spoiled; exit 1\n");
    const { code, stderr } = await gyges(
      `module build --kernel ${KERNEL} --headers ${folder}/headers --cache ${folder}/cache`,
    );
    assert.equal(code, 3, stderr);
    assert.match(stderr, /does not build for Linux 6\.12\.0-nobody: fs\.c:1: error: spoiled; /);
    assert.deepEqual([...Deno.readDirSync(`${folder}/cache`)].map(({ name }) => name), [`build-${KERNEL}.log`]);
  });

  test("module load refuses a file that is no module", async (folder, gyges) => {
    const { code, stderr } = await gyges(`module load --file ${folder}/gyges.ko`);
    assert.equal(code, 3, stderr);
    assert.match(stderr, Deno.uid() === 0 ? /there is no such file|Cannot load/ : /as root run: gyges module load/);
  });

  test("module install writes a tree for DKMS and a mount unit, once, and says what is next", async (folder, gyges) => {
    const first = await gyges(`module install --root ${folder}`);
    assert.deepEqual([first.code, first.stderr], [0, ""]);
    assert.match(first.stdout, new RegExp(`^written +${folder}/usr/src/gyges-.*/Makefile$`, "m"));
    assert.match(first.stdout, /Next:\n.*apt-get install -y dkms/);
    const unit = Deno.readTextFileSync(`${folder}/etc/systemd/system/run-gyges-ram.mount`);
    assert.match(unit, /^Where=\/run\/gyges\/ram\nType=gygesfs$/m);
    const again = await gyges(`module install --root ${folder} --json`);
    assert.deepEqual([again.code, again.stderr], [0, ""]);
    const { type, files } = JSON.parse(again.stdout);
    assert.equal(type, "module_installed");
    assert.ok(files.length > 10 && files.every(({ change }: { change: string }) => change === "unchanged"));
  });
}
