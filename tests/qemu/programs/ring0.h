/* SPDX-License-Identifier: Apache-2.0 */
/* ring0.h - what the ring-0 guest has of the machine that it runs on. Its words on the console are guest.h's. */
#ifndef RING0_H
#define RING0_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_CPUS 2u
#define TICK_MS 10u

struct multiboot {
	uint32_t flags;
	uint32_t lower_kib;
	uint32_t upper_kib; /* above 1 MiB */
	uint32_t boot_device;
	uint32_t words; /* where they are; the program's own name first */
};

/* Milliseconds of the machine, which stand still while it is stopped; for one CPU. */
struct clock {
	uint32_t last;
	uint32_t rest;
	uint32_t ms;
};

/* Console, power button and interrupts, once. */
void machine_start(void);
/* From now on this CPU's machine_wait() ends every TICK_MS. */
void machine_ticks(void);
/* Sleeps until the next tick, or a little less; in ring 0 only. */
void machine_wait(void);
/* From now on this CPU is in ring 3, where it may do all that is here but ticks and waits. */
void machine_to_ring3(void);
/* Has the other CPU begin in other_main(). */
void machine_start_other(void);
bool machine_button(void);
void machine_off(void) __attribute__((noreturn));

/* To be called once in four seconds at least. */
void clock_read(struct clock *clock);

/* In ring0_start.S they are called, or named. */
void first_main(const struct multiboot *boot);
void other_main(void);
void trap(void) __attribute__((noreturn));

#endif
