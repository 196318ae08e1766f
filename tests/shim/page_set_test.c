// SPDX-License-Identifier: Apache-2.0
/*
 * page_set_test.c - page sets against a model: one byte a page, read from the encoding by the words in page_set.c
 * and nothing else. Buffers have exactly the size that is promised, so that a sanitizer sees one byte too far.
 */
#include <errno.h>
#include <stdbool.h>

#include "bitmap.h"
#include "check.h"
#include "gyges.h"
#include "page_set.h"

#define MAX_PAGES 6000u
#define ROUNDS 4000u
#define MUTATIONS 30000u

/* One byte a page. */
struct model {
	uint64_t pages;
	uint8_t in[MAX_PAGES];
};

static uint64_t model_runs(const struct model *model)
{
	uint64_t n = 0;

	for (uint64_t page = 0; page < model->pages; page++)
		n += model->in[page] && (!page || !model->in[page - 1]);
	return n;
}

static uint64_t model_count(const struct model *model)
{
	uint64_t n = 0;

	for (uint64_t page = 0; page < model->pages; page++)
		n += model->in[page];
	return n;
}

static uint64_t *model_bitmap(const struct model *model)
{
	uint64_t *map = calloc(bitmap_words(model->pages) + !model->pages, sizeof(*map));

	CHECK(map);
	for (uint64_t page = 0; page < model->pages; page++)
		map[page / 64] |= (uint64_t)model->in[page] << page % 64;
	return map;
}

static bool same(const struct model *model, const uint64_t *map)
{
	uint64_t *want = model_bitmap(model);
	bool equal = !memcmp(want, map, bitmap_words(model->pages) * 8);

	free(want);
	return equal;
}

/* Every density from empty to full, in single pages, in runs, and alternating (the most runs there can be). */
static void make_set(struct model *model, uint64_t *seed)
{
	static const uint16_t per_1024[] = { 0, 1, 10, 100, 512, 900, 1014, 1023, 1024 };
	static const uint64_t odd[] = { 0, 1, 2, 63, 64, 65, 127, 128, 129, 191, 193, 4096, 4097 };
	uint64_t kind = random_below(seed, 4);
	uint16_t density = per_1024[random_below(seed, sizeof(per_1024) / sizeof(per_1024[0]))];

	model->pages = random_below(seed, 3) ? random_below(seed, MAX_PAGES) : odd[random_below(seed, 13)];
	memset(model->in, 0, sizeof(model->in));
	for (uint64_t page = 0, run = 0, value = 0; page < model->pages; page++) {
		if (kind == 0) {
			value = page & 1;
		} else if (kind == 1 || !run) {
			value = random_below(seed, 1024) < density;
			run = 1 + random_below(seed, 200);
		}
		run--;
		model->in[page] = (uint8_t)value;
	}
}

/* The encoding, in memory of just its size. */
static uint8_t *encode(const struct model *model, uint64_t *len)
{
	uint64_t bound = gy_set_bound(model->pages);
	uint64_t *map = model_bitmap(model);
	uint8_t *out = malloc(bound), *exact;
	int64_t n;

	CHECK(out);
	CHECK_EQUAL(gy_set_encode(map, model->pages, out, bound - 1), -ENOSPC);
	n = gy_set_encode(map, model->pages, out, bound);
	CHECK(n >= 8 && (uint64_t)n <= bound);
	CHECK_EQUAL(gy_set_count(map, model->pages), model_count(model));
	free(map);
	exact = malloc((uint64_t)n);
	CHECK(exact);
	memcpy(exact, out, (uint64_t)n);
	free(out);
	*len = (uint64_t)n;
	return exact;
}

