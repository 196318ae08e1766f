/** A RAM file of gygesfs in a host, held by tests/lab/programs/ram.c, and two of them joined by RDMA. */
import assert from "node:assert/strict";
import type { LabHost, RunResult } from "./host.ts";
import type { Lab } from "./lab.ts";

const FOLDER = "/run/gyges/ram";
/** Emulation is slow. */
const PATIENCE_MS = 90_000;

export type Figures = Record<string, number>;

/** What the numbers of enum gyges_phase mean. */
export const PHASE = { none: 0, precopy: 1, armed: 2, running: 3, complete: 4, abandoned: 5 } as const;

export class RamFile {
  readonly host: LabHost;
  readonly name: string;
  readonly #tool: string;
  readonly #socket: string;

  private constructor(host: LabHost, name: string, tool: string, holder: string) {
    this.host = host;
    this.name = name;
    this.#tool = tool;
    this.#socket = `/tmp/${holder}.socket`;
  }

  get path(): string {
    return `${FOLDER}/${this.name}`;
  }

  /** Makes a file of `pages` and holds it mapped, in the memory cgroup at the path `group` if there is one. */
  static async make(lab: Lab, host: LabHost, name: string, pages: number, group?: string): Promise<RamFile> {
    const file = new RamFile(host, name, await lab.program("ram"), name);
    const enter = group === undefined ? "" : `echo 0 >${group}/cgroup.procs && `;
    await host.ask(`${enter}${file.#tool} ${file.#socket} hold ${file.path} ${pages}`);
    return file;
  }

  /** The same file in another process, named `holder`; a clone's writes are its own. */
  async another(holder: string, { clone = false } = {}): Promise<RamFile> {
    const other = new RamFile(this.host, this.name, this.#tool, holder);
    await this.host.ask(`${this.#tool} ${other.#socket} ${clone ? "clone" : "hold"} ${this.path}`);
    return other;
  }

  /** Gives an order whatever comes of it. */
  async try(order: string): Promise<RunResult> {
    return await this.host.run(`${this.#tool} ${this.#socket} ${order}`, { timeoutMs: PATIENCE_MS });
  }

  /** Gives an order that succeeds; its answer. */
  async do(order: string): Promise<string> {
    const { code, stdout, stderr } = await this.try(order);
    assert.equal(code, 0, `${this.host.name}: ${this.name}: ${order.slice(0, 200)}: ${stdout.slice(0, 500)}${stderr}`);
    return stdout.trim();
  }

  /** Gives an order that fails, with this error. */
  async refuses(order: string, error: string): Promise<void> {
    const { stdout } = await this.try(order);
    assert.match(stdout, new RegExp(`error: ${error}\n$`), `${order.slice(0, 200)}: ${stdout.slice(0, 500)}`);
  }

  /** Gives an order whose answer is name=number words. */
  async figures(order: string): Promise<Figures> {
    const figures: Figures = {};
    for (const [, name = "", value] of (await this.do(order)).matchAll(/(\w+)=(-?\d+)/g)) figures[name] = Number(value);
    return figures;
  }

  /** Ends its holder as if it were killed. */
  async kill(): Promise<void> {
    await this.host.ask(`pkill -KILL -f '${this.#holder}'`);
    await this.#gone();
  }

  /** Ends its holder; the file stays. */
  async close(): Promise<void> {
    await this.host.run(`${this.#tool} ${this.#socket} quit`);
    await this.#gone();
  }

  /** Its holder's command line, as a pattern that does not match a shell that looks for it. */
  get #holder(): string {
    return `${this.#socket} ([h]old|[c]lone)`;
  }

  async #gone(): Promise<void> {
    await this.host.ask(`while pgrep -f '${this.#holder}'; do sleep 0.05; done`);
  }

  async remove(): Promise<void> {
    await this.close();
    await this.host.ask(`rm -f ${this.path}`);
  }
}

export interface Joined {
  source: RamFile;
  destination: RamFile;
  port: string;
  token: string;
}

export interface JoinOptions {
  pages: number;
  /** Pages of the source that have content, of stamp 7. @default "all" */
  filled?: string;
  /** @default "ram" */
  name?: string;
  /** Path of the destination's memory cgroup. @default the harness's */
  group?: string;
}

export const STAMP = 7;

/** A file with content in host 1, and an empty one in host 2 that imports it: connected, its table of regions set. */
export async function join(lab: Lab, options: JoinOptions): Promise<Joined> {
  const { pages, filled = "all", name = "ram" } = options;
  const token = "0123456789abcdef0123456789abcdef";
  const source = await RamFile.make(lab, lab.host(1), `${name}-source`, pages);
  const destination = await RamFile.make(lab, lab.host(2), `${name}-destination`, pages, options.group);
  await source.do(`fill ${filled} ${STAMP}`);
  const port = await source.do(`export ${source.host.address} ${token}`);
  await destination.do(`import ${source.host.address} ${port} ${token} 5000`);
  await destination.do(`set-regions ${await source.do("regions")}`);
  return { source, destination, port, token };
}

/** As a guest that arrives in full mode: `missing` is at the source, all else is zero. It does not run yet. */
export async function arm(destination: RamFile, missing: string): Promise<void> {
  await destination.do(`discard ${missing}`);
  await destination.do("arm");
}

/** Every page is here, each was READ once, and no touch slept that must not. */
export async function proveComplete(destination: RamFile, pages: number): Promise<Figures> {
  await destination.do(`await phase ${PHASE.complete} ${PATIENCE_MS - 5_000}`);
  const figures = await destination.figures("stats");
  assert.deepEqual(
    [figures.missing_pages, figures.postcopy_pages, figures.duplicate_pages, figures.nowait_slept],
    [0, pages, 0, 0],
    JSON.stringify(figures),
  );
  return figures;
}
