/** Which pager and which transport are settled on, and what is said when none is. */
import assert from "node:assert/strict";
import { UsageError } from "../../lib/errors.ts";
import type { Machine } from "../../lib/machine/machine.ts";
import type { PagerChoice, PagerKind, Transport } from "../../lib/options.ts";
import { chooseRam, noPlan, plansFor, sourcePager, whyOf, wordsOf } from "../../lib/pager/choose.ts";
import type { Lack, Pager } from "../../lib/pager/pager.ts";

const RDMA = { addresses: [{ host: "10.7.0.1", port: 4711 }], token: "0".repeat(64) };
const NO_MODULE: Lack = { check: "module", found: "the module is not loaded", remedy: "run: gyges module load" };
const NO_DEVICE: Lack = { check: "rdma", found: "there is no RDMA device", remedy: "use --transport tcp" };

function unused(): never {
  throw new Error("choosing makes nothing");
}

function fakePager(kind: PagerKind, lacks: { [key in Transport]?: Lack } = {}): Pager {
  return {
    kind,
    ramFolder: "/nowhere",
    lack: (transport) => lacks[transport] ?? null,
    makeRam: unused,
    source: unused,
    destination: unused,
  };
}

const BOTH = [fakePager("kernel"), fakePager("user")];
const USER_TCP = [fakePager("kernel", { rdma: NO_MODULE }), fakePager("user", { rdma: NO_DEVICE })];

type Offer = Parameters<typeof plansFor>[0];

function offer(pager: PagerKind, transports: Transport[], noRdma = "its reason"): Offer {
  return { pager, transports, ...(transports.includes("rdma") ? { rdma: RDMA } : { no_rdma: noRdma }) };
}

/** "kernel/rdma user/tcp" */
function planned(from: Offer, choice: PagerChoice, pagers: readonly Pager[]): string {
  return plansFor(from, choice, pagers).plans.map(({ pager, transport }) => `${pager.kind}/${transport}`).join(" ");
}

Deno.test("plansFor() tries the kernel pager, then RDMA, then TCP, as far as both ends can", () => {
  const anything = offer("user", ["rdma", "tcp"]);
  assert.equal(planned(anything, "auto", BOTH), "kernel/rdma user/rdma user/tcp");
  assert.equal(planned(anything, "user", BOTH), "user/rdma user/tcp");
  assert.equal(planned(anything, "kernel", BOTH), "kernel/rdma");
  assert.equal(planned(anything, "auto", USER_TCP), "user/tcp");
  assert.equal(planned(offer("user", ["tcp"]), "auto", BOTH), "user/tcp");
  assert.equal(planned(offer("user", ["rdma"]), "auto", BOTH), "kernel/rdma user/rdma");
});

Deno.test("plansFor() lets a kernel pager at the source have RDMA only, whatever it offers", () => {
  assert.equal(planned(offer("kernel", ["rdma"]), "auto", BOTH), "kernel/rdma user/rdma");
  assert.equal(planned(offer("kernel", ["rdma", "tcp"]), "user", BOTH), "user/rdma");
  assert.equal(planned(offer("kernel", ["tcp"]), "auto", BOTH), "");
  assert.equal(planned(offer("kernel", ["rdma"]), "auto", USER_TCP), "");
});

Deno.test("plansFor() leaves a guest whose RAM is private to its QEMU to QEMU, and no other", () => {
  const all = [...BOTH, fakePager("native")];
  assert.equal(planned(offer("native", ["tcp"]), "auto", all), "native/tcp");
  assert.equal(planned(offer("native", ["tcp"]), "native", all), "native/tcp");
  assert.equal(planned(offer("native", ["tcp"]), "user", all), "");
  assert.equal(planned(offer("user", ["rdma", "tcp"]), "auto", all), "kernel/rdma user/rdma user/tcp");
  assert.equal(planned(offer("user", ["tcp"]), "native", all), "");
  const { ruledOut } = plansFor(offer("native", ["tcp"]), "user", all);
  assert.match(ruledOut.at(-2) ?? "", /^the user pager over TCP: the guest's RAM is private to the source's QEMU$/);
});

Deno.test("plansFor() plans nothing over RDMA for a source that does not say where it listens", () => {
  assert.equal(planned({ pager: "user", transports: ["rdma", "tcp"] }, "auto", BOTH), "user/tcp");
});

Deno.test("plansFor() says why each better way is not taken, and nothing about worse ones", () => {
  assert.deepEqual(plansFor(offer("user", ["rdma", "tcp"]), "auto", USER_TCP).ruledOut, [
    "the kernel pager over RDMA: not at the destination: the module is not loaded: run: gyges module load",
    "the user pager over RDMA: not at the destination: there is no RDMA device: use --transport tcp",
  ]);
  assert.deepEqual(plansFor(offer("user", ["rdma", "tcp"]), "auto", BOTH).ruledOut, []);
  assert.deepEqual(plansFor(offer("user", ["tcp"], "no device there"), "user", BOTH).ruledOut, [
    "the kernel pager over RDMA: --pager user was given at the destination",
    "the user pager over RDMA: not from the source: no device there",
  ]);
});

Deno.test("whyOf() names what was settled on, what proves it, and what failed", () => {
  const [first] = plansFor(offer("user", ["tcp"], "no device there"), "user", BOTH).plans;
  assert.ok(first);
  const why = whyOf(first, ["the user pager over RDMA: not from the source: no device there"]);
  assert.equal(
    why,
    "the user pager over TCP: page connections like the control connection. " +
      "not the user pager over RDMA: not from the source: no device there",
  );
  assert.match(
    whyOf({ pager: fakePager("kernel"), transport: "rdma" }, []),
    /^the kernel pager over RDMA: .*connected/,
  );
  assert.equal(wordsOf({ pager: { kind: "user" }, transport: "rdma" }), "the user pager over RDMA");
});

Deno.test("noPlan() names both ends", () => {
  const from = offer("kernel", ["rdma"]);
  const error = noPlan(from, plansFor(from, "auto", USER_TCP).ruledOut);
  assert.equal(error.theirs, "kernel pager, RDMA");
  assert.match(error.message, /the module is not loaded.*there is no RDMA device.*moves pages by RDMA only/);
});

Deno.test("chooseRam() takes the best pager that has all it needs, and refuses with the remedy", () => {
  assert.equal(chooseRam("auto", BOTH).kind, "kernel");
  assert.equal(chooseRam("auto", USER_TCP).kind, "user");
  assert.equal(chooseRam("user", BOTH).kind, "user");
  assert.throws(() => chooseRam("kernel", USER_TCP), { name: "PreflightError", message: /gyges module load$/ });
  assert.throws(() => chooseRam("kernel", [fakePager("user")]), { name: "PreflightError", message: /--pager user$/ });
});

Deno.test("sourcePager() refuses a pager that the guest's RAM was not made for", () => {
  const machine = { pager: "user" } as Machine;
  const options = { bandwidthBytesPerSecond: 0, prefetchConnections: 1 };
  assert.throws(() => sourcePager("kernel", machine, options), (error: unknown) => {
    return error instanceof UsageError && /--pager kernel.*made for the user pager/.test(error.message);
  });
});
