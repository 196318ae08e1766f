/** The lab itself: two hosts of either kernel, their network, soft-RoCE and KVM, and that trouble in them is seen. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { until } from "../helpers/host.ts";
import { exists, tool } from "./cache.ts";
import { isImpossible, troubleIn } from "./kernel_log.ts";
import { KERNELS, Lab, type LabHost, labTest, runInLab } from "./lab.ts";
import { kernelTree } from "./packages.ts";

const BOOT_LIMIT_MS = 60_000;
/** Enough for reads and writes that a page-sized packet does not hold. */
const RPING = "-C 20 -S 12000 -V";

async function proveCommands(host: LabHost): Promise<void> {
  assert.deepEqual(await host.run("echo out; echo err >&2; exit 7"), { code: 7, stdout: "out\n", stderr: "err\n" });
  assert.equal((await host.run("kill -9 $$")).code, 137);
  const { stdout } = await host.run("yes | head -c 1000000");
  assert.equal(stdout.length, 1_000_000);
  const file = host.file("/tmp/it's here");
  await file.write("x".repeat(300_000));
  assert.equal((await file.read()).length, 300_000);
  await assert.rejects(host.run("echo before; sleep 60", { timeoutMs: 1_000 }), /not done after 1000 ms: before/);
  const background = host.start("echo started; sleep 60");
  const reader = background.stdout.getReader();
  assert.equal(new TextDecoder().decode((await reader.read()).value), "started\n");
  background.kill("SIGTERM");
  assert.equal((await background.status).code, 143);
  await reader.cancel();
}

/** The server compares what it READ with what the client WRITEs back. */
async function proveRdma(lab: Lab): Promise<void> {
  const [server, client] = [lab.host(1), lab.host(2)];
  assert.match(await server.ask("ibv_devinfo -d rxe0"), /active_mtu:\s+4096/);
  const serving = server.run(`timeout 50 rping -s -a ${server.address} ${RPING}`);
  const asking = `rping -c -a ${server.address} ${RPING} -v`;
  // A server that is not up yet refuses.
  const said = await client.ask(`for i in 1 2 3 4 5 6 7 8 9; do timeout 40 ${asking} && exit; sleep 0.3; done; exit 1`);
  assert.equal(said.match(/^ping data: /gm)?.length, 20, said);
  const { code, stderr } = await serving;
  assert.deepEqual([code, stderr.replace(/.*DISCONNECT EVENT.*\n|.*wait for RDMA_READ_ADV.*\n/g, "")], [0, ""]);
}

async function proveDoctor(host: LabHost): Promise<void> {
  const said = await host.ask("gyges doctor", { timeoutMs: 120_000 });
  for (const check of ["kvm", "kvm-extras", "userfaultfd", "tls", "locked-memory", "rdma-libraries"]) {
    assert.match(said, new RegExp(`^ok +${check}:`, "m"));
  }
  assert.match(said, /^ok +rdma-device: rxe0 ACTIVE$/m);
  assert.match(said, /^ok +rdma-mtu: rxe0 is on eth0, MTU 9000$/m);
  assert.match(said, /^warn +module: not loaded\n.*\n +mend it: as root run: gyges module load$/m);
}

for (const kernel of KERNELS) {
  labTest(
    "two hosts run commands, reach each other by RDMA, and can hold guests",
    { kernel, rdma: true },
    async (lab) => {
      console.log(`lab: two hosts of ${kernel} up after ${(lab.bootMs / 1000).toFixed(1)} s`);
      assert.ok(lab.bootMs < BOOT_LIMIT_MS);
      for (const host of lab.hosts) {
        assert.match(await host.ask("uname -r"), new RegExp(`^${kernel.replace(".", "\\.")}\\.`));
        assert.equal(await host.ask("cat /sys/class/net/eth0/mtu"), "9000\n");
        assert.match(await host.ask("rdma link show"), /rxe0\/1 state ACTIVE/);
        await proveCommands(host);
      }
      await proveRdma(lab);
      await Promise.all(lab.hosts.map(proveDoctor));
    },
  );
}

labTest("a cut link carries nothing until it is healed", { kernel: "6.1" }, async (lab) => {
  const ping = `busybox ping -c 1 -W 2 ${lab.host(2).address}`;
  await lab.host(1).ask(ping);
  await lab.cut();
  assert.notEqual((await lab.host(1).run(ping)).code, 0);
  await lab.heal();
  await lab.meet();
  await lab.kill(lab.host(2));
  assert.notEqual((await lab.host(1).run(ping)).code, 0);
  assert.equal((await lab.host(2).run("true")).code, 137);
});

Deno.test("a module from the build machine is loaded into each host", async () => {
  const { path } = await kernelTree("6.1");
  const module = (await tool("find", [`${path}/lib/modules`, "-name", "dummy.ko"])).trim();
  await using lab = await Lab.boot({ kernel: "6.1", hosts: 1, modules: [module] });
  assert.match(await lab.host(1).ask("lsmod"), /^dummy /m);
});

