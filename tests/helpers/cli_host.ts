/** A host for tests: the built file with a runtime directory of its own, and an end to all that it started. */
import assert from "node:assert/strict";
import type { GygesEvent } from "../../lib/events.ts";
import { parseEvent } from "../../lib/monitor/summary.ts";
import { run, type RunResult } from "./binary.ts";
import { isAlive } from "./proc.ts";

/** The built file with a runtime directory of its own; whatever it started in the background is ended. */
export class Host implements AsyncDisposable {
  readonly base = Deno.makeTempDirSync({ prefix: "gyges-vm-" });
  readonly pids: number[] = [];
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
  }

  get env(): Record<string, string> {
    return { ...Deno.env.toObject(), GYGES_RUNTIME_DIR: this.base };
  }

  gyges(line: string): Promise<RunResult> {
    return run(this.#path, line.split(" "), { env: this.env });
  }

  /** Starts `line` and does not wait; stdout is for the caller to read. */
  spawn(line: string): Deno.ChildProcess {
    const options = { args: line.split(" "), env: this.env, stdin: "null", stdout: "piped", stderr: "null" } as const;
    const child = new Deno.Command(this.#path, options).spawn();
    this.pids.push(child.pid);
    return child;
  }

  /** Runs `line` with `--json`, expects code 0 and one event of `type`. */
  async ask<T extends GygesEvent["type"]>(line: string, type: T): Promise<Extract<GygesEvent, { type: T }>> {
    const { code, stdout, stderr } = await this.gyges(`${line} --json`);
    assert.deepEqual([code, stderr], [0, ""], stdout);
    const event = parseEvent(JSON.parse(stdout));
    assert.ok(isOf(event, type), stdout);
    return event;
  }

  async start(name: string): Promise<number> {
    const { code, stdout, stderr } = await this.gyges(`vm start ${name} --ram 32MiB --rate 20000 --detach`);
    assert.deepEqual([code, stderr], [0, ""]);
    const match = /^(\S+) (\d+)\n$/.exec(stdout);
    assert.equal(match?.[1], name);
    const pid = Number(match?.[2]);
    this.pids.push(pid);
    return pid;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const pid of this.pids) {
      while (isAlive(pid)) {
        Deno.kill(pid, "SIGKILL");
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    }
    Deno.removeSync(this.base, { recursive: true });
  }
}

function isOf<T extends GygesEvent["type"]>(event: GygesEvent, type: T): event is Extract<GygesEvent, { type: T }> {
  return event.type === type;
}

export async function until(what: string, holds: () => boolean): Promise<void> {
  const deadline = performance.now() + 10_000;
  while (!holds()) {
    assert.ok(performance.now() < deadline, `${what}: not within 10 s`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
