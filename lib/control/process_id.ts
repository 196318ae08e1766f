/** Processes named beyond doubt: a pid alone may be another process by now. */

export interface ProcessId {
  pid: number;
  /** Clock ticks from boot to the process's start, field 22 of /proc/PID/stat. */
  startTicks: number;
}

/** Start of `pid` in clock ticks since boot; null when there is no such process, or only its zombie. */
export function startTicksOf(pid: number): number | null {
  let stat: string;
  try {
    stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return null;
    // ESRCH: the process ended between open and read.
    if (cause instanceof Error && cause.message.includes("os error 3)")) return null;
    throw new Error(`Cannot read the start time of process ${pid}`, { cause });
  }
  // The command name may hold spaces and brackets, so fields count from the last bracket; the first is the state.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  if (fields[0] === "Z" || fields[0] === "X") return null;
  const ticks = Number(fields[19]);
  return Number.isSafeInteger(ticks) ? ticks : null;
}

export function isAlive(process: ProcessId): boolean {
  return startTicksOf(process.pid) === process.startTicks;
}

export function thisProcess(): ProcessId {
  const startTicks = startTicksOf(Deno.pid);
  if (startTicks === null) throw new Error("Cannot read /proc/self/stat: mount /proc");
  return { pid: Deno.pid, startTicks };
}
