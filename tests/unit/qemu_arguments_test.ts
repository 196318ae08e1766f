/** QEMU's command line as Gyges starts it. */
import assert from "node:assert/strict";
import { UsageError } from "../../lib/errors.ts";
import { launchArguments, parseOptions, splitCommand } from "../../lib/qemu/arguments.ts";

const OPTIONS = { ramFolder: "/dev/shm", monitorFd: 4, incoming: false };
const QMP = [
  ...["-chardev", "socket,id=gyges-monitor,fd=4,server=on,wait=off"],
  ...["-mon", "chardev=gyges-monitor,mode=control"],
];

function launched(line: string, incoming = false): string[] {
  return launchArguments(line.split(" ").filter((arg) => arg !== ""), { ...OPTIONS, incoming });
}

/** What a line comes to that names no memory backend. */
function withBackend(line: string, size: string): string[] {
  const object = `memory-backend-file,id=gyges-ram,size=${size},mem-path=/dev/shm,share=on`;
  return [
    ...line.split(" ").filter((arg) => arg !== ""),
    "-object",
    object,
    "-machine",
    "memory-backend=gyges-ram",
    ...QMP,
  ];
}

Deno.test("launchArguments() adds RAM in a shared file where the machine has none, and a monitor", () => {
  assert.deepEqual(launched("-m 512 -nographic"), withBackend("-m 512 -nographic", "512M"));
  assert.deepEqual(launched("-m 4G"), withBackend("-m 4G", "4G"));
  assert.deepEqual(launched("-m size=2G,slots=2,maxmem=8G"), withBackend("-m size=2G,slots=2,maxmem=8G", "2G"));
  assert.deepEqual(launched(""), withBackend("", "128M"), "QEMU's own default");
  // The last one counts.
  assert.deepEqual(launched("-m 1G -m 2G"), withBackend("-m 1G -m 2G", "2G"));
});

Deno.test("launchArguments() makes a destination wait, stopped", () => {
  assert.deepEqual(launched("-m 512", true), [...withBackend("-m 512", "512M"), "-incoming", "defer", "-S"]);
});

Deno.test("launchArguments() leaves RAM where it is for the native pager", () => {
  const args = ["-m", "512", "-mem-path", "/dev/hugepages", "-object", "memory-backend-ram,id=a,size=512M"];
  const options = { ...OPTIONS, ramFolder: null, incoming: true };
  assert.deepEqual(launchArguments(args, options), [...args, ...QMP, "-incoming", "defer", "-S"]);
});

Deno.test("launchArguments() keeps the backends of the machine and makes their files shared", () => {
  const line = "-object memory-backend-memfd,id=a,size=1G,seal=on -object memory-backend-file,id=b,size=1G," +
    "mem-path=/tmp/x,,y,share=off,prealloc=on -numa node,memdev=a -numa node,memdev=b";
  const [first, second] = launched(line).filter((_, i, all) => all[i - 1] === "-object");
  assert.equal(first, "memory-backend-file,id=a,size=1G,mem-path=/dev/shm,share=on");
  assert.equal(second, "memory-backend-file,id=b,size=1G,mem-path=/dev/shm,share=on,prealloc=on");
  assert.ok(!launched(line).includes("memory-backend=gyges-ram"));
});

Deno.test("launchArguments() reads a backend that is written in JSON", () => {
  const object = '{"qom-type":"memory-backend-ram","id":"ram0","size":1073741824,"prealloc":true}';
  const args = launchArguments(["-object", object], OPTIONS);
  assert.equal(args[1], "memory-backend-file,id=ram0,size=1073741824,prealloc=on,mem-path=/dev/shm,share=on");
});

Deno.test("launchArguments() leaves other objects and the paths of others alone, and drops -mem-path", () => {
  const args = launched("-m 1G -mem-path /hugepages -object iothread,id=io0");
  assert.ok(args.includes("iothread,id=io0"));
  assert.ok(!args.includes("-mem-path") && !args.includes("/hugepages"));
});

Deno.test("launchArguments() refuses what cannot move, with what to do", () => {
  const refused: [string, RegExp][] = [
    ["-daemonize", /-daemonize: leave it out/],
    ["--daemonize", /-daemonize: leave it out/],
    ["-incoming tcp:0:4444", /-incoming: leave it out/],
    ["-snapshot", /on this host alone/],
    ["-loadvm x", /-loadvm/],
    ["-device vfio-pci,host=01:00.0", /vfio-pci: .* detach it first/],
    ["-device vhost-user-fs-pci,tag=x", /vhost-user-fs-pci: another process maps guest RAM/],
    ["-netdev vhost-user,id=n0", /vhost-user: another process/],
  ];
  for (const [line, words] of refused) {
    assert.throws(() => launched(line), (error: unknown) => {
      assert.ok(error instanceof UsageError);
      assert.match(error.message, words);
      return true;
    }, line);
  }
  assert.throws(() => launchArguments(["-object", "{memory"], OPTIONS), UsageError);
});

Deno.test("splitCommand() finds QEMU's own arguments behind whatever starts it", () => {
  for (
    const start of [
      "qemu-system-x86_64",
      "/opt/my-emulator",
      "setpriv --reuid nobody --regid kvm --clear-groups /usr/bin/qemu-system-x86_64",
      "ip netns exec qemu /usr/libexec/qemu-kvm",
    ]
  ) {
    const args = ["-m", "1G", "-S"];
    assert.deepEqual(splitCommand([...start.split(" "), ...args]), { start: start.split(" "), args });
  }
});

Deno.test("parseOptions() knows QEMU's commas", () => {
  assert.deepEqual(parseOptions("file,id=a,path=/x,,y,,,share", "type"), {
    type: "file",
    id: "a",
    path: "/x,y,",
    share: "on",
  });
});
