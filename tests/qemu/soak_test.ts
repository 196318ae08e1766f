/** The short form of `deno task soak qemu`, with a seed of its own each day: what it prints repeats a failure. */
import { GUESTS, soakQemu } from "./soak.ts";

Deno.test("a guest of QEMU that moves back and forth, mixed by a seed, stays whole, and nothing is left behind", async () => {
  const seed = Math.floor(Date.now() / 86_400_000);
  const guest = GUESTS[seed % GUESTS.length];
  const lines: string[] = [];
  try {
    if (guest) console.log(await soakQemu(guest, { seed, n: 4, say: (line) => void lines.push(line) }));
  } catch (error) {
    console.log([`soak: failed with --seed ${seed}:`, JSON.stringify(guest), ...lines].join("\n"));
    throw error;
  }
});
