/** The micro-VM moves between two hosts: with either pager at each end, over RDMA and over TCP. */
import assert from "node:assert/strict";
import { KERNELS, type LabHost, labTest } from "./lab.ts";
import { account, endGuest, inPostcopy, move, prepareAt, proveThereAndBack, proveWhole, startGuest } from "./moves.ts";
import type { Way } from "./moves.ts";

const KERNEL = ["--pager", "kernel"];
const RDMA = { rdma: true, gyges: true } as const;
/** GYGES_INJECT_ZERO_MISSING of kernel/gyges_internal.h. */
const ZERO_MISSING = 4;
const CORRUPT = 12;

/** What differs between kernels is the kernel pager; 6.1 need not show again how the user pager gets its pages. */
const WAYS: readonly (Way & { kernels: readonly string[] })[] = [
  { from: "kernel", to: "user", transport: "rdma", kernels: ["6.1", "6.12"] },
  { from: "user", to: "kernel", transport: "rdma", kernels: ["6.12"] },
  { from: "user", to: "user", transport: "rdma", kernels: ["6.12"] },
  { from: "user", to: "user", transport: "tcp", kernels: ["6.1", "6.12"] },
];

/** Tracepoints that are counted from now on. */
const COUNTED = { asyncDone: "kvm/kvm_async_pf_completed", faults: "gyges/gyges_fault" } as const;
type Counts = Record<keyof typeof COUNTED, number>;

async function trace(host: LabHost): Promise<void> {
  const enable = Object.values(COUNTED).map((event) => `echo 1 > events/${event}/enable`).join(" && ");
  await host.ask(
    `mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
    cd /sys/kernel/tracing && echo 16384 > buffer_size_kb && echo > trace && ${enable}`,
  );
}

async function counted(host: LabHost): Promise<Counts> {
  const count = (event: string) => host.ask(`grep -c ' ${event.split("/")[1]}:' /sys/kernel/tracing/trace || true`);
  return { asyncDone: Number(await count(COUNTED.asyncDone)), faults: Number(await count(COUNTED.faults)) };
}

for (const kernel of KERNELS) {
  labTest("the kernel pager moves a guest in full mode, and back in hybrid mode", { kernel, ...RDMA }, async (lab) => {
    await proveThereAndBack(lab, `${kernel}, kernel`, { from: "kernel", to: "kernel", transport: "rdma" }, "64M");
  });

  for (const way of WAYS.filter(({ kernels }) => kernels.includes(kernel))) {
    const words = `${way.from} to ${way.to} pager over ${way.transport.toUpperCase()}`;
    labTest(`a guest moves from ${words}, and back`, { kernel, ...RDMA }, async (lab) => {
      await proveThereAndBack(lab, `${kernel}, ${words}`, way, way.transport === "tcp" ? "16M" : "32M");
    });
  }

  labTest("faults of a guest that takes interrupts become asynchronous", { kernel, ...RDMA }, async (lab) => {
    const [one, two] = [lab.host(1), lab.host(2)];
    const guest = await startGuest(one, [...KERNEL, "--vcpus", "2", "--irqchip", "--ram", "16M"]);
    const [there, plain] = [await prepareAt(two, "there", KERNEL), await startGuest(two, [...KERNEL, "--ram", "16M"])];
    await trace(two);
    const args = ["--mode", "full", "--no-prefetch"];
    const summary = await account(`${kernel}, demand`, guest, there, move(one, guest, there, args));
    const { asyncDone, faults } = await counted(two);
    console.log(`lab: ${kernel}: ${summary.demand_faults} demand faults, ${faults} touches, ${asyncDone} asynchronous`);
    assert.ok(asyncDone > 0.9 * summary.demand_faults, `${asyncDone} of ${summary.demand_faults}`);
    await endGuest(there);
    // Without an interrupt controller KVM has no way to tell the guest, and waits: what is counted is what it says.
    const back = await prepareAt(one, "back", KERNEL);
    await trace(one);
    const waiting = await account(`${kernel}, no irqchip`, plain, back, move(two, plain, back, ["--mode", "full"]));
    assert.equal((await counted(one)).asyncDone, 0);
    await proveWhole(back, waiting);
  });
}

labTest("a missing page that becomes zeros is seen by the guest", { kernel: "6.12", ...RDMA }, async (lab) => {
  const [one, two] = [lab.host(1), lab.host(2)];
  const [guest, there] = await Promise.all([
    startGuest(one, [...KERNEL, "--write-ratio", "0", "--ram", "16M"]),
    prepareAt(two, "there", KERNEL),
  ]);
  const migrate = move(one, guest, there, ["--mode", "full", "--bandwidth", "20Mbit"]);
  await inPostcopy(migrate, there);
  await two.ask(`echo ${ZERO_MISSING} >/sys/module/gyges/parameters/inject`);
  const { code } = await migrate.ended();
  assert.ok(code === 0 || code === CORRUPT, `migrate ended with ${code}`);
  await there.process.waitFor("summary");
  const { guest: report, ram_check } = await endGuest(there);
  assert.ok((report.corrupt ?? 0) + (ram_check?.bad_pages ?? 0) > 0);
});
