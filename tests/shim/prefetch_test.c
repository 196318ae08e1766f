// SPDX-License-Identifier: Apache-2.0
/*
 * prefetch_test.c - the order of prefetch against a model made from the words in prefetch.h alone: it looks at one
 * page after the other and keeps no cursor that it could get wrong.
 */
#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "prefetch.h"
#include "thread.h"

#define MAX_PAGES 3000u
#define SEEDS 200u

enum rule { RULE_AS_WRITTEN, RULE_BEHIND_WHEN_EQUAL, RULE_OLDEST_FIRST, RULE_REACH_TOO_FAR, RULE_WORTH_MORE };

struct model {
	uint64_t pages;
	bool missing[MAX_PAGES];
	/* The last faults, oldest first. */
	struct model_spot {
		uint64_t first, last;	/* what was taken there, the fault's page included */
		uint64_t left;
	} spot[PREFETCH_FAULTS];
	uint32_t spots;
	uint64_t sweep;
	enum rule rule;
};

static void model_fault(struct model *model, uint64_t page)
{
	if (model->spots == PREFETCH_FAULTS)
		memmove(&model->spot[0], &model->spot[1], --model->spots * sizeof(model->spot[0]));
	model->spot[model->spots++] = (struct model_spot){
		.first = page, .last = page, .left = PREFETCH_NEAR + (model->rule == RULE_WORTH_MORE),
	};
}

static uint32_t take_run(struct model *model, uint64_t page, int64_t step, uint64_t max)
{
	uint32_t n = 0;

	while (n < max && page < model->pages && model->missing[page]) {
		model->missing[page] = false;
		page += (uint64_t)step;
		n++;
	}
	return n;
}

static uint32_t model_near(struct model *model, struct model_spot *spot, uint32_t max, uint64_t *first)
{
	uint64_t reach = PREFETCH_REACH + (model->rule == RULE_REACH_TOO_FAR);
	bool behind_wins = model->rule == RULE_BEHIND_WHEN_EQUAL;
	uint64_t most = max < spot->left ? max : spot->left;

	for (uint64_t away = 1; spot->left && away <= reach; away++) {
		bool ahead = spot->last + away < model->pages && model->missing[spot->last + away];
		bool behind = spot->first >= away && model->missing[spot->first - away];
		uint32_t n;

		if (!ahead && !behind)
			continue;
		if (ahead && !(behind && behind_wins)) {
			*first = spot->last + away;
			n = take_run(model, *first, 1, most);
			spot->last = *first + n - 1;
		} else {
			n = take_run(model, spot->first - away, -1, most);
			*first = spot->first - away - n + 1;
			spot->first = *first;
		}
		spot->left -= n;
		return n;
	}
	spot->left = 0;
	return 0;
}

static uint32_t model_sweep(struct model *model, uint64_t from, uint32_t max, uint64_t *first)
{
	for (*first = from; *first < model->pages; (*first)++) {
		if (model->missing[*first])
			return take_run(model, *first, 1, max);
	}
	return 0;
}

static uint32_t model_claim(struct model *model, uint32_t max, uint64_t *first)
{
	uint32_t n;

	for (uint32_t i = 0; i < model->spots; i++) {
		uint32_t at = model->rule == RULE_OLDEST_FIRST ? i : model->spots - 1 - i;

		n = model_near(model, &model->spot[at], max, first);
		if (n)
			return n;
	}
	n = model_sweep(model, model->sweep, max, first);
	if (!n)
		n = model_sweep(model, 0, max, first);
	model->sweep = n ? *first + n : model->pages;
	return n;
}

/* One migration's worth of faults, claims, pages taken by others and pages handed back. Steps until they differ. */
static uint32_t compare(uint64_t seed, enum rule rule)
{
	static struct model model;
	struct prefetch prefetch = { 0 };
	gy_word missing[(MAX_PAGES + 63) / 64] = { 0 };
	uint32_t dense = (uint32_t)random_below(&seed, 100) + 1;
	uint32_t steps = 600;

	model = (struct model){ .pages = 1 + random_below(&seed, MAX_PAGES), .rule = rule };
	for (uint64_t page = 0; page < model.pages; page++) {
		model.missing[page] = random_below(&seed, 100) < dense;
		if (model.missing[page])
			bitmap_set(missing, page);
	}
	for (uint32_t step = 0; step < steps; step++) {
		uint64_t what = random_below(&seed, 16), page = random_below(&seed, model.pages);
		uint64_t first = 0, model_first = 0;
		uint32_t max = 1 + (uint32_t)random_below(&seed, 64), n;

		if (what < 2) {
			prefetch_fault(&prefetch, page);
			model_fault(&model, page);
		}
		if (what < 4) {
			model.missing[page] = false;
			bitmap_clear(missing, page);
		} else if (what < 5) {
			model.missing[page] = true;
			bitmap_set(missing, page);
		}
		/* Several faults between two claims, now and then more than are remembered. */
		if (what < 2 && random_below(&seed, 12))
			continue;
		n = prefetch_claim(&prefetch, missing, model.pages, max, &first);
		if (n != model_claim(&model, max, &model_first) || (n && first != model_first))
			return step;
		for (uint64_t at = 0; at < model.pages && step % 32 == 0; at++)
			CHECK(rule != RULE_AS_WRITTEN || bitmap_test(missing, at) == model.missing[at]);
	}
	return steps;
}

