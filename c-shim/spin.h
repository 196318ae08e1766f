/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spin.h - how long a thread that a vCPU waits for looks again before it sleeps.
 *
 * A wake-up on another CPU costs ten times a hot look. But the thread is an urgent one: while it looks hardly anybody else
 * runs on its CPU, neither a vCPU nor prefetch, so it looks again only where there are CPUs to spare, or while nobody else
 * wants one.
 */
#ifndef GY_SPIN_H
#define GY_SPIN_H

#include <stdint.h>

/* As many CPUs: a guest's, one that answers its faults, and two for prefetch. */
#define SPIN_CPUS 4

/* @most_ns, or 0 where there are fewer CPUs for this thread. */
uint64_t spin_ns(uint64_t most_ns);
/* Tests and benches: as on a machine of so many CPUs, for threads that start from now on; 0: of this one's. */
void spin_pretend_cpus(uint32_t cpus);

#endif
