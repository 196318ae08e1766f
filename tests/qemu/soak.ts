/**
 * A guest of QEMU, Linux with disk and network or a program under KVM, that moves back and forth many times, mixed by a
 * seed: full and hybrid as often as each other, some attempts cancelled before the commit point. It must be whole after
 * each, and nothing may add up.
 */
import assert from "node:assert/strict";
import { Dice } from "../helpers/dice.ts";
import { Growth } from "../helpers/growth.ts";
import { pause, until } from "../helpers/host.ts";
import { missing } from "../helpers/kvm.ts";
import { heldBy, zombies } from "../helpers/proc.ts";
import { type Held, QemuPair, type Shape } from "./pair.ts";
import { ramFileOf } from "./stamps.ts";

export type SoakGuest = Required<Pick<Shape, "guest" | "qemu" | "vcpus">>;

export interface QemuSoakOptions {
  seed: number;
  /** Moves of the guest. */
  n: number;
  say?: (line: string) => void;
}

/** All that the long form moves, here. */
export const GUESTS: readonly SoakGuest[] = (["7.2", "10.0"] as const).flatMap((qemu) =>
  [1, 2].flatMap((vcpus) => {
    const kinds = missing !== null ? [] : vcpus === 1 ? ["ring0"] as const : ["ring3"] as const;
    return (["linux", ...kinds] as const).map((guest) => ({ guest, qemu, vcpus }));
  })
);

const SHAPES = {
  linux: { workingSet: "32M", rate: 8000, withDisk: true, withNetwork: true },
  ring0: { workingSet: "16M", rate: 0 },
  ring3: {},
} as const;

/**
 * What may be held more at the end than in the beginning. QEMU has a pool of threads for its disk, gyges one of its own;
 * a guest's kernel takes some more memory with time.
 */
const GROWTH = {
  gygesFds: 4,
  gygesThreads: 6,
  gygesMib: 24,
  qemuFds: 2,
  qemuThreads: 8,
  qemuMib: 16,
  ramMib: 16,
  processes: 0,
  mounts: 0,
};

const TIMES = ["300ms", "1s", "2s"];
const RATES = [[], ["--bandwidth", "100MiB/s"], ["--bandwidth", "40MiB/s"]];

class QemuSoak {
  readonly #pair: QemuPair;
  readonly #dice: Dice;
  readonly #say: (line: string) => void;
  readonly #growth = new Growth(GROWTH);
  readonly #downtimesMs: number[] = [];
  #holder: Held;
  #cancelled = 0;
  #precopied = 0;

  constructor(pair: QemuPair, holder: Held, options: QemuSoakOptions) {
    this.#pair = pair;
    this.#holder = holder;
    this.#dice = new Dice(options.seed);
    this.#say = options.say ?? (() => {});
  }

  /** What was seen, in words. */
  async run(n: number): Promise<string> {
    const modes = this.#dice.shuffled(Array.from({ length: n }, (_, i) => i % 2 === 0 ? "full" : "hybrid"));
    for (const [turn, mode] of modes.entries()) {
      if (turn === 1 || this.#dice.chance(0.2)) await this.#cancel();
      await this.#move(turn + 1, mode);
      await this.#pair.proved();
      this.#note();
    }
    assert.ok(this.#precopied > 0, "no hybrid move brought pages before the guest stopped");
    this.#say(this.#growth.prove());
    await this.#end();
    const [least = 0, most = 0] = [Math.min(...this.#downtimesMs), Math.max(...this.#downtimesMs)].map(Math.round);
    return `${n} moves, ${this.#cancelled} cancelled before, downtime ${least} to ${most} ms`;
  }

  /** An attempt that ends before the commit point, and leaves the guest where it is. */
  async #cancel(): Promise<void> {
    const { host, console } = this.#pair;
    const to = await this.#pair.prepare();
    const slow = ["--precopy-timeout", "30s", "--bandwidth", "10MiB/s"];
    const migrate = host.start(["migrate", to.ticket, "--vm", this.#holder.name, ...slow]);
    await to.process.reached("precopy");
    await pause(this.#dice.roll() * 300);
    await host.start(["cancel", this.#holder.name]).endedWith(0);
    await migrate.endedWith(130);
    await to.process.ended();
    await until(() => !this.#pair.hasQemu(to.name), () => "the QEMU that waited has ended");
    await console.untilBeats(5);
    this.#cancelled++;
  }

  async #move(number: number, mode: string): Promise<void> {
    const time = mode === "full" ? [] : ["--precopy-timeout", this.#dice.pick(TIMES)];
    const args = ["--mode", mode, ...time, ...this.#dice.pick(RATES)];
    this.#say(`${number}: ${this.#holder.name} -> ${args.join(" ")}`);
    const to = await this.#pair.prepare();
    const summary = await this.#pair.move(this.#holder, to, args);
    assert.deepEqual([summary.mode, summary.pager, summary.duplicate_pages], [mode, "user", 0]);
    assert.ok(summary.postcopy_pages > 0, "nothing was left to come after it");
    this.#precopied += summary.precopy_pages;
    this.#downtimesMs.push(summary.downtime_ns / 1e6);
    this.#holder = to;
  }

  #note(): void {
    const { name, process } = this.#holder;
    const qemu = this.#pair.qemuOf(name);
    const [gyges, guest] = [heldBy(process.pid), heldBy(qemu)];
    this.#growth.add({
      gygesFds: gyges.fds,
      gygesThreads: gyges.threads,
      gygesMib: gyges.privateMib,
      qemuFds: guest.fds,
      qemuThreads: guest.threads,
      qemuMib: guest.privateMib,
      ramMib: (Deno.statSync(ramFileOf(qemu)).blocks ?? NaN) * 512 / 2 ** 20,
      processes: this.#pair.processes().length,
      mounts: Deno.readTextFileSync("/proc/self/mountinfo").split("\n").length,
    });
  }

  /** The guest's end, with a last look at all of its memory and disk. */
  async #end(): Promise<void> {
    const { host, console } = this.#pair;
    await host.start(["vm", "stop", this.#holder.name]).endedWith(0);
    await this.#holder.process.endedWith(0);
    await console.untilEnded();
    console.failIfCorrupt();
    host.assertEmpty();
    assert.deepEqual([this.#pair.processes(), zombies()], [[], []], "processes are left");
  }
}

/** Moves `guest` as often as asked; what was seen, in a line. */
export async function soakQemu({ guest, qemu, vcpus }: SoakGuest, options: QemuSoakOptions): Promise<string> {
  const began = performance.now();
  const machine = qemu === "7.2" ? "pc" : "q35";
  await using pair = await QemuPair.open({ ...SHAPES[guest], guest, qemu, vcpus, machine });
  const seen = await new QemuSoak(pair, await pair.start(), options).run(options.n);
  const seconds = ((performance.now() - began) / 1000).toFixed(0);
  return `soak: seed ${options.seed}: QEMU ${qemu}, ${guest}, ${vcpus} vCPU: ${seen}, ${seconds} s`;
}