/* What the words in page_set.c say about these bytes; false: malformed. @from_start breaks the rule for gaps. */
static bool model_decode(const uint8_t *in, uint64_t len, bool from_start, struct model *out)
{
	uint32_t head[2];

	memset(out->in, 0, sizeof(out->in));
	if (len < 8)
		return false;
	memcpy(head, in, 8);
	if ((head[0] != 1 && head[0] != 2) || len - 8 != (uint64_t)head[1] * 8)
		return false;
	if (head[0] == 1) {
		if (head[1] != (out->pages + 63) / 64)
			return false;
		for (uint64_t bit = 0; bit < (uint64_t)head[1] * 64; bit++) {
			bool set = in[8 + bit / 8] >> bit % 8 & 1;

			if (set && bit >= out->pages)
				return false;
			if (set)
				out->in[bit] = 1;
		}
		return true;
	}
	for (uint64_t i = 0, at = 0; i < head[1]; i++) {
		uint32_t run[2];

		memcpy(run, in + 8 + i * 8, 8);
		if (!run[1] || (i && !run[0]))
			return false;
		if ((unsigned __int128)at + run[0] + run[1] > out->pages)
			return false;
		at += run[0];
		memset(out->in + at, 1, run[1]);
		at += from_start ? 0 : run[1];
	}
	return true;
}

struct walk {
	struct model *seen;
	uint64_t calls;
	uint64_t end;
};

static void see_run(void *arg, uint64_t first, uint64_t count)
{
	struct walk *walk = arg;

	CHECK(count && first >= walk->end && first + count <= walk->seen->pages);
	memset(walk->seen->in + first, 1, count);
	walk->end = first + count;
	walk->calls++;
}

/* Decodes over a bitmap that holds something already, and walks: both must do what the model says, or nothing. */
static bool check_decode(const uint8_t *in, uint64_t len, uint64_t pages, bool break_model, uint64_t *seed)
{
	static struct model want, before, seen;
	struct walk walk = { .seen = &seen };
	uint64_t *map;
	int64_t n, expect;
	bool ok;

	want.pages = before.pages = seen.pages = pages;
	expect = model_decode(in, len, break_model, &want) ? (int64_t)model_count(&want) : -EBADMSG;
	memset(seen.in, 0, sizeof(seen.in));
	memset(before.in, 0, sizeof(before.in));
	for (uint64_t page = 0; page < pages; page++)
		before.in[page] = random_below(seed, 8) == 0;
	map = model_bitmap(&before);
	n = gy_set_decode(in, len, map, pages);
	ok = n == expect;
	for (uint64_t page = 0; page < pages && expect >= 0; page++)
		before.in[page] |= want.in[page];
	ok = ok && same(&before, map);
	free(map);
	ok = ok && gy_set_for_each(in, len, pages, see_run, &walk) == expect;
	if (expect < 0)
		return ok && !walk.calls;
	return ok && !memcmp(seen.in, want.in, pages);
}

static void round_trips(void)
{
	static struct model model;
	uint64_t seed = 1, runs = 0, bitmaps = 0;

	for (uint32_t i = 0; i < ROUNDS; i++) {
		uint64_t len, words, n_runs;
		uint8_t *set;

		make_set(&model, &seed);
		set = encode(&model, &len);
		words = bitmap_words(model.pages);
		n_runs = model_runs(&model);
		CHECK_EQUAL(len, 8 + 8 * (n_runs <= words ? n_runs : words));
		n_runs <= words ? runs++ : bitmaps++;
		CHECK(check_decode(set, len, model.pages, false, &seed));
		free(set);
	}
	CHECK(runs > ROUNDS / 10 && bitmaps > ROUNDS / 10);
}

/* One byte changed, bytes missing, bytes too many: the model and the decoder must agree on every one. */
static void mutations(void)
{
	static struct model model;
	uint64_t seed = 2, refused = 0, accepted = 0;

	for (uint32_t i = 0; i < MUTATIONS; i++) {
		uint64_t len, cut;
		uint8_t *set, *bad;

		if (i % 16 == 0) {
			make_set(&model, &seed);
			model.pages %= 700;
		}
		set = encode(&model, &len);
		cut = random_below(&seed, 3) ? len : random_below(&seed, len + 9);
		bad = calloc(1, cut + !cut);
		CHECK(bad);
		memcpy(bad, set, cut < len ? cut : len);
		for (uint64_t n = random_below(&seed, 3); n && cut; n--) {
			/* Mostly the head and the first runs, where there is most to break. */
			uint64_t at = random_below(&seed, random_below(&seed, 2) && cut > 24 ? 24 : cut);

			bad[at] = (uint8_t)random_next(&seed);
		}
		CHECK(check_decode(bad, cut, model.pages, false, &seed));
		model_decode(bad, cut, false, &model) ? accepted++ : refused++;
		model_decode(set, len, false, &model);
		free(bad);
		free(set);
	}
	printf("page_set_test: of %u damaged sets %lu were malformed\n", MUTATIONS, refused);
	CHECK(refused > MUTATIONS / 10 && accepted > MUTATIONS / 10);
}