static void order(void)
{
	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		uint32_t step = compare(seed, RULE_AS_WRITTEN);

		if (step != 600) {
			fprintf(stderr, "prefetch_test: seed %lu differs from the model at step %u\n", seed, step);
			exit(1);
		}
	}
	/* Positive controls: the comparison sees each rule that is broken. */
	for (enum rule rule = RULE_BEHIND_WHEN_EQUAL; rule <= RULE_WORTH_MORE; rule++) {
		uint32_t seen = 0;

		for (uint64_t seed = 1; seed <= SEEDS; seed++)
			seen += compare(seed, rule) != 600;
		CHECK(seen);
	}
}

static void sweep(void)
{
	gy_word missing[4] = { 0 };
	struct prefetch prefetch = { 0 };
	uint64_t cursor = 0, first;

	for (uint64_t page = 0; page < 200; page++)
		bitmap_set(missing, page);
	CHECK_EQUAL(prefetch_sweep(missing, 200, 150, &cursor, &first), 150);
	CHECK_EQUAL(first, 0);
	bitmap_set(missing, 3);
	CHECK_EQUAL(prefetch_sweep(missing, 200, 150, &cursor, &first), 50);
	CHECK_EQUAL(first, 150);
	/* Pre-copy does not come back within a round; post-copy finds what was handed back behind it. */
	CHECK_EQUAL(prefetch_sweep(missing, 200, 150, &cursor, &first), 0);
	CHECK_EQUAL(cursor, 200);
	prefetch.sweep = cursor;
	CHECK_EQUAL(prefetch_claim(&prefetch, missing, 200, 150, &first), 1);
	CHECK_EQUAL(first, 3);
	CHECK_EQUAL(prefetch_claim(&prefetch, missing, 200, 150, &first), 0);
	/* Faults at both ends of RAM reach for nothing outside it. */
	bitmap_set(missing, 0);
	bitmap_set(missing, 199);
	prefetch_fault(&prefetch, 199);
	prefetch_fault(&prefetch, 0);
	CHECK_EQUAL(prefetch_claim(&prefetch, missing, 200, 150, &first), 1);
	CHECK_EQUAL(prefetch_claim(&prefetch, missing, 200, 150, &first), 1);
	CHECK_EQUAL(prefetch_claim(&prefetch, missing, 200, 150, &first), 0);
}

#define RACE_PAGES 40000u

struct race {
	gy_word missing[RACE_PAGES / 64];
	_Atomic(uint32_t) given[RACE_PAGES];
	struct prefetch prefetch;
	pthread_mutex_t lock;
	_Atomic(bool) over;
};

/* The fault thread: claims single pages, near what prefetch is taking, and says so. */
static void *fault_at_random(void *arg)
{
	struct race *race = arg;
	uint64_t seed = 99;

	while (!atomic_load(&race->over)) {
		uint64_t page = random_below(&seed, RACE_PAGES);

		for (uint64_t n = 0; n < 8 && page + n < RACE_PAGES; n++) {
			prefetch_fault(&race->prefetch, page + n);
			if (bitmap_clear(race->missing, page + n))
				atomic_fetch_add(&race->given[page + n], 1);
		}
	}
	return NULL;
}

static void *claim_all(void *arg)
{
	struct race *race = arg;
	uint64_t seed = 7;
	uint32_t n;

	do {
		uint64_t first;

		pthread_mutex_lock(&race->lock);
		n = prefetch_claim(&race->prefetch, race->missing, RACE_PAGES, 1 + random_below(&seed, 16), &first);
		pthread_mutex_unlock(&race->lock);
		for (uint32_t i = 0; i < n; i++)
			atomic_fetch_add(&race->given[first + i], 1);
	} while (n);
	return NULL;
}

/* Every page is given once, whoever comes first. */
static void claims_race(void)
{
	struct race *race = calloc(1, sizeof(*race));
	pthread_t fault, claim[2];

	CHECK(race);
	pthread_mutex_init(&race->lock, NULL);
	for (uint64_t page = 0; page < RACE_PAGES; page++)
		bitmap_set(race->missing, page);
	CHECK(!thread_start(&fault, "fault", fault_at_random, race));
	/* A thread that comes to run after all is claimed races with nobody. */
	while (atomic_load(&race->prefetch.faults) <= 8)
		sched_yield();
	for (int i = 0; i < 2; i++)
		CHECK(!thread_start(&claim[i], "claim", claim_all, race));
	for (int i = 0; i < 2; i++)
		pthread_join(claim[i], NULL);
	atomic_store(&race->over, true);
	pthread_join(fault, NULL);
	for (uint64_t page = 0; page < RACE_PAGES; page++)
		CHECK_EQUAL(race->given[page], 1);
	pthread_mutex_destroy(&race->lock);
	free(race);
}

int main(void)
{
	order();
	sweep();
	for (int i = 0; i < 5; i++)
		claims_race();
	puts("prefetch_test: passed");
	return 0;
}
