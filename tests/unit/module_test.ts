/** The kernel module as it is carried, judged and installed; fake hosts only. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { VERSION } from "../../cli/version.ts";
import type { HostView } from "../../lib/host/host_view.ts";
import { complaintIn } from "../../lib/host/module_build.ts";
import { MODULE_FILES } from "../../lib/host/module_files.ts";
import { installModule } from "../../lib/host/module_install.ts";
import { whyNotLoaded } from "../../lib/host/module_load.ts";
import { moduleSource } from "../../lib/host/module_source.ts";
import { moduleStatus, mountsOf } from "../../lib/host/module_status.ts";
import { findProgram, installRemedy, sameEverywhere } from "../../lib/host/packages.ts";

const KERNEL = fileURLToPath(new URL("../../kernel", import.meta.url));

/** Files that make leaves there, and what is for readers of the tree. */
const NOT_SOURCE = /\.(?:o|ko|mod|mod\.c|cmd|symvers|order|md)$/;

function* walk(folder: string, prefix = ""): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(join(folder, prefix))) {
    if (isDirectory) yield* walk(folder, `${prefix}${name}/`);
    else if (!NOT_SOURCE.test(name)) yield `${prefix}${name}`;
  }
}

/** A host with these files, and the folders that they are in. */
function fakeHost(files: Readonly<Record<string, string>>): HostView {
  const below = (folder: string) => Object.keys(files).filter((path) => path.startsWith(`${folder}/`));
  return {
    read: (path) => files[path] ?? null,
    list: (path) => [...new Set(below(path).map((file) => file.slice(path.length + 1).split("/")[0] ?? ""))].sort(),
  };
}

function loadedHost(source: string, abi = 1): HostView {
  return fakeHost({
    "/sys/module/gyges/initstate": "live\n",
    "/sys/module/gyges/version": "0.1.0\n",
    "/sys/module/gyges/refcnt": "2\n",
    "/sys/module/gyges/parameters/source": `${source}\n`,
    "/sys/module/gyges/parameters/abi": `${abi}\n`,
    "/proc/self/mounts": "proc /proc proc rw 0 0\ngyges /run/gyges/ram gygesfs rw,mode=700 0 0\n",
    "/sys/class/infiniband/rxe0": "",
  });
}

Deno.test("MODULE_FILES carries all of kernel/ that is built, as it is", () => {
  const there = [...walk(KERNEL)].sort();
  assert.deepEqual(Object.keys(MODULE_FILES).sort(), there);
  for (const path of there) assert.equal(MODULE_FILES[path], Deno.readTextFileSync(join(KERNEL, path)), path);
});

