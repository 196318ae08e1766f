/**
 * Runs PROGRAM in an emulated host that has a KVM, for machines that have none: in this directory, on this machine's
 * files, with changes that stay in the host's memory.
 *
 *     deno run -A tests/lab/inside.ts [--seconds N] [--fetch FILE]... -- PROGRAM [ARGUMENT...]
 *
 *     --seconds N     it is ended after so long (1800); the code is 124 then
 *     --fetch FILE    a text file that PROGRAM writes: copied to this machine once it has ended
 *
 * Ends with PROGRAM's code, or with 1 if the host's kernel was not well.
 */
import { isAbsolute, join } from "node:path";
import { parseArgs } from "node:util";
import { fileURLToPath } from "node:url";
import { tool } from "./cache.ts";
import { Lab, type LabHost } from "./lab.ts";

/** Of the host; what is used of it, the machine must have. */
const MEMORY = "6G";
const TIMED_OUT = 124;

/** Variables that PROGRAM has as they are here. */
const KEPT = /^(?:HOME|PATH|LANG|TERM|NO_COLOR|COLUMNS|XDG_CACHE_HOME|DENO_\w+|GYGES_\w+)$/;

const { values, positionals } = parseArgs({
  args: Deno.args,
  allowPositionals: true,
  options: {
    seconds: { type: "string", default: "1800" },
    fetch: { type: "string", multiple: true, default: [] },
  },
});

const GYGES = fileURLToPath(new URL("../../dist/gyges", import.meta.url));
/** Where the machine's files are in the host, to be changed at will. */
const OVER = "/run/lab/over";
const ROOT = `${OVER}/root`;

/** Paths that hold what only lives in the running machine, not in the host. */
function passingFolders(): string[] {
  return ["/run", "/tmp"].filter((folder) => !Deno.cwd().startsWith(`${folder}/`));
}

async function layRoot(host: LabHost): Promise<void> {
  await host.ask(`set -e
    mkdir -p ${OVER} && mount -t tmpfs -o size=80% tmp ${OVER} && mkdir ${OVER}/up ${OVER}/work ${ROOT}
    mount -t overlay -o lowerdir=/run/lab/machine,upperdir=${OVER}/up,workdir=${OVER}/work overlay ${ROOT}
    mount -t proc proc ${ROOT}/proc && mount -t sysfs sys ${ROOT}/sys && mount -o rbind /dev ${ROOT}/dev
    for folder in ${passingFolders().join(" ")}; do mount -t tmpfs -o mode=1777 tmp ${ROOT}$folder; done`);
}

function commandLine(program: readonly string[]): string {
  const environment = Object.entries(Deno.env.toObject()).filter(([name]) => KEPT.test(name));
  const words = [
    ...["chroot", ROOT, "env", "-i", ...environment.map(([name, value]) => `${name}=${value}`)],
    ...["sh", "-c", 'cd "$0" && exec "$@"', Deno.cwd(), ...program],
  ];
  return `exec ${words.map((word) => `'${word.replaceAll("'", `'\\''`)}'`).join(" ")}`;
}

/** Runs it to its end, whatever signals come; its code. */
async function perform(host: LabHost, program: readonly string[]): Promise<number> {
  const process = host.start(commandLine(program));
  const pass = () => process.kill("SIGINT");
  for (const name of ["SIGINT", "SIGTERM"] as const) Deno.addSignalListener(name, pass);
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    console.error(`inside: not done after ${values.seconds} s`);
    void host.kill();
  }, Number(values.seconds) * 1000);
  await Promise.all([
    process.stdout.pipeTo(Deno.stdout.writable, { preventClose: true }),
    process.stderr.pipeTo(Deno.stderr.writable, { preventClose: true }),
  ]);
  const { code } = await process.status;
  clearTimeout(timer);
  for (const name of ["SIGINT", "SIGTERM"] as const) Deno.removeSignalListener(name, pass);
  return late ? TIMED_OUT : code;
}

async function fetchFiles(host: LabHost): Promise<void> {
  for (const name of values.fetch) {
    const path = isAbsolute(name) ? name : join(Deno.cwd(), name);
    const { code, stdout } = await host.run(`cat '${ROOT}${path.replaceAll("'", `'\\''`)}'`);
    if (code === 0) await Deno.writeTextFile(path, stdout);
    else console.error(`inside: there is no ${name} to fetch`);
  }
}

async function main(): Promise<number> {
  // Unpacks itself here, not under emulation.
  await tool(GYGES, ["--version"]);
  await using lab = await Lab.boot({ kernel: "6.12", hosts: 1, memory: MEMORY });
  const host = lab.host(1);
  await layRoot(host);
  const code = await perform(host, positionals);
  if (host.alive) await fetchFiles(host);
  return code;
}

if (positionals.length === 0) {
  console.error("inside: name a program, after --");
  Deno.exit(2);
}
Deno.exit(await main());
