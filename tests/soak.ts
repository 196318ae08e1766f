/**
 * Many migrations in a row, back and forth between two names, mixed by a seed: modes, TLS, bandwidth, connections;
 * some attempts cancelled before the commit point, some links cut after it.
 *
 *   deno task soak -- --seed N --n 200
 *   deno task soak qemu -- --seed N --n 40    # guests of QEMU, so many moves each (tests/qemu/soak.ts)
 */
import assert from "node:assert/strict";
import { Dice } from "./helpers/dice.ts";
import { Growth } from "./helpers/growth.ts";
import { Host, pause } from "./helpers/host.ts";
import { proveWhole } from "./helpers/outcome.ts";
import { type Destination, type Holder, move, prepare, startGuest, startMove } from "./helpers/pair.ts";
import { heldBy, zombies } from "./helpers/proc.ts";
import { proveGuest } from "./helpers/proof.ts";
import { Proxy } from "./helpers/proxy.ts";
import { GUESTS, soakQemu } from "./qemu/soak.ts";

export interface SoakOptions {
  seed: number;
  n: number;
  say?: (line: string) => void;
}

export interface SoakResult {
  moved: number;
  cancelled: number;
  cuts: number;
  seconds: number;
}

const NAMES = ["a", "b"] as const;
/** A guest lives through so many migrations; then the next has another number of vCPUs. */
const LIFE = 10;
const VCPUS = ["1", "2", "4"];
/** What the process after many migrations may hold beyond the one after the first; its pools come and go a little. */
const GROWTH = { fds: 4, threads: 6, maps: 40, privateMib: 24 };

const MODES = [
  ["--mode", "full"],
  ["--mode", "hybrid", "--precopy-timeout", "100ms"],
  ["--mode", "hybrid", "--precopy-timeout", "300ms"],
  ["--mode", "precopy"],
];
const RATES = [[], ["--bandwidth", "1Gbit"], ["--bandwidth", "3Gbit"]];

class Soak {
  readonly #host: Host;
  readonly #dice: Dice;
  readonly #say: (line: string) => void;
  readonly #result: SoakResult = { moved: 0, cancelled: 0, cuts: 0, seconds: 0 };
  readonly #held = new Growth(GROWTH);
  #holder: Holder | null = null;

  constructor(host: Host, options: SoakOptions) {
    this.#host = host;
    this.#dice = new Dice(options.seed);
    this.#say = options.say ?? (() => {});
  }