Deno.test("moduleSource() counts the hash that the module's Kbuild counts", async () => {
  const rule = /^gyges-source := \$\(shell cd \$\(src\) && ([^]*?)\)$/m.exec(MODULE_FILES["Kbuild"] ?? "")?.[1];
  assert.ok(rule, "Kbuild has the rule");
  const folder = Deno.makeTempDirSync({ prefix: "gyges-source-" });
  try {
    for (const [path, text] of Object.entries(MODULE_FILES)) {
      Deno.mkdirSync(join(folder, path, ".."), { recursive: true });
      Deno.writeTextFileSync(join(folder, path), text);
    }
    // What a build leaves does not count.
    Deno.writeTextFileSync(join(folder, "gyges.mod.c"), "left");
    const command = new Deno.Command("sh", { args: ["-c", rule.replace("\\\n", " ")], cwd: folder });
    assert.equal(new TextDecoder().decode((await command.output()).stdout).trim(), moduleSource().hash);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("moduleSource() has another hash for other code, and the same for another licence text", () => {
  const changed = (path: string) => moduleSource({ ...MODULE_FILES, [path]: `${MODULE_FILES[path]}\n` }).hash;
  assert.notEqual(changed("fault.c"), moduleSource().hash);
  assert.equal(changed("COPYING"), moduleSource().hash);
});

Deno.test("program, module and DKMS have one version", () => {
  assert.equal(moduleSource().version, VERSION);
  assert.match(MODULE_FILES["dkms.conf"] ?? "", new RegExp(`^PACKAGE_VERSION="${VERSION}"$`, "m"));
});

Deno.test("moduleStatus() tells a module of this source from another, and from none", () => {
  const { hash, abi } = moduleSource();
  const same = moduleStatus(loadedHost(hash), "6.12.1");
  assert.partialDeepStrictEqual(same, {
    loaded: true,
    version: "0.1.0",
    source_matches: true,
    abi_matches: true,
    mounts: ["/run/gyges/ram"],
    references: 2,
    rdma_devices: ["rxe0"],
    headers: false,
  });
  const other = moduleStatus(loadedHost("0123456789abcdef", abi + 1), "6.12.1");
  assert.deepEqual([other.source_matches, other.abi_matches], [false, false]);
  const none = moduleStatus(fakeHost({ "/lib/modules/6.12.1/build/Makefile": "" }), "6.12.1");
  assert.deepEqual([none.loaded, none.source_matches, none.mounts, none.headers], [false, null, [], true]);
});

Deno.test("mountsOf() finds gygesfs only, also at a path with blanks", () => {
  const text = "a /run/gyges/ram gygesfs rw 0 0\ntmpfs /gygesfs tmpfs rw 0 0\nb /mnt/a\\040b gygesfs rw 0 0\n";
  assert.deepEqual(mountsOf(text), ["/run/gyges/ram", "/mnt/a b"]);
});

Deno.test("whyNotLoaded() has a reason and a remedy for each refusal", () => {
  const plain = fakeHost({});
  const locked = fakeHost({ "/sys/kernel/security/lockdown": "none [integrity] confidentiality\n" });
  const open = fakeHost({ "/sys/kernel/security/lockdown": "[none] integrity confidentiality\n" });
  const closed = fakeHost({ "/proc/sys/kernel/modules_disabled": "1\n" });
  const cases: [string, HostView, RegExp, RegExp][] = [
    ["EKEYREJECTED", plain, /signature/, /mokutil/],
    ["EPERM", locked, /locked down .*Secure Boot/, /mokutil/],
    ["EPERM", open, /container/, /CAP_SYS_MODULE/],
    ["EPERM", closed, /no more modules/, /modules_disabled/],
    ["ENOEXEC", plain, /another kernel/, /gyges module load/],
    ["ENOENT", plain, /symbols/, /dmesg/],
    ["EEXIST", plain, /of that name is loaded/, /gyges module status/],
    ["ENOMEM", plain, /does not take it/, /dmesg/],
  ];
  for (const [code, host, found, remedy] of cases) {
    const why = whyNotLoaded(code, host);
    assert.match(why.found, found, code);
    assert.match(why.remedy, remedy, code);
  }
});

Deno.test("installRemedy() speaks the host's language", () => {
  const on = (id: string) => installRemedy(sameEverywhere("make"), fakeHost({ "/etc/os-release": id }));
  assert.equal(on("ID=debian\n"), "run: apt-get install -y make");
  assert.equal(on('ID=linuxmint\nID_LIKE="ubuntu debian"\n'), "run: apt-get install -y make");
  assert.equal(on('ID="rocky"\nID_LIKE="rhel centos fedora"\n'), "run: dnf install -y make");
  assert.equal(on('ID="sles"\n'), "run: zypper install -y make");
  assert.equal(on("ID=arch\n"), "run: pacman -S --needed make");
  assert.equal(on(""), "run: apt-get install -y make");
});

Deno.test("findProgram() looks where system programs are, too", () => {
  assert.match(findProgram("sh", "/nowhere:relative") ?? "", /^\/(?:usr\/)?bin\/sh$/);
  assert.equal(findProgram("no-such-program"), null);
});

Deno.test("complaintIn() finds what went wrong in make's output", () => {
  const output = "make[1]: Entering\n  CC [M] fs.o\nfs.c:1:2: error: no such thing\nmake: *** [Makefile:9] Error 2\n";
  assert.equal(complaintIn(output), "fs.c:1:2: error: no such thing; make: *** [Makefile:9] Error 2");
  assert.equal(complaintIn("one\n\ntwo\n"), "one; two");
});

Deno.test("installModule() writes once, mends what was changed, and takes away what is not of the source", () => {
  const root = Deno.makeTempDirSync({ prefix: "gyges-install-" });
  const changesOf = () => {
    const changed = installModule(root).files.filter(({ change }) => change !== "unchanged");
    return changed.map(({ path, change }) => `${change} ${path.slice(root.length)}`).sort();
  };
  try {
    const { files, version, next } = installModule(root);
    assert.ok(files.every(({ change }) => change === "written"));
    const source = `${root}/usr/src/gyges-${version}`;
    assert.deepEqual([...walk(source)].sort(), Object.keys(MODULE_FILES).sort());
    const wants = `${root}/etc/systemd/system/multi-user.target.wants/run-gyges-ram.mount`;
    assert.equal(Deno.readLinkSync(wants), "/etc/systemd/system/run-gyges-ram.mount");
    assert.match(next.join("\n"), new RegExp(`dkms install gyges/${version}`));
    assert.deepEqual(changesOf(), []);
    Deno.writeTextFileSync(`${source}/fs.c`, "spoiled");
    Deno.writeTextFileSync(`${source}/old.c`, "of an old version");
    Deno.removeSync(wants);
    assert.deepEqual(
      changesOf(),
      [
        `removed /usr/src/gyges-${version}/old.c`,
        "written /etc/systemd/system/multi-user.target.wants/run-gyges-ram.mount",
        `written /usr/src/gyges-${version}/fs.c`,
      ],
    );
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
});
