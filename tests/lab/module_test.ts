/** gyges module in hosts of either kernel: built here for their kernels, loaded, looked at and unloaded there. */
import assert from "node:assert/strict";
import { basename, join } from "node:path";
import type { ModuleStatus } from "../../lib/host/module_status.ts";
import { CACHE, tool } from "./cache.ts";
import { type Lab, type LabHost, labTest } from "./lab.ts";
import { kernelTree, type KernelVersion } from "./packages.ts";

const SHARE = "/run/lab/share";
const LOAD = `gyges module load --cache ${SHARE}`;

/** Has gyges build its module for the kernel of `version`, and puts it where the hosts see it. */
async function build(lab: Lab, version: KernelVersion): Promise<string> {
  const { release, headers } = await kernelTree(version);
  const args = ["module", "build", "--kernel", release, "--headers", headers, "--cache", join(CACHE, "modules")];
  const path = (await tool(join(lab.folder, "share/gyges"), args)).trim();
  await lab.share(path);
  return basename(path);
}

async function status(host: LabHost, code: number): Promise<ModuleStatus> {
  const result = await host.run("gyges module status --json");
  assert.equal(result.code, code, result.stdout + result.stderr);
  return JSON.parse(result.stdout);
}

/** What `command` complains of, having ended with 3. */
async function refusal(host: LabHost, command: string): Promise<string> {
  const { code, stdout, stderr } = await host.run(command);
  assert.deepEqual([code, stdout], [3, ""], stderr);
  return stderr;
}

/** Loads what was built for `kernel`; it is the one that the program carries, and its file system is there. */
async function load(lab: Lab, kernel: KernelVersion): Promise<LabHost> {
  const [host] = lab.hosts;
  assert.ok(host);
  const built = await build(lab, kernel);
  assert.match(built, new RegExp(`^gyges-${kernel.replace(".", "\\.")}\\..*-[0-9a-f]{16}\\.ko$`));
  assert.equal(await host.ask(LOAD), `loaded ${SHARE}/${built}\nmounted gygesfs at /run/gyges/ram\n`);
  const { source_matches, abi_matches, version, carried, mounts } = await status(host, 0);
  assert.deepEqual([source_matches, abi_matches, version, mounts], [true, true, carried.version, ["/run/gyges/ram"]]);
  return host;
}

async function unload(host: LabHost): Promise<void> {
  assert.equal(await host.ask("gyges module unload"), "unmounted /run/gyges/ram\nunloaded gyges\n");
  assert.equal((await host.run("grep '^gyges ' /proc/modules")).code, 1);
}

labTest("gyges builds its module, loads it, tells of it, and unloads it", { kernel: "6.1", hosts: 1 }, async (lab) => {
  await unload(await load(lab, "6.1"));
});

labTest("gyges module refuses what cannot be, and does nothing twice", { kernel: "6.12", hosts: 1 }, async (lab) => {
  const [fresh] = lab.hosts;
  assert.ok(fresh);
  assert.equal((await status(fresh, 3)).loaded, false);
  const other = await build(lab, "6.1");
  assert.match(await refusal(fresh, `gyges module load --file ${SHARE}/${other}`), /for another kernel .*ENOEXEC/);

  const host = await load(lab, "6.12");
  assert.match(await host.ask(LOAD), /^gyges \S+ is loaded\ngygesfs is mounted at \/run\/gyges\/ram\n$/);
  assert.match(await host.ask("gyges doctor"), /^ok +module: gyges \S+ of source [0-9a-f]{16}, gygesfs at/m);
  const user = host.start("exec sleep 600 3>/run/gyges/ram/held");
  await host.ask("until test -e /run/gyges/ram/held; do sleep 0.1; done");
  assert.match(await refusal(host, "gyges module unload"), /it is used by process \d+ \(sleep\): end these first/);
  user.kill("SIGKILL");
  await user.status;
  await unload(host);
});
