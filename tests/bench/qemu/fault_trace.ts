/** How long QEMU's post-copy took from the fault that its fault thread read to the page in its place, by its own trace. */

/** Arguments of a destination that trace its faults into the file `path`. */
export function traceArguments(path: string): string[] {
  const events = ["postcopy_ram_fault_thread_request", "postcopy_page_req_del"];
  return ["-msg", "timestamp=on", "-D", path, ...events.flatMap((name) => ["-trace", name])];
}

const REQUEST = /^\d+@(\d+\.\d+):postcopy_ram_fault_thread_request Request for HVA=(0x[0-9a-f]+)/;
const PLACED = /^\d+@(\d+\.\d+):postcopy_page_req_del resolved page req (0x[0-9a-f]+)/;

/** Microseconds of each demand fault in the trace at `path`. */
export function faultLatenciesUs(path: string): number[] {
  const asked = new Map<string, number>();
  const latencies: number[] = [];
  for (const line of Deno.readTextFileSync(path).split("\n")) {
    const request = REQUEST.exec(line);
    if (request) {
      const [, time = "", page = ""] = request;
      // A page may be asked for by two threads: the first has waited longest.
      if (!asked.has(page)) asked.set(page, Number(time));
    }
    const placed = PLACED.exec(line);
    const since = placed ? asked.get(placed[2] ?? "") : undefined;
    if (!placed || since === undefined) continue;
    asked.delete(placed[2] ?? "");
    latencies.push((Number(placed[1]) - since) * 1e6);
  }
  return latencies;
}
