/** A destination's command line from a description of the source's QEMU. */
import assert from "node:assert/strict";
import { UsageError } from "../../lib/errors.ts";
import { commandLike } from "../../lib/qemu/like.ts";

function like(line: string): string {
  const command = line.split(" ");
  return commandLike(JSON.stringify({ type: "machine", pid: 7, command }), "vm.json").join(" ");
}

Deno.test("commandLike() keeps what makes the machine, and leaves out what was that process's own", () => {
  const machine = "qemu-system-x86_64 -m 4G -object memory-backend-file,id=ram0,size=4G,mem-path=/dev/shm,share=on";
  const own =
    "-qmp unix:/run/a,server=on -S --incoming defer -daemonize -pidfile /run/a.pid -loadvm last --qmp stdio " +
    "-chardev socket,id=gyges-monitor,fd=4,server=on,wait=off -mon chardev=gyges-monitor,mode=control";
  assert.equal(like(machine), machine);
  assert.equal(like(`${machine} ${own} -smp 2`), `${machine} -smp 2`);
});

Deno.test("commandLike() refuses what cannot be started again", () => {
  for (const handed of ["-chardev socket,id=a,fd=22", "-netdev tap,fd=30,id=n,vhostfd=31", "-add-fd fd=3,set=1"]) {
    assert.throws(() => like(`qemu ${handed}`), (error: unknown) => {
      assert.ok(error instanceof UsageError);
      assert.match(error.message, /vm\.json: ".*fd=.*as libvirt does\. Give its arguments after --/);
      return true;
    });
  }
  assert.throws(() => like("qemu -drive file=/dev/fdset/2,if=none"), /descriptor/);
  assert.equal(like("qemu -name fd=x -drive file=/srv/fds.img"), "qemu -name fd=x -drive file=/srv/fds.img");
});

Deno.test("commandLike() says what a description is and where it comes from", () => {
  for (
    const text of ["", "[]", '{"type":"sample"}', '{"type":"machine","command":[]}', '{"type":"machine","command":[7]}']
  ) {
    assert.throws(
      () => commandLike(text, "vm.json"),
      /vm\.json as a QEMU's description .*gyges describe --qmp SOCKET --json/,
    );
  }
});
