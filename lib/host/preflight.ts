/** Refuses early, with the remedy, what this host cannot do. */
import { PreflightError } from "../errors.ts";
import { formatBytes } from "../units.ts";
import { checksOf } from "./doctor.ts";
import { hostFacts } from "./native.ts";

/** Throws PreflightError for the first thing without which no micro-VM can run or be received here. */
export function requireHost(): void {
  const lack = checksOf(hostFacts()).find(({ status }) => status === "fail");
  if (!lack) return;
  throw new PreflightError(`This host cannot hold a guest: ${lack.name}: ${lack.found}, needed: ${lack.needed}`, {
    check: lack.name,
    remedy: lack.remedy ?? "run gyges doctor",
  });
}

/** Throws PreflightError when a guest of `bytes` would drive this host out of memory: all of it may come to be used. */
export function requireMemory(bytes: number): void {
  const { available } = Deno.systemMemoryInfo();
  if (bytes <= available) return;
  throw new PreflightError(
    `Cannot hold a guest with ${formatBytes(bytes)} of RAM as this host has ${formatBytes(available)} available`,
    { check: "memory", remedy: "free memory, add swap, or use another host" },
  );
}
