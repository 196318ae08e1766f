/** One emulated host: a QEMU process, its command channel, its kernel's log. */
import assert from "node:assert/strict";
import { Channel, type RemoteProcess } from "./channel.ts";
import type { Image } from "./image.ts";
import { isImpossible, troubleIn } from "./kernel_log.ts";
import { Qmp } from "./qmp.ts";
import { inTime } from "./time.ts";

export interface RunResult {
  code: number;
  stdout: string;
  stderr: string;
}

export interface RunOptions {
  /** Milliseconds until the command is killed and the run fails. @default 60_000 */
  timeoutMs?: number;
  /** @default "" */
  stdin?: string | Uint8Array;
}

export interface HostOptions {
  /** From 1; 10.77.0.NUMBER is its address. */
  number: number;
  image: Image;
  /** For its sockets. */
  folder: string;
  /** Shown inside as /run/lab/share. */
  share: string;
  /** Where its console goes; the caller's to keep or to remove. */
  console: string;
  /** The Ethernet segment, an argument of QEMU's -netdev after the id. @default none */
  netdev?: string;
  vcpus: number;
  memory: string;
}

const QEMU_TIMEOUT_MS = 30_000;
const BOOT_TIMEOUT_MS = 60_000;
const LOG_TIMEOUT_MS = 30_000;
const KILL_TIMEOUT_MS = 10_000;
const KERNEL_WORDS = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr audit=0 apparmor=0 random.trust_cpu=on " +
  "tsc=reliable watchdog_thresh=30 rcupdate.rcu_cpu_stall_timeout=60";

export class LabHost {
  readonly name: string;
  readonly address: string;
  readonly console: string;
  /** What programs of a test have said here, for when it fails. */
  readonly said: (() => string)[] = [];
  readonly #qemu: Deno.ChildProcess;
  readonly #channel: Channel;
  readonly #qmp: Qmp;
  readonly #ended: Promise<void>;
  #alive = true;
  #killed = false;

  private constructor(options: HostOptions, qemu: Deno.ChildProcess, channel: Channel, qmp: Qmp) {
    this.name = `host${options.number}`;
    this.address = addressOf(options.number);
    this.console = options.console;
    this.#qemu = qemu;
    this.#channel = channel;
    this.#qmp = qmp;
    this.#ended = qemu.status.then(() => void (this.#alive = false));
  }

  /** Of its QEMU. */
  get pid(): number {
    return this.#qemu.pid;
  }

  get alive(): boolean {
    return this.#alive;
  }

  /** Waits until QEMU has ended. */
  ended(): Promise<void> {
    return this.#ended;
  }

