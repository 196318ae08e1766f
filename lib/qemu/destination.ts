/** The QEMU that waits at the destination, and whether what the source brings fits into it. */
import { HandshakeError } from "../errors.ts";
import { QemuMachine } from "../machine/qemu.ts";
import type { Pager } from "../pager/pager.ts";
import { pagerOfFiles } from "../pager/kinds.ts";
import type { WireMachine, WireQemu } from "../wire/messages.ts";
import { launchQemu } from "./launch.ts";
import { type QemuVersion, versionText } from "./qmp.ts";

export class WaitingQemu implements AsyncDisposable {
  readonly #command: readonly string[];
  readonly #folder: string;
  #machine: QemuMachine | null;

  private constructor(command: readonly string[], folder: string, machine: QemuMachine) {
    this.#command = command;
    this.#folder = folder;
    this.#machine = machine;
  }

  /** Starts it with RAM for `pager`, before a ticket is out: what cannot work is found here. */
  static async start(command: readonly string[], folder: string, pager: Pager): Promise<WaitingQemu> {
    return new WaitingQemu(command, folder, await startWaiting(command, folder, pager));
  }

  /** The machine for a guest of `shape`. It is started again where another pager is to have its RAM. */
  async take(shape: WireMachine, pager: Pager): Promise<QemuMachine> {
    if (shape.kind !== "qemu") {
      throw misfit("machine", "a QEMU", "a micro-VM", "give gyges prepare --micro, or move the QEMU's guest");
    }
    let machine = this.#machine;
    this.#machine = null;
    if (machine && machine.pager !== pager.kind) {
      await machine[Symbol.asyncDispose]();
      machine = null;
    }
    machine ??= await startWaiting(this.#command, this.#folder, pager);
    try {
      const objection = misfitOf(machine.shape, shape);
      if (objection) throw objection;
      await machine.own?.listen(shape.version);
      return machine;
    } catch (error) {
      await machine[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#machine?.[Symbol.asyncDispose]();
    this.#machine = null;
  }
}

async function startWaiting(command: readonly string[], folder: string, pager: Pager): Promise<QemuMachine> {
  const running = await launchQemu({ command, folder, ramFolder: pager.ramFolder, incoming: true });
  const native = pager.kind === "native";
  return await QemuMachine.create({ ...running, folder, pagerOf: pagerOfFiles, waiting: true, native });
}

/** What of the source's machine does not fit into ours; null: it fits. */
export function misfitOf(ours: WireQemu, theirs: WireQemu): HandshakeError | null {
  const same = "start both QEMUs with the same arguments";
  if (ours.machine_type !== theirs.machine_type) {
    return misfit("machine_type", ours.machine_type, theirs.machine_type, "give both QEMUs the same -machine TYPE");
  }
  if (order(ours.version, theirs.version) < 0) {
    const remedy = "QEMU reads states of its own and of older versions: use at least the source's here";
    return misfit("qemu_version", versionText(ours.version), versionText(theirs.version), remedy);
  }
  const [our, their] = [ours, theirs].map(({ regions }) => regions.map(({ id, bytes }) => `${id}=${bytes}`).join(" "));
  if (our !== their) return misfit("regions", our ?? "", their ?? "", same);
  if (ours.vcpus !== theirs.vcpus) return misfit("vcpus", `${ours.vcpus}`, `${theirs.vcpus}`, same);
  return null;
}

function misfit(field: string, ours: string, theirs: string, remedy: string): HandshakeError {
  return new HandshakeError(
    `The source's ${field} is "${theirs}" and this side's "${ours}": ${remedy}`,
    { field, ours, theirs },
  );
}

/** Negative: `a` is older. A difference in the last number is none: those only mend. */
function order(a: QemuVersion, b: QemuVersion): number {
  return a.major - b.major || a.minor - b.minor;
}