static void malformed(void)
{
	static const struct {
		const char *what;
		uint64_t pages;
		uint64_t bytes;
		uint32_t word[8];
	} cases[] = {
		{ "no bytes", 100, 0, { 0 } },
		{ "half a header", 100, 7, { 2, 0 } },
		{ "kind 0", 100, 8, { 0, 0 } },
		{ "kind 3", 100, 16, { 3, 1, 0, 1 } },
		{ "truncated run", 100, 12, { 2, 1, 0 } },
		{ "run count beyond the bytes", 100, 16, { 2, 2, 0, 1 } },
		{ "run count of 2^32 - 1", 100, 16, { 2, UINT32_MAX, 0, 1 } },
		{ "trailing byte", 100, 17, { 2, 1, 0, 1 } },
		{ "trailing run", 100, 24, { 2, 1, 0, 1, 1, 1 } },
		{ "empty run", 100, 16, { 2, 1, 5, 0 } },
		{ "second form: neighbouring runs", 100, 24, { 2, 2, 0, 1, 0, 1 } },
		{ "one page too far", 100, 16, { 2, 1, 99, 2 } },
		{ "run after the end", 100, 16, { 2, 1, 100, 1 } },
		{ "good run, then one too far", 100, 24, { 2, 2, 0, 50, 40, 11 } },
		{ "sum wraps in 32 bits", 100, 16, { 2, 1, UINT32_MAX, 2 } },
		{ "sums wrap in 32 bits over two runs", 100, 24, { 2, 2, 10, 10, UINT32_MAX - 18, 10 } },
		{ "largest gap and length", 100, 16, { 2, 1, UINT32_MAX, UINT32_MAX } },
		{ "bitmap with a word too few", 100, 16, { 1, 1, 1, 0 } },
		{ "bitmap with a word too many", 64, 24, { 1, 2, 1, 0, 0, 0 } },
		{ "bitmap with a page too far", 100, 24, { 1, 2, 1, 0, 0, 1u << 4 } },
		{ "bitmap over no pages", 0, 16, { 1, 1, 0, 0 } },
		{ "run over no pages", 0, 16, { 2, 1, 0, 1 } },
	};
	uint64_t seed = 3;

	for (uint64_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint8_t *set = malloc(cases[i].bytes + !cases[i].bytes);
		uint64_t map[2] = { 0x5555, 0 };

		CHECK(set);
		memcpy(set, cases[i].word, cases[i].bytes);
		if (gy_set_decode(set, cases[i].bytes, map, cases[i].pages) != -EBADMSG || map[0] != 0x5555 || map[1]) {
			fprintf(stderr, "page_set_test: %s was taken\n", cases[i].what);
			exit(1);
		}
		CHECK(check_decode(set, cases[i].bytes, cases[i].pages, false, &seed));
		free(set);
	}
}

/* Positive control: a model that counts gaps from the start of the run before must not agree. */
static void control(void)
{
	static struct model model;
	uint64_t seed = 4, len, disagree = 0;

	for (uint32_t i = 0; i < 200; i++) {
		uint8_t *set;

		make_set(&model, &seed);
		set = encode(&model, &len);
		disagree += !check_decode(set, len, model.pages, true, &seed);
		free(set);
	}
	CHECK(disagree > 10);
}

int main(void)
{
	uint64_t word = 0;
	uint8_t out[16];

	round_trips();
	mutations();
	malformed();
	control();
	CHECK_EQUAL(gy_set_encode(&word, 1ull << 32, out, sizeof(out)), -EFBIG);
	puts("page_set_test: passed");
	return 0;
}
