/** What a kernel says when something is wrong with it. */

const TROUBLE = [
  /\bBUG:/,
  /\bWARNING:/,
  /\bOops\b/,
  /general protection fault/,
  /Kernel panic/,
  /lockdep|possible (recursive locking|circular locking|irq lock inversion|deadlock)/i,
  /suspicious RCU usage|rcu.*(detected|self-detected) stall/i,
  /refcount_t/,
  /blocked for more than \d+ seconds/,
  /KASAN|KFENCE|UBSAN|kmemleak/,
  /Bad page state/,
  /^lab: insmod/,
];

/** Lines of a kernel log that fail a test. */
export function troubleIn(log: string): string[] {
  return log.split("\n").filter((line) => TROUBLE.some((pattern) => pattern.test(line)));
}

/** Bits of RFLAGS that are the same on every processor, whatever it executes, and what they are. */
const FIXED_FLAGS = 0xffc0802a;
const FIXED_VALUE = 0x2;

/**
 * Whether registers in `log` are such as no processor can have: then it is the emulation that is broken, and no code that it
 * ran. Seen of QEMU 7.2 with nested guests, as a double fault at a harmless instruction with bits of another register in the
 * flags.
 */
export function isImpossible(log: string): boolean {
  return [...log.matchAll(/\bE?FLAGS: ([0-9a-f]{8})\b/g)].some(([, flags = ""]) =>
    ((parseInt(flags, 16) & FIXED_FLAGS) >>> 0) !== FIXED_VALUE
  );
}
