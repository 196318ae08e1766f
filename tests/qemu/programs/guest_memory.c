// SPDX-License-Identifier: Apache-2.0
/*
 * guest_memory.c - pages that are checked and rewritten in an order without a pattern, and a table of what they must say.
 *
 * The table is memory too, and may be damaged as well: a check word over each block of it is kept apart from it. It sums
 * up terms of one entry each, so that a changed entry costs two terms.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "guest.h"

#define BLOCK 512u /* entries that a check word covers */
#define SLICES 100ull /* a second: as often a paced worker looks at the clock */
#define SLICE_NS (1000000000ull / SLICES)
#define LATE_NS (10 * SLICE_NS) /* what was lost is not made up for */

struct worker {
	pthread_t thread;
	uint64_t first; /* page */
	uint64_t pages;
	uint64_t rate;
	uint64_t *versions; /* of page first + i */
	uint64_t *checks; /* of versions[BLOCK * i ...] */
	uint64_t key; /* of this pass's order */
	_Atomic uint64_t passes;
	_Atomic uint64_t verified;
};

static uint64_t *memory;
static struct worker *workers;
static int worker_count;
static atomic_bool ending;
static _Atomic uint64_t corrupt;

/* Never 0, so that a zeroed table does not fit zeroed check words. */
static uint64_t term(uint64_t entry, uint64_t version)
{
	return mix(entry << 32 ^ version) | 1;
}

static uint64_t block_sum(const struct worker *worker, uint64_t block)
{
	uint64_t sum = 0;

	for (uint64_t i = block * BLOCK; i < (block + 1) * BLOCK && i < worker->pages; i++)
		sum += term(i, worker->versions[i]);
	return sum;
}

static void check_block(struct worker *worker, uint64_t block)
{
	uint64_t sum = block_sum(worker, block);

	if (sum == worker->checks[block])
		return;
	corrupt++;
	complain("CORRUPT shadow=%lu want=%lx got=%lx", (worker->first + block * BLOCK) / BLOCK, worker->checks[block], sum);
	worker->checks[block] = sum;
}

static uint64_t *page_at(uint64_t page)
{
	return memory + page * PAGE_WORDS;
}

static void check_page(struct worker *worker, uint64_t i)
{
	struct stamp want = { .page = worker->first + i, .version = worker->versions[i] };
	struct stamp got;
	enum damage damage = stamp_check(page_at(want.page), want, &got);

	if (damage == WHOLE)
		return;
	corrupt++;
	complain("CORRUPT page=%lu want=%lu got=%lu %s", want.page, want.version, got.version, damage_name(damage));
}

static void rewrite_page(struct worker *worker, uint64_t i)
{
	uint64_t version = worker->versions[i];

	stamp_write(page_at(worker->first + i), (struct stamp){ worker->first + i, version + 1 });
	worker->checks[i / BLOCK] += term(i, version + 1) - term(i, version);
	worker->versions[i] = version + 1;
}

/* One to one on the numbers below 1 << bits, other for each key. */
static uint64_t scatter(uint64_t value, unsigned int bits, uint64_t key)
{
	uint64_t mask = (1ull << bits) - 1;

	for (int round = 0; round < 3; round++) {
		value = (value * (mix(key + (uint64_t)round) | 1) + key) & mask;
		value ^= value >> (bits / 2 + 1);
	}
	return value;
}

static unsigned int bits_for(uint64_t pages)
{
	unsigned int bits = 1;

	while (1ull << bits < pages)
		bits++;
	return bits;
}

/* Where a paced worker is: the end of its slice, and what it has still to do in it. */
struct pace {
	uint64_t due;
	uint64_t left;
};

static void keep_pace(struct pace *pace, uint64_t rate)
{
	while (rate && !pace->left) {
		pace->due += SLICE_NS;
		if (now_ns() > pace->due + LATE_NS)
			pace->due = now_ns();
		sleep_until(pace->due);
		/* What is less than a page a slice: so many slices of a second have one page more. */
		pace->left = rate / SLICES + (pace->due / SLICE_NS % SLICES < rate % SLICES);
	}
	pace->left--;
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct pace pace = { .due = now_ns() };
	unsigned int bits = bits_for(worker->pages);

	for (uint64_t pass = 1;; pass++) {
		worker->key = mix(worker->key + pass);
		for (uint64_t n = 0; n < 1ull << bits; n++) {
			uint64_t i = scatter(n, bits, worker->key);

			if (i >= worker->pages)
				continue;
			keep_pace(&pace, worker->rate);
			if (ending)
				return NULL;
			check_page(worker, i);
			rewrite_page(worker, i);
			if (++worker->verified % BLOCK == 0)
				check_block(worker, worker->verified / BLOCK % ((worker->pages + BLOCK - 1) / BLOCK));
		}
		worker->passes = pass;
	}
}

static void *reserve(uint64_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (memory == MAP_FAILED)
		die("memory for the working set");
	return memory;
}

static void prepare(struct worker *worker, uint64_t first, uint64_t pages, uint64_t rate)
{
	uint64_t blocks = (pages + BLOCK - 1) / BLOCK;

	worker->first = first;
	worker->pages = pages;
	worker->rate = rate;
	worker->versions = reserve(pages * 8);
	worker->checks = reserve(blocks * 8);
	worker->key = mix(first + 1);
	for (uint64_t i = 0; i < pages; i++)
		stamp_write(page_at(first + i), (struct stamp){ first + i, 0 });
	for (uint64_t block = 0; block < blocks; block++)
		worker->checks[block] = block_sum(worker, block);
}

void memory_start(uint64_t pages, uint64_t rate, int count)
{
	cpu_set_t cpu;

	memory = reserve(pages * PAGE);
	worker_count = count;
	workers = calloc((size_t)count, sizeof(*workers));
	if (!workers)
		die("calloc");
	for (int i = 0; i < count; i++) {
		uint64_t first = pages * (uint64_t)i / (uint64_t)count;

		prepare(&workers[i], first, pages * (uint64_t)(i + 1) / (uint64_t)count - first, rate / (uint64_t)count);
	}
	for (int i = 0; i < count; i++) {
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			die("pthread_create");
		CPU_ZERO(&cpu);
		CPU_SET(i, &cpu);
		if (pthread_setaffinity_np(workers[i].thread, sizeof(cpu), &cpu))
			die("pthread_setaffinity_np");
	}
}

void memory_finish(void)
{
	ending = true;
	for (int i = 0; i < worker_count; i++)
		pthread_join(workers[i].thread, NULL);
	for (int i = 0; i < worker_count; i++) {
		struct worker *worker = &workers[i];

		for (uint64_t page = 0; page < worker->pages; page++)
			check_page(worker, page);
		for (uint64_t block = 0; block * BLOCK < worker->pages; block++)
			check_block(worker, block);
		worker->passes++;
		worker->verified += worker->pages;
	}
}

uint64_t memory_passes(void)
{
	uint64_t least = UINT64_MAX;

	for (int i = 0; i < worker_count; i++)
		if (workers[i].passes < least)
			least = workers[i].passes;
	return least;
}

uint64_t memory_verified(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < worker_count; i++)
		sum += workers[i].verified;
	return sum;
}

void memory_damaged(const char *format, ...)
{
	va_list list;

	corrupt++;
	va_start(list, format);
	vcomplain(format, list);
	va_end(list);
}

uint64_t memory_corrupt(void)
{
	return corrupt;
}
