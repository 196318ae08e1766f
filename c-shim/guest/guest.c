// SPDX-License-Identifier: Apache-2.0
/*
 * guest.c - the guest's program: it runs in ring 3 on every vCPU, each on pages of its own, and proves its
 * memory by touching it: verify a page against the shadow table, perhaps rewrite it, measure the time since
 * the touch before.
 *
 * What must survive a migration is spread on purpose: position and random state live in registers and on the
 * stack, a second count in a vector register, the account's address in the segment base.
 */
#include "../hist.h"
#include "guest_abi.h"
#include "stamp.h"

#define PATROL_EVERY 16u
#define CORRUPT_RING_EVERY 1000u

/* The compiler must keep the order of stores around a rewrite; the CPU does, on x86. */
#define barrier() __asm__ volatile("" ::: "memory")

struct guest {
	const volatile struct gy_guest_boot *boot;
	volatile struct gy_guest_account *account;
	volatile uint32_t *shadow;
	uint64_t vcpu;
	uint64_t rng;
	uint64_t touches;
	uint64_t sequential;		/* next page of the slice in sequential order */
	uint64_t patrol;
	uint64_t last_tsc;
	uint64_t slept_ns;		/* since last_tsc, asked for */
	uint64_t batch;			/* touches in this batch */
	uint64_t due_tsc;		/* when the next batch may start */
};

