/** What doctor says of RDMA and of the kernel pager, on hosts that are made up. */
import assert from "node:assert/strict";
import { checksOf } from "../../lib/host/doctor.ts";
import { rdmaChecks, type RdmaHost } from "../../lib/host/doctor_rdma.ts";
import { moduleSource } from "../../lib/host/module_source.ts";
import { GOOD } from "./doctor_facts.ts";

const KERNEL = "6.12.1-amd64";
const { hash, abi } = moduleSource();

/** A host with all that there is to have. */
const FILES: Readonly<Record<string, string>> = {
  "/etc/os-release": "ID=debian\n",
  [`/lib/modules/${KERNEL}/build/Makefile`]: "",
  "/proc/self/mounts": "gyges /run/gyges/ram gygesfs rw 0 0\n",
  "/sys/class/infiniband/rxe0/ports/1/state": "4: ACTIVE\n",
  "/sys/class/infiniband/rxe0/ports/1/link_layer": "Ethernet\n",
  "/sys/class/infiniband/rxe0/ports/1/gid_attrs/ndevs/0": "eth0\n",
  "/sys/class/net/eth0/mtu": "9000\n",
  "/sys/module/gyges/initstate": "live\n",
  "/sys/module/gyges/version": "0.1.0\n",
  "/sys/module/gyges/parameters/source": `${hash}\n`,
  "/sys/module/gyges/parameters/abi": `${abi}\n`,
};

/** That host with files changed, or taken away where `change` has null for the start of their paths. */
function hostWith(change: Readonly<Record<string, string | null>> = {}, libraries = /./): RdmaHost {
  const gone = Object.keys(change).filter((path) => change[path] === null);
  const kept = Object.entries({ ...FILES, ...change })
    .filter((entry): entry is [string, string] => entry[1] !== null && !gone.some((path) => entry[0].startsWith(path)));
  const files = new Map(kept);
  return {
    kernel: KERNEL,
    read: (path) => files.get(path) ?? null,
    list(path) {
      const names = [...files.keys()].filter((file) => file.startsWith(`${path}/`)).map((file) =>
        file.slice(path.length + 1).split("/")[0] ?? ""
      );
      return [...new Set(names)].sort();
    },
    hasLibrary: (name) => libraries.test(name),
  };
}

Deno.test("rdmaChecks() finds nothing to mend on a host that has everything", () => {
  const checks = rdmaChecks(hostWith());
  const names = ["rdma-libraries", "rdma-device", "rdma-mtu", "kernel-headers", "module"];
  assert.deepEqual(checks.map(({ name }) => name), names);
  for (const { name, status, remedy } of checks) assert.deepEqual([status, remedy], ["ok", null], name);
});

Deno.test("rdmaChecks() names each lack alone, and what mends it", () => {
  const cases: [RdmaHost, string, RegExp, RegExp][] = [
    [hostWith({}, /rdmacm/), "rdma-libraries", /^without libibverbs\.so\.1$/, /apt-get install -y libibverbs1/],
    [hostWith({}, /ibverbs/), "rdma-libraries", /librdmacm/, /librdmacm1$/],
    [hostWith({ "/sys/class/infiniband/": null }), "rdma-device", /^none$/, /rdma link add rxe0/],
    [
      hostWith({ "/sys/class/infiniband/rxe0/ports/1/state": "1: DOWN\n" }),
      "rdma-device",
      /^rxe0 DOWN$/,
      /ip link set/,
    ],
    [hostWith({ "/sys/class/net/eth0/mtu": "1500\n" }), "rdma-mtu", /eth0, MTU 1500$/, /ip link set dev eth0 mtu 9000/],
    [
      hostWith({ "/sys/module/gyges/parameters/source": "0000\n" }),
      "module",
      /source 0000.* not the one/,
      /unload && /,
    ],
    [hostWith({ "/sys/module/gyges/parameters/abi": "9\n" }), "module", /interface 9/, /module unload && gyges/],
    [hostWith({ "/proc/self/mounts": "" }), "module", /not mounted/, /as root run: gyges module load$/],
  ];
  for (const [host, name, found, remedy] of cases) {
    const lacks = rdmaChecks(host).filter(({ status }) => status !== "ok");
    assert.deepEqual(lacks.map((check) => [check.name, check.status]), [[name, "warn"]]);
    assert.match(lacks[0]?.found ?? "", found);
    assert.match(lacks[0]?.remedy ?? "", remedy);
  }
});

Deno.test("rdmaChecks() wants headers only where the module is not loaded, and asks InfiniBand for no MTU", () => {
  const headers = `/lib/modules/${KERNEL}/`;
  const statusOf = (host: RdmaHost, name: string) => rdmaChecks(host).find((check) => check.name === name)?.status;
  assert.equal(statusOf(hostWith({ [headers]: null }), "kernel-headers"), "ok");
  const bare = hostWith({ [headers]: null, "/sys/module/gyges/": null });
  assert.deepEqual([statusOf(bare, "kernel-headers"), statusOf(bare, "module")], ["warn", "warn"]);
  const infiniband = hostWith({ "/sys/class/infiniband/rxe0/ports/1/link_layer": "InfiniBand\n" });
  assert.equal(statusOf(infiniband, "rdma-mtu"), undefined);
});

Deno.test("checksOf() minds the limit on locked memory where RDMA pins guest RAM, unless there is none", () => {
  const statusOf = (memlockSoftBytes: bigint, pinned: boolean) =>
    checksOf({ ...GOOD, memlockSoftBytes }, { pinned }).find(({ name }) => name === "locked-memory")?.status;
  assert.equal(statusOf(8n << 20n, true), "warn");
  assert.equal(statusOf(8n << 20n, false), "ok");
  assert.equal(statusOf((1n << 64n) - 1n, true), "ok");
});
