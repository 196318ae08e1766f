// SPDX-License-Identifier: Apache-2.0
/* spin.c - see spin.h. */
#include "spin.h"

#include <sched.h>
#include <stdatomic.h>

static _Atomic(uint32_t) pretended;

static uint32_t cpus(void)
{
	uint32_t n = atomic_load(&pretended);
	cpu_set_t set;

	if (n)
		return n;
	/* More CPUs than a set holds are enough. */
	return sched_getaffinity(0, sizeof(set), &set) ? SPIN_CPUS : (uint32_t)CPU_COUNT(&set);
}

uint64_t spin_ns(uint64_t most_ns)
{
	return cpus() >= SPIN_CPUS ? most_ns : 0;
}

void spin_pretend_cpus(uint32_t cpus)
{
	atomic_store(&pretended, cpus);
}