static inline uint64_t rdtsc(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

static inline void ring(uint32_t reg, uint64_t value)
{
	__asm__ volatile("movq %0, (%1)" :: "r"(value), "r"(GY_DOORBELL_VA + reg) : "memory");
}

static inline uint64_t idle(uint64_t us)
{
	uint64_t slept_ns;

	__asm__ volatile("movq (%1), %0"
			 : "=r"(slept_ns) : "r"(GY_DOORBELL_VA + GY_DOORBELL_IDLE + 8 * us) : "memory");
	return slept_ns;
}

__attribute__((noreturn))
static void fail(uint64_t failure)
{
	for (;;)
		ring(GY_DOORBELL_FAILED, failure);
}

static inline uint64_t to_ns(const struct guest *g, uint64_t cycles)
{
	return (uint64_t)((unsigned __int128)cycles * g->boot->ns_per_cycle >> 32);
}

static inline uint64_t next_random(struct guest *g)
{
	g->rng ^= g->rng << 13;
	g->rng ^= g->rng >> 7;
	g->rng ^= g->rng << 17;
	return g->rng;
}

/* ---- pages ---- */

static inline volatile uint64_t *page_words(uint64_t page)
{
	return (volatile uint64_t *)(page * GY_PAGE_BYTES);
}

static inline volatile uint64_t *line_words(uint64_t page, uint32_t line)
{
	return page_words(page) + line * GY_STAMP_LINE_WORDS;
}

static inline uint64_t slice_page(const struct guest *g, uint64_t index)
{
	return g->boot->first_page + index * g->boot->vcpus + g->vcpu;
}

/* Makes all of the page what @version should look like. */
static void stamp_whole(uint64_t page, uint32_t version)
{
	for (uint32_t line = 0; line < GY_STAMP_LINES; line++)
		gy_stamp_line_write(line_words(page, line), page, gy_stamp_line_version(version, line), line);
}

static inline void begin(struct guest *g, uint64_t page)
{
	g->account->inflight = page + 1;
	barrier();
}

static inline void end(struct guest *g, uint64_t page, uint32_t version)
{
	barrier();
	g->shadow[page] = version;
}

static void fill(struct guest *g, uint64_t page)
{
	begin(g, page);
	stamp_whole(page, 1);
	end(g, page, 1);
	g->account->filled_pages++;
	g->account->inflight = 0;
}

static void rewrite(struct guest *g, uint64_t page)
{
	uint32_t version = g->shadow[page] + 1;
	uint32_t line = gy_stamp_body_line(version);

	begin(g, page);
	if (version) {
		gy_stamp_line_write(line_words(page, line), page, version, line);
		gy_stamp_line_write(line_words(page, GY_STAMP_TAIL), page, version, GY_STAMP_TAIL);
		gy_stamp_line_write(line_words(page, 0), page, version, 0);
	} else {
		version = 1;
		stamp_whole(page, version);
		g->account->wraps++;
	}
	end(g, page, version);
	g->account->written_pages++;
	g->account->inflight = 0;
}

static inline int page_good(const struct guest *g, uint64_t page)
{
	uint32_t version = g->shadow[page];
	uint32_t line = gy_stamp_body_line(version);
	uint32_t line_version = gy_stamp_line_version(version, line);

	return version && gy_stamp_line_good(line_words(page, 0), page, version, 0) &&
	       gy_stamp_line_good(line_words(page, line), page, line_version, line) &&
	       gy_stamp_line_good(line_words(page, GY_STAMP_TAIL), page, version, GY_STAMP_TAIL);
}

/* Counts a bad page once: it is mended, or every later touch would count it again. */
static __attribute__((noinline)) void corrupt(struct guest *g, uint64_t page)
{
	volatile struct gy_guest_account *account = g->account;
	uint32_t version = g->shadow[page];

	if (!account->corrupt)
		account->first_corrupt_page = page;
	account->corrupt++;
	if (account->corrupt == 1 || account->corrupt % CORRUPT_RING_EVERY == 0)
		ring(GY_DOORBELL_CORRUPT, account->corrupt);
	begin(g, page);
	stamp_whole(page, version ? version : 1);
	end(g, page, version ? version : 1);
	account->inflight = 0;
}

/* ---- which page next ---- */

static inline uint64_t below(uint64_t random, uint64_t limit)
{
	return (random >> 32) * limit >> 32;
}

/* Octaves of ranks are equally likely, as in Zipf's law; the multiplier spreads neighbours in rank. */
static uint64_t choose_zipf(struct guest *g)
{
	uint64_t pages = g->boot->slice_pages;
	uint64_t random = next_random(g);
	uint64_t octave = 1ull << below(random << 32, 64u - (uint64_t)__builtin_clzll(pages));
	uint64_t rank = octave + below(random, octave) - 1;

	return rank % pages * g->boot->scatter % pages;
}

static inline uint64_t choose(struct guest *g)
{
	uint64_t pages = g->boot->slice_pages;

	switch (g->boot->workload) {
	case GY_WORKLOAD_UNIFORM:
		return below(next_random(g), pages);
	case GY_WORKLOAD_ZIPF:
		return choose_zipf(g);
	default:
		g->sequential = g->sequential + 1 < pages ? g->sequential + 1 : 0;
		return g->sequential;
	}
}

static inline uint64_t choose_patrol(struct guest *g)
{
	g->patrol = g->patrol + 1 < g->boot->slice_pages ? g->patrol + 1 : 0;
	return g->patrol;
}

/* ---- time ---- */

static __attribute__((noinline)) void forget_stalls(volatile struct gy_hist *stall)
{
	stall->n = 0;
	stall->sum = 0;
	stall->max = 0;
	for (uint32_t i = 0; i < GY_HIST_BUCKETS; i++)
		stall->bucket[i] = 0;
}

/*
 * A request to forget is obeyed before the gap is counted: the gap may be the migration's that the request was
 * made for. Requests only count upwards; an older boot page is not a new request.
 */
static inline void measure(struct guest *g)
{
	volatile struct gy_guest_account *account = g->account;
	uint32_t generation = g->boot->stall_generation;
	uint64_t now, ns;

	if ((int32_t)(generation - account->stall_generation) > 0) {
		forget_stalls(&account->stall);
		account->stall_generation = generation;
	}
	now = rdtsc();
	if (now < g->last_tsc) {
		account->clock_backsteps++;
	} else {
		ns = to_ns(g, now - g->last_tsc);
		ns = ns > g->slept_ns ? ns - g->slept_ns : 0;
		account->stall.bucket[gy_hist_index(ns)]++;
		account->stall.sum += ns;
		account->stall.n++;
		if (ns > account->stall.max)
			account->stall.max = ns;
	}
	g->last_tsc = now;
	g->slept_ns = 0;
}

static void pace(struct guest *g)
{
	uint64_t now = rdtsc();
	uint64_t us;

	g->batch = 0;
	g->due_tsc += g->boot->batch_cycles;
	if (now > g->due_tsc + g->boot->catch_up_cycles)
		g->due_tsc = now;
	for (; now < g->due_tsc; now = rdtsc()) {
		us = to_ns(g, g->due_tsc - now) / 1000;
		if (!us)
			return;
		g->slept_ns += idle(us < GY_DOORBELL_IDLE_MAX_US ? us : GY_DOORBELL_IDLE_MAX_US);
	}
}

/* ---- the touch ---- */

/*
 * Three counts of the same thing, each raised by one and never written anew: on the stack, in the account and
 * in a vector register. One that is lost on the way stays wrong.
 */
static inline void start_counts(void)
{
	__asm__ volatile("movq %0, %%xmm6\n\tpxor %%xmm7, %%xmm7" :: "r"(1ull));
}

static inline void count(struct guest *g)
{
	g->touches++;
	/* One instruction: a value read before a stop and stored after it would paper over a lost count. */
	__asm__ volatile("incq %0" : "+m"(g->account->touches));
	__asm__ volatile("paddq %xmm6, %xmm7");
}

/* A machine state that is not the one that was saved shows here, even if memory is right. */
static inline void check_registers(const struct guest *g)
{
	uint64_t xmm, vcpu;

	__asm__ volatile("movq %%xmm7, %0" : "=r"(xmm));
	__asm__ volatile("movq %%gs:%c1, %0"
			 : "=r"(vcpu) : "i"(__builtin_offsetof(struct gy_guest_account, vcpu)));
	if (g->account->touches != g->touches)
		fail(GY_GUEST_FAILURE_REGISTERS);
	if (xmm != g->touches)
		fail(GY_GUEST_FAILURE_XMM);
	if (vcpu != g->vcpu)
		fail(GY_GUEST_FAILURE_GS);
}

static inline void touch(struct guest *g)
{
	int patrol = g->touches % PATROL_EVERY == PATROL_EVERY - 1;
	uint64_t page = slice_page(g, patrol ? choose_patrol(g) : choose(g));

	check_registers(g);
	measure(g);
	if (!page_good(g, page))
		corrupt(g, page);
	if (!patrol && next_random(g) >> 54 < g->boot->write_per_1024)
		rewrite(g, page);
	count(g);
}

static void fill_slice(struct guest *g)
{
	for (uint64_t i = 0; i < g->boot->slice_pages; i++)
		fill(g, slice_page(g, i));
}

void gy_guest_main(uint64_t vcpu) __attribute__((section(".text.entry"), noreturn));

/* Entered with the stack ready and the vCPU's number in rdi. */
void gy_guest_main(uint64_t vcpu)
{
	struct guest g = { .vcpu = vcpu };

	g.boot = (const volatile struct gy_guest_boot *)(uint64_t)(GY_GUEST_BOOT_PAGE * GY_PAGE_BYTES);
	g.account = (volatile struct gy_guest_account *)gy_guest_account_va(vcpu);
	if (g.boot->magic != GY_GUEST_BOOT_MAGIC)
		fail(GY_GUEST_FAILURE_BOOT_PAGE);
	g.shadow = (volatile uint32_t *)g.boot->shadow_va;
	/* xorshift must not start at 0, and the vCPUs not at the same place. */
	g.rng = gy_stamp_mix(g.boot->seed, (uint32_t)vcpu, 1) | 1;
	fill_slice(&g);
	ring(GY_DOORBELL_BOOTED, 1);
	start_counts();
	g.last_tsc = rdtsc();
	g.due_tsc = g.last_tsc;
	for (;;) {
		touch(&g);
		if (g.boot->batch_touches && ++g.batch >= g.boot->batch_touches)
			pace(&g);
	}
}
