// SPDX-License-Identifier: Apache-2.0
/*
 * guest_visit.c - memory that is taken, stamped, checked and given back, again and again: what a balloon takes from this
 * guest was used before, and is used again when the balloon gives it back.
 */
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>

#include "guest.h"

#define PAUSE_NS 100000000ull

static uint64_t pages;
static _Atomic uint64_t visits;
static pthread_t thread;
static atomic_bool ending;

static void visit(void)
{
	uint64_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct stamp got;

	if (memory == MAP_FAILED)
		die("memory for a while");
	for (uint64_t page = 0; page < pages; page++)
		stamp_write(memory + page * PAGE_WORDS, (struct stamp){ page, visits });
	for (uint64_t page = 0; page < pages; page++) {
		enum damage damage = stamp_check(memory + page * PAGE_WORDS, (struct stamp){ page, visits }, &got);

		if (damage != WHOLE)
			memory_damaged("CORRUPT visit=%lu page=%lu %s", visits, page, damage_name(damage));
	}
	/* So that nobody takes them for pages that are kept. */
	for (uint64_t page = 0; page < pages; page++)
		memory[page * PAGE_WORDS] = 0;
	munmap(memory, pages * PAGE);
	visits++;
}

static void *work(void *unused)
{
	while (!ending) {
		visit();
		sleep_until(now_ns() + PAUSE_NS);
	}
	return unused;
}

void visits_start(uint64_t bytes)
{
	pages = bytes / PAGE;
	if (pthread_create(&thread, NULL, work, NULL))
		die("pthread_create");
}

void visits_finish(void)
{
	ending = true;
	pthread_join(thread, NULL);
}

uint64_t visits_done(void)
{
	return visits;
}
