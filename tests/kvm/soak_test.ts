/** The short form of `deno task soak`, with a seed of its own each day: what it prints repeats a failure. */
import { kvmTest } from "../helpers/kvm.ts";
import { closingLine, soak } from "../soak.ts";

kvmTest("30 migrations in a row, mixed by a seed, leave no damage and nothing behind", async () => {
  const seed = Math.floor(Date.now() / 86_400_000);
  const lines: string[] = [];
  const options = { seed, n: 30, say: (line: string) => void lines.push(line) };
  try {
    console.log(closingLine(options, await soak(options)));
  } catch (error) {
    console.log([`soak: failed with --seed ${seed}:`, ...lines].join("\n"));
    throw error;
  }
});