  async run(n: number): Promise<SoakResult> {
    const began = performance.now();
    for (let turn = 0; turn < n; turn++) {
      const holder = this.#holder ??= await this.#newGuest(turn);
      const next = NAMES.find((name) => name !== holder.name) ?? "b";
      if (this.#dice.chance(0.2)) await this.#cancelled(holder, next);
      this.#holder = await this.#moved(holder, next);
      await this.#prove(turn);
      if (turn % LIFE === LIFE - 1) await this.#end();
    }
    await this.#end();
    // Each holder is a process of its own; what one hands on to the next, or leaves to a system, would add up.
    this.#say(this.#held.prove());
    this.#host.assertEmpty();
    return { ...this.#result, seconds: (performance.now() - began) / 1000 };
  }

  async #newGuest(turn: number): Promise<Holder> {
    const ram = this.#dice.pick(["48M", "64M"]);
    const vcpus = VCPUS[turn / LIFE % VCPUS.length] ?? "1";
    const workload = this.#dice.pick(["uniform", "zipf", "sequential"]);
    const args = ["--ram", ram, "--vcpus", vcpus, "--workload", workload, "--rate", "20000"];
    this.#say(`guest: ${args.join(" ")}`);
    return await startGuest(this.#host, "a", args);
  }

  /** An attempt that ends before the commit point, and leaves the guest where it is. */
  async #cancelled(holder: Holder, name: string): Promise<void> {
    const destination = await prepare(this.#host, name);
    const migrate = startMove(this.#host, holder, destination.ticket, [
      "--precopy-timeout",
      "30s",
      "--bandwidth",
      "40Mbit",
    ]);
    await migrate.waitFor("promise");
    await pause(this.#dice.roll() * 300);
    await this.#host.start(["cancel", holder.name]).endedWith(0);
    await migrate.endedWith(130);
    await destination.process.endedWith(10);
    this.#result.cancelled++;
  }

  async #moved(holder: Holder, name: string): Promise<Holder> {
    const tls = this.#dice.pick(["on", "off"]);
    const connections = this.#dice.pick(["1", "2", "4"]);
    const mode = this.#dice.pick(MODES);
    const cut = mode[1] === "full" && this.#dice.chance(0.5);
    // A cut needs a post-copy that lasts.
    const rate = cut ? ["--bandwidth", "300Mbit"] : this.#dice.pick(RATES);
    const args = [...mode, ...rate, "--tls", tls, "--prefetch-connections", connections];
    this.#say(`${this.#result.moved + 1}: ${holder.name} -> ${name} ${args.join(" ")}${cut ? ", link cut" : ""}`);
    const destination = await prepare(this.#host, name, ["--tls", tls]);
    if (cut) await this.#moveOverCut(holder, destination, args);
    else await move(this.#host, holder, destination, args);
    this.#result.moved++;
    return destination;
  }

  async #moveOverCut(holder: Holder, destination: Destination, args: string[]): Promise<void> {
    await using link = new Proxy(destination.ticket);
    const moving = move(this.#host, holder, { ...destination, ticket: link.ticket }, args);
    // Whatever it throws is thrown when it is awaited.
    moving.catch(() => {});
    await destination.process.reached("running");
    await pause(this.#dice.roll() * 300);
    link.cut();
    await pause(this.#dice.roll() * 200);
    link.heal();
    await moving;
    this.#result.cuts++;
  }

  /** After each: the guest has seen no damage. After every tenth: nor has the host, in all of its RAM. */
  async #prove(turn: number): Promise<void> {
    const holder = this.#holder;
    assert.ok(holder);
    const { pid } = holder.process;
    const guest = await this.#host.guest(holder.name);
    assert.deepEqual([guest.corrupt, guest.clock_backsteps, guest.location], [0, 0, "here"]);
    const maps = Deno.readTextFileSync(`/proc/${pid}/maps`).split("\n").length;
    this.#held.add({ ...heldBy(pid), maps });
    if (turn % 10 === 9) await proveWhole(this.#host, holder);
  }

  /** The guest's end, with a last look at all of its RAM. */
  async #end(): Promise<void> {
    const holder = this.#holder;
    this.#holder = null;
    if (holder) await proveGuest(this.#host, holder);
    assert.deepEqual(zombies(), [], "zombies are left");
  }
}

export async function soak(options: SoakOptions): Promise<SoakResult> {
  await using host = await Host.open();
  return await new Soak(host, options).run(options.n);
}

export function closingLine(options: SoakOptions, { moved, cancelled, cuts, seconds }: SoakResult): string {
  return `soak: seed ${options.seed}: ${moved} migrations, ${cancelled} cancelled before, ${cuts} with the link cut, ` +
    `${seconds.toFixed(0)} s`;
}

function numberAfter(flag: string, otherwise: number): number {
  const at = Deno.args.indexOf(flag);
  if (at < 0) return otherwise;
  const value = Number(Deno.args[at + 1]);
  if (!Number.isSafeInteger(value) || value < 1) throw new Error(`${flag} needs a whole number from 1`);
  return value;
}

if (import.meta.main) {
  const seed = numberAfter("--seed", crypto.getRandomValues(new Uint32Array(1))[0] ?? 1);
  const qemu = Deno.args[0] === "qemu";
  const options = { seed, n: numberAfter("--n", qemu ? 40 : 200), say: (line: string) => console.log(line) };
  console.log(
    `soak: seed ${seed}, ${options.n} migrations${qemu ? ` of each of ${GUESTS.length} guests of QEMU` : ""}`,
  );
  if (qemu) { for (const guest of GUESTS) console.log(await soakQemu(guest, options)); }
  else console.log(closingLine(options, await soak(options)));
}
