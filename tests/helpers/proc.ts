/** What a process holds, as the kernel counts it, and whether it lives. */

export interface Held {
  fds: number;
  threads: number;
  /** Resident memory that is not shared: without guest RAM. */
  privateMib: number;
}

/** Throws Deno.errors.NotFound when the process is gone. */
export function heldBy(pid: number): Held {
  const status = Deno.readTextFileSync(`/proc/${pid}/status`);
  const kib = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+)`, "m").exec(status)?.[1]);
  return {
    fds: [...Deno.readDirSync(`/proc/${pid}/fd`)].length,
    threads: kib("Threads"),
    privateMib: kib("RssAnon") / 1024,
  };
}

/** Whether process `pid` lives; a zombie of the test's own machine does not. */
export function isAlive(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/.test(Deno.readTextFileSync(`/proc/${pid}/stat`));
  } catch (error) {
    if (error instanceof Error) return false;
    throw error;
  }
}

/** Children of this process that nobody has waited for. */
export function zombies(): string[] {
  const children = Deno.readTextFileSync(`/proc/${Deno.pid}/task/${Deno.pid}/children`).trim().split(" ");
  return children.filter((pid) => {
    try {
      return pid !== "" && /^\d+ \(.*\) Z/.test(Deno.readTextFileSync(`/proc/${pid}/stat`));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return false;
      throw error;
    }
  });
}
