/** What `gyges describe` says of a QEMU that somebody else has started, and what cannot move and why. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { builtFiles, run } from "../helpers/binary.ts";
import { qemuBinary } from "./binaries.ts";
import { until } from "../helpers/host.ts";
import { QemuPair } from "./pair.ts";
import { QemuProcess } from "./qemu_process.ts";

const BARE = ["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-machine", "pc", "-m", "64M"];

/** Runs `gyges describe` on a QEMU with `args`; its code and output. */
async function described(args: readonly string[], more: readonly string[] = []) {
  const folder = await Deno.makeTempDir({ prefix: "gyges-describe-" });
  try {
    const second = join(folder, "second.qmp");
    const monitor = ["-qmp", `unix:${second},server=on,wait=off`];
    await using _qemu = await QemuProcess.start(await qemuBinary("7.2"), [...BARE, ...args, ...monitor], folder);
    const [gyges] = builtFiles();
    assert.ok(gyges);
    return await run(gyges.path, ["describe", "--qmp", second, ...more]);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function shared(bytes: string): string[] {
  const object = `memory-backend-file,id=ram0,size=${bytes},mem-path=/dev/shm,share=on`;
  return ["-object", object, "-machine", "memory-backend=ram0"];
}

Deno.test("describe: a guest whose RAM is in a shared file can move", async () => {
  const { code, stdout, stderr } = await described([...shared("64M"), "-drive", "file.driver=null-co,if=none,id=d0"], [
    "--json",
  ]);
  assert.deepEqual([code, stderr], [0, ""]);
  const machine = JSON.parse(stdout);
  assert.equal(machine.type, "machine");
  assert.deepEqual([machine.pager, machine.blockers, machine.vcpus, machine.ram_bytes], ["user", [], 1, 64 << 20]);
  assert.deepEqual([machine.regions.length, machine.regions[0].id, machine.regions[0].shared], [1, "ram0", true]);
  assert.match(machine.regions[0].file, /^\/dev\/shm\/qemu_back_mem\.ram0\./);
  assert.match(machine.machine_type, /^pc-i440fx-7\.2$/);
  assert.ok(machine.command.includes("-nodefaults"));
});

Deno.test("describe: a guest whose RAM is private moves by QEMU's own post-copy, and why is said", async () => {
  const anonymous = await described([]);
  assert.equal(anonymous.code, 0);
  const why = /pager +native, QEMU's own post-copy: memory backend "pc\.ram" is not a memory-backend-file/;
  assert.match(anonymous.stdout, why);
  assert.match(anonymous.stdout, /This guest can move\./);
});

Deno.test("describe: a migration blocker is named in QEMU's own words, with exit code 3", async () => {
  const blocked = await described([
    ...shared("64M"),
    "-device",
    "ivshmem-plain,memdev=m,master=off",
    "-object",
    "memory-backend-file,id=m,size=2M,mem-path=/dev/shm,share=on",
  ]);
  assert.equal(blocked.code, 3, blocked.stdout);
  assert.match(blocked.stdout, /IN THE WAY +.*ivshmem/);
});

Deno.test("describe: a QEMU that waits for a guest has none to move", async () => {
  const waiting = await described([...shared("64M"), "-incoming", "defer"]);
  assert.equal(waiting.code, 3, waiting.stdout);
  assert.match(waiting.stdout, /IN THE WAY +it is "inmigrate": it waits for a guest/);
});

Deno.test("describe: what it writes of a QEMU without privilege is enough for a destination", async () => {
  await using pair = await QemuPair.open({ workingSet: "32M", withDisk: true, qemu: "10.0", asNobody: "changes" });
  const home = await pair.start();
  home.process.signal("SIGKILL");
  await home.process.ended();
  const qmp = pair.host.monitorOf(home.name);
  const [gyges] = builtFiles();
  assert.ok(gyges);
  const { stdout } = await run(gyges.path, ["describe", "--qmp", qmp, "--json"]);
  const file = join(pair.folder, "vm.json");
  await Deno.writeTextFile(file, stdout);
  const to = pair.host.start(["prepare", "there", "--like", file]);
  const { ticket } = await to.waitFor("ticket");
  await pair.host.start(["migrate", ticket, "--qmp", qmp, "--mode", "full"]).endedWith(0);
  // Its console is the same file.
  await pair.proved();
  await until(() => !pair.hasQemu(home.name), () => "the source's QEMU has ended");
  assert.ok(pair.hasQemu("there"));
});