  /** Starts QEMU; its network is there when this resolves, its kernel boots. */
  static async start(options: HostOptions): Promise<LabHost> {
    const at = (name: string) => `${options.folder}/${name}${options.number}`;
    using agent = await listenAt(at("agent"));
    using monitor = await listenAt(at("qmp"));
    // QEMU dies with us, however we die, and not of a Ctrl-C that is meant for us.
    const qemu = new Deno.Command("setpriv", {
      args: ["--pdeathsig", "KILL", "setsid", "qemu-system-x86_64", ...qemuArguments(options, at("agent"), at("qmp"))],
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    const words = new Response(qemu.stderr).text();
    const failure = qemu.status.then(async ({ code }): Promise<never> => {
      throw new Error(`QEMU ended with ${code}: ${await words}`);
    });
    failure.catch(() => {});
    const open: Disposable[] = [];
    try {
      const soon = <T>(promise: Promise<T>) =>
        inTime(Promise.race([promise, failure]), QEMU_TIMEOUT_MS, "QEMU's start");
      const channel = await soon(agent.accept());
      open.push(channel);
      const control = await soon(monitor.accept());
      open.push(control);
      const qmp = await soon(Qmp.open(control));
      return new LabHost(options, qemu, new Channel(channel), qmp);
    } catch (error) {
      for (const connection of open) connection[Symbol.dispose]();
      await end(qemu);
      throw error;
    }
  }

  /** Waits until it takes commands. */
  async booted(): Promise<void> {
    try {
      await inTime(this.#channel.ready, BOOT_TIMEOUT_MS, "the first sign of life");
    } catch (cause) {
      throw new Error(`${this.name} did not boot; its console ends:\n${tail(this.#consoleLog())}`, { cause });
    }
  }

  /** Runs `command` by /bin/sh to its end. Throws only if that does not come in time. */
  async run(command: string, options: RunOptions = {}): Promise<RunResult> {
    const { timeoutMs = 60_000, stdin = "" } = options;
    const process = this.#channel.start(command, typeof stdin === "string" ? new TextEncoder().encode(stdin) : stdin);
    let late = false;
    let timer = setTimeout(() => {
      late = true;
      process.kill("SIGKILL");
      // A host that hangs kills nothing.
      timer = setTimeout(() => void this.#channel.close(), KILL_TIMEOUT_MS);
    }, timeoutMs);
    const [stdout, stderr, { code }] = await Promise.all([
      new Response(process.stdout).text(),
      new Response(process.stderr).text(),
      process.status,
    ]);
    clearTimeout(timer);
    if (late) throw new Error(`${this.name}: "${command}" not done after ${timeoutMs} ms: ${stdout}${stderr}`);
    return { code, stdout, stderr };
  }

  /** What `command` printed. Throws with its complaint unless it ends with 0. */
  async ask(command: string, options: RunOptions = {}): Promise<string> {
    const { code, stdout, stderr } = await this.run(command, options);
    assert.equal(code, 0, `${this.name}: "${command}" ended with ${code}: ${stdout}${stderr}`);
    return stdout;
  }

  /** Starts `command` in the background; its output is kept until it is read. */
  start(command: string): RemoteProcess {
    return this.#channel.start(command);
  }

  /** Sends SIGKILL to every command that runs, and to what it has started in its session. What does not end of it. */
  async killAll(): Promise<string[]> {
    const ended = inTime(this.#channel.killAll(), KILL_TIMEOUT_MS, "the end of what was sent SIGKILL");
    return await ended.then(() => [], (error) => [`${this.name}: ${error.message}`]);
  }

  /** A file in the host. */
  file(path: string): { read(): Promise<string>; write(content: string | Uint8Array): Promise<void> } {
    const quoted = `'${path.replaceAll("'", `'\\''`)}'`;
    return {
      read: () => this.ask(`cat ${quoted}`),
      write: async (content) => void await this.ask(`cat >${quoted}`, { stdin: content }),
    };
  }

  /** All that its kernel has said since boot. */
  dmesg(): Promise<string> {
    return this.ask("dmesg --notime", { timeoutMs: LOG_TIMEOUT_MS });
  }

  /** Makes the soft-RoCE device rxe0 of its network. */
  async addRdma(): Promise<void> {
    await this.ask("rdma link add rxe0 type rxe netdev eth0");
  }

  /**
   * Soft-RoCE makes no connection any more: what a connection manager sends while there is no link leaves its queue pair
   * for such messages in error, for good, as if the device were broken.
   */
  async rdmaBroke(): Promise<boolean> {
    return /type GSI state ERR/.test(await this.ask("rdma resource show qp"));
  }

  /** The device anew, where it must be. */
  async mendRdma(): Promise<void> {
    if (!await this.rdmaBroke()) return;
    await this.ask("rdma link delete rxe0");
    await this.addRdma();
  }

  /** Plugs its network cable in or out. */
  async setLink(up: boolean): Promise<void> {
    await inTime(this.#qmp.execute("set_link", { name: "n0", up }), QEMU_TIMEOUT_MS, "set_link");
  }

  /** What its QEMU knows of the two queues of its network card, as text: where a packet may have stopped. */
  async networkQueues(): Promise<string> {
    const card = "/machine/peripheral/net0/virtio-backend";
    const query = (queue: number) => this.#qmp.execute("x-query-virtio-queue-status", { path: card, queue });
    const queues = (async () => ({ received: await query(0), sent: await query(1) }))();
    return JSON.stringify(await inTime(queues, QEMU_TIMEOUT_MS, "x-query-virtio-queue-status"), null, 2);
  }

  /** The host's sudden death. */
  async kill(): Promise<void> {
    this.#killed = true;
    await this.#end();
  }

  /** Ends it. What is wrong with it, one line each: none is a healthy host, or one that was killed on purpose. */
  async dispose(): Promise<string[]> {
    const trouble = await this.trouble();
    await this.#end();
    return [...new Set([...trouble, ...this.#consoleTrouble()])];
  }

  /** What is wrong with it so far, one line each. */
  async trouble(): Promise<string[]> {
    const trouble = new Set<string>();
    const fell = !this.#alive && !this.#killed;
    if (fell) trouble.add("it died by itself");
    if (this.#alive) {
      try {
        troubleIn(await this.dmesg()).forEach((line) => trouble.add(line));
      } catch (error) {
        trouble.add(`its kernel's log cannot be read: ${error instanceof Error ? error.message : error}`);
      }
    }
    return [...new Set([...[...trouble].map((line) => `${this.name}: ${line}`), ...this.#consoleTrouble()])];
  }

  #consoleTrouble(): string[] {
    const lines = troubleIn(this.#consoleLog()).map((line) => line.replace(/^\[ *[\d.]+\] /, "").trim());
    return lines.map((line) => `${this.name}: ${line}`);
  }

  /** Its processor has shown what none can: no test that failed on it proves anything. */
  get emulationBroke(): boolean {
    return isImpossible(this.#consoleLog());
  }

  async #end(): Promise<void> {
    await end(this.#qemu);
    await this.#ended;
    await this.#channel.close();
    try {
      this.#qmp.close();
    } catch (error) {
      if (!(error instanceof Deno.errors.BadResource)) throw error;
    }
  }

  #consoleLog(): string {
    return Deno.readTextFileSync(this.console);
  }
}

export function addressOf(number: number): string {
  return `10.77.0.${number}`;
}

/** A socket at `path`, also where an earlier boot has left one. */
async function listenAt(path: string): Promise<Deno.UnixListener> {
  await Deno.remove(path).catch((error) => {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  });
  return Deno.listen({ transport: "unix", path });
}

function qemuArguments(options: HostOptions, agent: string, qmp: string): string[] {
  const { number, image, share, console, netdev, vcpus, memory } = options;
  const fsdev = (id: string, path: string) => {
    return ["-fsdev", `local,id=${id},path=${path},security_model=none,readonly=on,multidevs=remap`] //
      .concat("-device", `virtio-9p-pci,fsdev=${id},mount_tag=${id}`);
  };
  // Of jumbo packets the usual 256 buffers hold some forty.
  const device = `virtio-net-pci,id=net0,netdev=n0,mac=52:54:00:77:00:0${number},rx_queue_size=1024,romfile=`;
  return [
    ...["-name", `lab-host${number}`, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"],
    ...["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", `${vcpus}`, "-m", memory],
    ...["-kernel", image.kernel, "-initrd", image.initramfs],
    ...["-append", netdev ? `${KERNEL_WORDS} lab.address=${addressOf(number)}/24` : KERNEL_WORDS],
    ...["-chardev", `file,id=console,path=${console}`, "-serial", "chardev:console"],
    ...["-chardev", `socket,id=agent,path=${agent}`, "-device", "virtio-serial-pci"],
    ...["-device", "virtserialport,chardev=agent,name=agent"],
    ...["-chardev", `socket,id=qmp,path=${qmp}`, "-mon", "chardev=qmp,mode=control"],
    ...["-device", "virtio-rng-pci"],
    ...fsdev("machine", "/"),
    ...fsdev("share", share),
    ...(netdev ? ["-netdev", netdev, "-device", device] : []),
  ];
}

/** SIGKILL, and certain that it is gone. */
async function end(qemu: Deno.ChildProcess): Promise<void> {
  try {
    qemu.kill("SIGKILL");
  } catch (error) {
    // It has ended.
    if (!(error instanceof TypeError) && !(error instanceof Deno.errors.NotFound)) throw error;
  }
  await qemu.status;
}

function tail(text: string): string {
  return text.slice(-2_000);
}