Deno.test("a warning in a host's kernel log fails the test, and nothing of the lab is left", async () => {
  const lab = await Lab.boot({ kernel: "6.12", hosts: 1 });
  const background = lab.host(1).start("sleep 600");
  await lab.host(1).ask("echo '<4>WARNING: made up by a test' >/dev/kmsg");
  await assert.rejects(lab[Symbol.asyncDispose](), /host1: WARNING: made up by a test/);
  assert.equal((await background.status).code, 137);
  assert.ok(!exists(`/proc/${lab.host(1).pid}`), "QEMU still runs");
  assert.ok(!exists(lab.folder), "its folder is left");
  assert.ok(lab.keptLogs && exists(`${lab.keptLogs}/host1.console`), "its console is not kept");
  await Deno.remove(lab.keptLogs, { recursive: true });
});

Deno.test("a host that dies by itself fails the test", async () => {
  const lab = await Lab.boot({ kernel: "6.1", hosts: 1 });
  lab.host(1).start("echo c >/proc/sysrq-trigger");
  await lab.host(1).ended();
  await assert.rejects(lab[Symbol.asyncDispose](), /host1: it died by itself\nhost1: .*Kernel panic/s);
  assert.ok(lab.keptLogs);
  await Deno.remove(lab.keptLogs, { recursive: true });
});

Deno.test("what fails in an emulation that broke runs again, once; what fails otherwise does not", async () => {
  const options = { kernel: "6.12", hosts: 1 } as const;
  const line = (flags: string) => `echo '<3>RSP: 0018:ffffc900000e3be0 EFLAGS: ${flags}' >/dev/kmsg`;
  for (const [flags, failing, expected] of [["0e8ae202", 1, 2], ["0e8ae202", 2, 2], ["00010246", 1, 1]] as const) {
    const labs: Lab[] = [];
    const run = runInLab(options, async (lab) => {
      if (labs.push(lab) > failing) return;
      await lab.host(1).ask(line(flags));
      throw new Error("made up by a test");
    });
    if (expected > failing) await run;
    else await assert.rejects(run, /made up by a test/);
    assert.equal(labs.length, expected, flags);
    for (const { keptLogs } of labs) if (keptLogs) await Deno.remove(keptLogs, { recursive: true });
  }
});

Deno.test("what fails on a link that carries nothing runs again, in another lab", async () => {
  const labs: Lab[] = [];
  await runInLab({ kernel: "6.1" }, async (lab) => {
    if (labs.push(lab) > 1) return;
    assert.ok(!await lab.linkBroke(), "it carries packets");
    await lab.host(2).ask(`ip neigh replace ${lab.host(1).address} lladdr 52:54:00:77:00:99 nud permanent dev eth0`);
    throw new Error("made up by a test");
  });
  assert.equal(labs.length, 2);
  const [first] = labs;
  assert.ok(first?.keptLogs);
  assert.match(await Deno.readTextFile(join(first.keptLogs, "host2.state")), /"used-idx": \d/);
  await Deno.remove(first.keptLogs, { recursive: true });
});

Deno.test("what fails where soft-RoCE makes no connections any more runs again, in another lab", async () => {
  const labs: Lab[] = [];
  await runInLab({ kernel: "6.12", rdma: true }, async (lab) => {
    if (labs.push(lab) > 1) return;
    const [one, two] = [lab.host(1), lab.host(2)];
    await one.ask(`rping -s -P -a ${one.address} >/dev/null 2>&1 &`);
    const talk = `rping -c -a ${one.address} -C 1000000 >/dev/null 2>&1 &`;
    await two.ask(talk);
    await until(async () => /type RC state RTS/.test(await two.ask("rdma resource show qp")), () => "they do not talk");
    assert.ok(!await lab.rdmaBroke(), "it makes connections");
    // Its connection manager says goodbye where no way leads to the other host.
    await two.ask("ip link set eth0 down && pkill -KILL rping");
    await until(() => lab.rdmaBroke(), () => "what was said without a link has done it no harm");
    throw new Error("made up by a test");
  });
  assert.equal(labs.length, 2);
  for (const { keptLogs } of labs) if (keptLogs) await Deno.remove(keptLogs, { recursive: true });
});

Deno.test("isImpossible() knows flags that no processor has", () => {
  for (const flags of ["00010246", "00000002", "00210202", "00000a93"]) {
    assert.ok(!isImpossible(`EFLAGS: ${flags}`), flags);
  }
  for (const flags of ["0e8ae202", "00010244", "0001024e", "00010266", "00018246"]) {
    assert.ok(isImpossible(`RSP: 0018:ffffc900000e3be0 EFLAGS: ${flags}`), flags);
  }
});

Deno.test("troubleIn() finds what a kernel says when it is not well, and nothing else", () => {
  const bad = [
    "BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "WARNING: CPU: 0 PID: 77 at mm/filemap.c:155",
    "Oops: 0002 [#1] PREEMPT SMP NOPTI",
    "INFO: task vcpu:99 blocked for more than 120 seconds.",
    "refcount_t: underflow; use-after-free.",
    "rcu: INFO: rcu_preempt self-detected stall on CPU",
    "WARNING: possible circular locking dependency detected",
    "BUG: KASAN: slab-out-of-bounds in gyges_fault+0x1/0x2",
  ];
  const good = [
    "rcu: \tRCU CPU stall warnings timeout set to 60",
    "rdma_rxe: loaded",
    "kvm: Nested Virtualization enabled",
  ];
  assert.deepEqual(troubleIn([...good, ...bad, ...good].join("\n")), bad);
});
