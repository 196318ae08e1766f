/**
 * A lab to look around in: boots hosts, runs each COMMAND by a host's /bin/sh in turn, shows what it says, and what the
 * kernels have said meanwhile.
 *
 *     ./build.sh deno run -A tests/lab/try.ts [OPTION...] -- COMMAND...
 *
 *     --kernel 6.1|6.12   (6.1)
 *     --hosts 1|2         (1)
 *     --on N              the host that runs the commands (1); `2: COMMAND` is for host 2 in any case
 *     --rdma              a soft-RoCE device in each host
 *     --gyges             gyges.ko in each host
 *     --program NAME      tests/lab/programs/NAME.c as /run/lab/share/NAME; may be repeated
 *     --vcpus N, --memory SIZE
 *     --seconds N         it ends after so long in any case (120)
 *
 * Ends with the exit code of the first command that failed, or with 1 if a kernel was not well.
 */
import { parseArgs } from "node:util";
import { KERNELS, Lab, type LabOptions } from "./lab.ts";

const { values, positionals } = parseArgs({
  args: Deno.args,
  allowPositionals: true,
  options: {
    kernel: { type: "string", default: "6.1" },
    hosts: { type: "string", default: "1" },
    on: { type: "string", default: "1" },
    rdma: { type: "boolean", default: false },
    gyges: { type: "boolean", default: false },
    program: { type: "string", multiple: true, default: [] },
    vcpus: { type: "string", default: "1" },
    memory: { type: "string", default: "1G" },
    seconds: { type: "string", default: "120" },
  },
});

function labOptions(): LabOptions {
  const { rdma, gyges, memory } = values;
  const kernel = KERNELS.find((known) => known === values.kernel);
  if (kernel === undefined) throw new Error(`--kernel is one of ${KERNELS.join(", ")}`);
  return { kernel, hosts: hostNumber(values.hosts), rdma, gyges, memory, vcpus: Number(values.vcpus) };
}

function hostNumber(word: string): 1 | 2 {
  if (word !== "1" && word !== "2") throw new Error(`There are hosts 1 and 2, not ${word}`);
  return word === "1" ? 1 : 2;
}

/** Runs `words` on its host, and shows its output as it comes; its exit code. */
async function perform(lab: Lab, words: string): Promise<number> {
  const [, on = values.on, command = words] = /^([12]): *(.*)$/s.exec(words) ?? [];
  console.log(`host${on}$ ${command}`);
  const process = lab.host(hostNumber(on)).start(command);
  await Promise.all([
    process.stdout.pipeTo(Deno.stdout.writable, { preventClose: true }),
    process.stderr.pipeTo(Deno.stderr.writable, { preventClose: true }),
  ]);
  const { code } = await process.status;
  if (code !== 0) console.log(`host${on}: ended with ${code}`);
  return code;
}

async function main(): Promise<number> {
  await using lab = await Lab.boot(labOptions());
  console.log(`up after ${(lab.bootMs / 1000).toFixed(1)} s`);
  const late = setTimeout(() => {
    console.log(`not done after ${values.seconds} s`);
    // Every command ends with its host.
    for (const host of lab.hosts) void host.kill();
  }, Number(values.seconds) * 1000);
  let failed = 0;
  try {
    for (const name of values.program) await lab.program(name);
    for (const words of positionals) failed ||= await perform(lab, words);
    for (const host of lab.hosts.filter(({ alive }) => alive)) {
      console.log(
        `--- the kernel of ${host.name} ends with\n${(await host.dmesg()).split("\n").slice(-20).join("\n")}`,
      );
    }
  } finally {
    clearTimeout(late);
  }
  return failed;
}

Deno.exit(await main());
