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
