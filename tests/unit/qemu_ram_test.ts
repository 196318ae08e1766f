/** Where a QEMU has its guest's RAM, out of /proc and its monitor; and whether two QEMUs fit. */
import assert from "node:assert/strict";
import { ramBlockBytes } from "../../lib/machine/qemu.ts";
import { misfitOf } from "../../lib/qemu/destination.ts";
import { type Backend, sharedMappings, whyNotShared } from "../../lib/qemu/guest_ram.ts";
import type { WireQemu } from "../../lib/wire/messages.ts";

const MAPS = `55d0c8a00000-55d0c8b00000 r-xp 00000000 08:01 11 /usr/bin/qemu-system-x86_64
7f0000000000-7f0000200000 rw-s 00000000 00:1a 42                         /dev/shm/qemu_back_mem.ram0.x (deleted)
7f0000200000-7f0000400000 rw-s 00200000 00:1a 42                         /dev/shm/qemu_back_mem.ram0.x (deleted)
7f0000400000-7f0000600000 rw-s 00000000 00:1a 43                         /dev/shm/qemu_back_mem.ram1.y (deleted)
7f0000600000-7f0000800000 rw-p 00000000 00:00 0
7f0000800000-7f0000a00000 r--s 00000000 00:1a 44                         /dev/shm/other
`;

Deno.test("sharedMappings() joins the parts of one file, and only those", () => {
  const mappings = sharedMappings(MAPS);
  assert.deepEqual(mappings.map(({ start, bytes, inode, first }) => [start, bytes, inode, first]), [
    [0x7f0000000000n, 4 << 20, "42", "7f0000000000-7f0000200000"],
    [0x7f0000400000n, 2 << 20, "43", "7f0000400000-7f0000600000"],
  ]);
});

Deno.test("whyNotShared() names the backend that keeps a guest from moving", () => {
  const good: Backend = { id: "ram0", bytes: 1 << 30, share: true, memPath: "/dev/shm" };
  assert.equal(whyNotShared([good], 1 << 30), null);
  const bad: [Backend[], RegExp][] = [
    [[{ ...good, memPath: null }], /"ram0" is not a memory-backend-file/],
    [[{ ...good, share: false }], /"ram0" has share=off/],
    [[{ ...good, bytes: 4096 }], /"ram0" has 4096 bytes/],
    [[], /1 GiB of RAM and only 0 B of it/],
  ];
  for (const [backends, words] of bad) assert.match(whyNotShared(backends, 1 << 30) ?? "", words);
});

Deno.test("ramBlockBytes() sums what is used, with the columns of old and new QEMUs", () => {
  const old = `              Block Name    PSize              Offset               Used              Total
              gyges-ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000
                 pc.rom    4 KiB  0x0000000010080000 0x0000000000020000 0x0000000000020000
`;
  assert.equal(ramBlockBytes(old), 0x10020000);
  const line = "vga.vram    4 KiB  0x0000000010080000 0x0000000001000000 0x0000000001000000 rw 0x00007f0000000000\n";
  assert.equal(ramBlockBytes(line), 0x1000000);
});

const OURS: WireQemu = {
  kind: "qemu",
  ram_bytes: 1 << 30,
  page_bytes: 4096,
  vcpus: 2,
  version: { major: 7, minor: 2, micro: 22 },
  machine_type: "pc-i440fx-7.2",
  regions: [{ id: "ram0", bytes: 1 << 30 }],
  state_bytes_at_most: 1 << 20,
};

Deno.test("misfitOf() takes an equal machine, and one of an older QEMU", () => {
  assert.equal(misfitOf(OURS, OURS), null);
  assert.equal(misfitOf(OURS, { ...OURS, version: { major: 7, minor: 1, micro: 99 } }), null);
  assert.equal(misfitOf(OURS, { ...OURS, version: { major: 7, minor: 2, micro: 99 } }), null);
});

Deno.test("misfitOf() names both values", () => {
  const misfits: [Partial<WireQemu>, string][] = [
    [{ machine_type: "pc-q35-7.2" }, "machine_type"],
    [{ version: { major: 10, minor: 0, micro: 2 } }, "qemu_version"],
    [{ regions: [{ id: "ram1", bytes: 1 << 30 }] }, "regions"],
    [{ regions: [{ id: "ram0", bytes: 1 << 29 }] }, "regions"],
    [{ vcpus: 4 }, "vcpus"],
  ];
  for (const [theirs, field] of misfits) {
    const error = misfitOf(OURS, { ...OURS, ...theirs });
    assert.equal(error?.field, field);
    assert.ok(error?.message.includes(error.ours) && error.message.includes(error.theirs));
  }
});
