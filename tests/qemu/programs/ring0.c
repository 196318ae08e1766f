// SPDX-License-Identifier: Apache-2.0
/*
 * ring0.c - a guest that is nothing but a program, and proves its own memory: for a KVM that runs no Linux.
 *
 * Words, lines on the console, stamps and power button are as the Linux guest's (guest_init.c), of memory alone; and:
 *
 *     gyges.cpus=N    each has a part of the pages; 1 or 2
 *     gyges.ring=3    where a KVM that emulates ring 0 lets memory be touched by the CPU itself; gyges.rate must be 0
 *
 * Which version a page must have is in a table, which is memory too: an entry that is damaged does not fit its page.
 */
#include "guest.h"
#include "ring0.h"

#define BEAT_MS 50u
#define SLICES (1000u / TICK_MS)
#define LATE_MS 100u /* what was lost is not made up for */

struct worker {
	unsigned int cpu;
	uint32_t first; /* page */
	uint32_t pages;
	uint32_t rate; /* a second; 0: all it can */
	uint32_t mask; /* a power of two, less one, that has them all */
	uint32_t place; /* in this pass's order */
	uint32_t steps; /* of this pass */
	uint32_t due;
	uint32_t left; /* to do in this slice */
	uint32_t owed; /* parts of a page */
	struct clock clock;
	volatile uint64_t passes;
	volatile uint64_t verified;
	volatile bool finished;
};

/* ring0.ld */
extern char ring0_end[];

static struct worker workers[MAX_CPUS];
static uint32_t worker_count = 1;
static uint32_t *versions;
static char *memory;
static volatile bool ending;
static bool in_ring3;
static _Atomic uint64_t corrupt;

static uint64_t *page_at(uint32_t page)
{
	return (uint64_t *)(memory + (uint64_t)page * PAGE);
}

static void check_page(uint32_t page)
{
	struct stamp got, want = { .page = page, .version = versions[page] };
	enum damage damage = stamp_check(page_at(page), want, &got);

	if (damage == WHOLE)
		return;
	corrupt++;
	complain("CORRUPT page=%lu want=%lu got=%lu %s", want.page, want.version, got.version, damage_name(damage));
}

static void rewrite_page(uint32_t page)
{
	versions[page]++;
	stamp_write(page_at(page), (struct stamp){ page, versions[page] });
}

/* A step in an order that comes to each number up to the mask once, without a pattern that a prefetch could meet. */
static void step(struct worker *worker)
{
	worker->place = (worker->place * 1664525u + 1013904223u) & worker->mask;
	if (worker->place < worker->pages) {
		check_page(worker->first + worker->place);
		rewrite_page(worker->first + worker->place);
		worker->verified++;
		worker->left--;
	}
	if (++worker->steps > worker->mask) {
		worker->steps = 0;
		worker->passes++;
	}
}

static void take_slice(struct worker *worker)
{
	uint32_t now = worker->clock.ms;

	if ((int32_t)(now - worker->due) < 0)
		return;
	worker->due = now - worker->due > LATE_MS ? now : worker->due + TICK_MS;
	worker->owed += worker->rate;
	worker->left = worker->owed / SLICES;
	worker->owed %= SLICES;
}

static void beat(const char *word, uint64_t n)
{
	uint64_t passes = UINT64_MAX, verified = 0, ms = workers[0].clock.ms;

	for (unsigned int i = 0; i < worker_count; i++) {
		passes = workers[i].passes < passes ? workers[i].passes : passes;
		verified += workers[i].verified;
	}
	say("%s %lu %lu passes=%lu verified=%lu corrupt=%lu", word, n, ms, passes, verified, corrupt);
}

/* What the first CPU does besides, from time to time. */
static void look_after(uint32_t now)
{
	static uint64_t n;
	static uint32_t due;

	if (n && (int32_t)(now - due) < 0)
		return;
	due = n && now - due < BEAT_MS ? due + BEAT_MS : now + BEAT_MS;
	beat("HB", ++n);
	if (!machine_button())
		return;
	ending = true;
	for (unsigned int i = 1; i < worker_count; i++)
		while (!workers[i].finished)
			__builtin_ia32_pause();
	for (uint32_t page = 0; page < workers[worker_count - 1].first + workers[worker_count - 1].pages; page++)
		check_page(page);
	beat("END", n + 1);
	machine_off();
}

static void work(struct worker *worker)
{
	clock_read(&worker->clock);
	worker->clock.ms = worker->due = 0;
	if (!in_ring3)
		machine_ticks();
	while (!ending) {
		clock_read(&worker->clock);
		if (worker->cpu == 0)
			look_after(worker->clock.ms);
		take_slice(worker);
		if (worker->rate && !worker->left)
			machine_wait();
		else
			step(worker);
	}
	worker->finished = true;
}

/* ---- start ---- */

/* The number behind `key` among `words`. */
static uint32_t option(const char *words, const char *key, uint32_t otherwise)
{
	uint32_t value = 0;
	unsigned int n;

	for (; *words; words++) {
		for (n = 0; key[n] && words[n] == key[n]; n++)
			;
		if (key[n])
			continue;
		for (words += n; *words >= '0' && *words <= '9'; words++)
			value = value * 10 + (uint32_t)(*words - '0');
		return *words == 'G' ? value << 30 : *words == 'M' ? value << 20 : *words == 'K' ? value << 10 : value;
	}
	return otherwise;
}

static char *page_after(char *at)
{
	return (char *)(((uintptr_t)at + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
}

static void prepare(struct worker *worker, uint32_t first, uint32_t pages, uint32_t rate)
{
	worker->first = first;
	worker->pages = pages;
	worker->rate = rate;
	while (worker->mask + 1 < pages)
		worker->mask = worker->mask << 1 | 1;
}

void first_main(const struct multiboot *boot)
{
	const char *words = (const char *)(uintptr_t)boot->words;
	uint32_t pages = option(words, "gyges.ws=", 64 << 20) / PAGE;
	uint32_t rate = option(words, "gyges.rate=", 0);

	machine_start();
	worker_count = option(words, "gyges.cpus=", 1);
	in_ring3 = option(words, "gyges.ring=", 0) == 3;
	if (worker_count > MAX_CPUS || (in_ring3 && rate))
		die("CPUs, and a rate in ring 0 only");
	if (in_ring3)
		machine_to_ring3();
	versions = (uint32_t *)page_after(ring0_end);
	memory = page_after((char *)(versions + pages));
	/* Firmware has its tables in the last of memory. */
	if ((uintptr_t)memory + (uint64_t)pages * PAGE > (uint64_t)boot->upper_kib << 10)
		die("not enough memory for the working set");
	for (uint32_t i = 0; i < worker_count; i++) {
		uint32_t first = pages / worker_count * i;

		workers[i].cpu = i;
		prepare(&workers[i], first, i + 1 < worker_count ? pages / worker_count : pages - first, rate / worker_count);
	}
	for (uint32_t page = 0; page < pages; page++) {
		versions[page] = 0;
		stamp_write(page_at(page), (struct stamp){ page, 0 });
	}
	if (worker_count > 1)
		machine_start_other();
	say("START pages=%lu workers=%lu", (uint64_t)pages, (uint64_t)worker_count);
	work(&workers[0]);
}

void other_main(void)
{
	if (in_ring3)
		machine_to_ring3();
	work(&workers[1]);
	/* To halt is for ring 0. */
	for (;;)
		__builtin_ia32_pause();
}
