// SPDX-License-Identifier: Apache-2.0
/* pacer_test.c - the link that is not there: its rate, who goes first, and that nobody stays behind when it stops. */
#include <stdatomic.h>

#include "check.h"
#include "clock.h"
#include "gyges.h"
#include "pacer.h"
#include "thread.h"

#define SENDERS 3u
#define PIECE_BYTES (PACER_PIECE_PAGES * GY_PAGE_BYTES)

/* How many of the senders send demand. */
enum demand { NO_DEMAND, SOME_DEMAND, ALL_DEMAND = SENDERS };

struct senders {
	struct pacer pacer;
	pthread_t thread[SENDERS];
	_Atomic(uint32_t) demand;	/* of those that have not begun */
	_Atomic(bool) over;
	_Atomic(uint64_t) bytes;
	_Atomic(uint32_t) through;
};

static void *send_pieces(void *arg)
{
	struct senders *senders = arg;
	uint32_t left = atomic_load(&senders->demand);
	bool demand;

	while (left && !atomic_compare_exchange_weak(&senders->demand, &left, left - 1))
		;
	demand = left;
	while (!atomic_load(&senders->over)) {
		pacer_enter(&senders->pacer, PIECE_BYTES, demand);
		atomic_fetch_add(&senders->bytes, PIECE_BYTES);
	}
	return NULL;
}

static void start(struct senders *senders, uint64_t rate, enum demand demand)
{
	*senders = (struct senders){ .demand = demand };
	CHECK(!pacer_init(&senders->pacer, rate));
	for (uint32_t i = 0; i < SENDERS; i++)
		CHECK(!thread_start(&senders->thread[i], "sender", send_pieces, senders));
}

static void stop(struct senders *senders)
{
	atomic_store(&senders->over, true);
	pacer_stop(&senders->pacer);
	for (uint32_t i = 0; i < SENDERS; i++)
		pthread_join(senders->thread[i], NULL);
	pacer_destroy(&senders->pacer);
}

/* Never faster than the link, and not much slower: a slow test host costs time, so below is loose. */
static void rate_is_held(uint64_t rate, enum demand demand)
{
	struct senders senders;
	uint64_t began, bytes;
	double share;

	/* Before the first piece: this thread may be the last of them to run. */
	began = now_ns();
	start(&senders, rate, demand);
	nap_ms(500);
	bytes = atomic_load(&senders.bytes);
	share = (double)bytes / ((double)rate * (double)(now_ns() - began) / 1e9);
	stop(&senders);
	printf("pacer_test: %lu MB/s, %u of %u demand: %.1f %% of it sent\n", rate / 1000000, (unsigned int)demand, SENDERS,
	       share * 100);
	/* The credit, the piece that starts as the last one ends, and demand that does not wait for that. */
	CHECK(share < 1.01 + (double)((demand ? 2 : 1) * PIECE_BYTES + rate / 500) / ((double)rate / 2));
	CHECK(share > 0.8);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

#define SAMPLES 60u

/* Waits of small sends among senders that saturate the link; the median. */
static uint64_t median_wait(uint64_t rate, bool demand)
{
	uint64_t wait[SAMPLES];
	struct senders senders;

	start(&senders, rate, NO_DEMAND);
	nap_ms(20);
	for (uint32_t i = 0; i < SAMPLES; i++) {
		uint64_t began = now_ns();

		pacer_enter(&senders.pacer, GY_PAGE_BYTES + 32, demand);
		wait[i] = now_ns() - began;
		nap_ms(2);
	}
	stop(&senders);
	qsort(wait, SAMPLES, sizeof(wait[0]), by_value);
	printf("pacer_test: %s among %u senders at %lu MB/s: p50 %lu us, p99 %lu us; a piece takes %lu us\n",
	       demand ? "demand" : "no demand", SENDERS, rate / 1000000, wait[SAMPLES / 2] / 1000,
	       wait[SAMPLES * 99 / 100] / 1000, PIECE_BYTES * 1000000ul / rate);
	return wait[SAMPLES / 2];
}

static void demand_goes_first(void)
{
	uint64_t rate = 20000000, piece_ns = PIECE_BYTES * NS_PER_S / rate;

	/* It does not even wait for the piece that is under way. */
	CHECK(median_wait(rate, true) < piece_ns / 8);
	/* Positive control: without the priority it waits for its turn among the others. */
	CHECK(median_wait(rate, false) > piece_ns / 2);
}

struct waiter {
	struct senders *senders;
	bool demand;
};

static void *enter_once(void *arg)
{
	struct waiter *waiter = arg;

	pacer_enter(&waiter->senders->pacer, PIECE_BYTES, waiter->demand);
	atomic_fetch_add(&waiter->senders->through, 1);
	return NULL;
}

/* On a link so slow that a piece takes minutes, senders of both kinds must not stay behind. */
static void stop_wakes_all(void)
{
	static struct senders senders;
	struct waiter waiter[4];
	pthread_t thread[4];
	uint64_t began;

	CHECK(!pacer_init(&senders.pacer, 1000));
	pacer_enter(&senders.pacer, PIECE_BYTES, true);
	for (uint32_t i = 0; i < 4; i++) {
		waiter[i] = (struct waiter){ .senders = &senders, .demand = i == 3 };
		CHECK(!thread_start(&thread[i], "waiter", enter_once, &waiter[i]));
		nap_ms(20);
	}
	nap_ms(50);
	/* They do wait. */
	CHECK_EQUAL(atomic_load(&senders.through), 0);
	began = now_ns();
	pacer_stop(&senders.pacer);
	for (uint32_t i = 0; i < 4; i++)
		pthread_join(thread[i], NULL);
	CHECK(now_ns() - began < 2 * NS_PER_S);
	/* It can be used again, and waits again. */
	pacer_restart(&senders.pacer);
	CHECK(!thread_start(&thread[0], "waiter", enter_once, &waiter[0]));
	nap_ms(50);
	CHECK_EQUAL(atomic_load(&senders.through), 4);
	pacer_stop(&senders.pacer);
	pthread_join(thread[0], NULL);
	pacer_destroy(&senders.pacer);
}

int main(void)
{
	for (uint64_t rate = 5000000; rate <= 500000000; rate *= 10) {
		rate_is_held(rate, NO_DEMAND);
		rate_is_held(rate, SOME_DEMAND);
		rate_is_held(rate, ALL_DEMAND);
	}
	demand_goes_first();
	stop_wakes_all();
	puts("pacer_test: passed");
	return 0;
}
