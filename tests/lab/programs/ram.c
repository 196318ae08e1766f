// SPDX-License-Identifier: Apache-2.0
/*
 * ram.c - holds one RAM file of gygesfs and does with it what it is told.
 *
 *     ram SOCKET hold PATH [PAGES]   opens PATH, or makes it with PAGES; maps it shared; serves SOCKET until `quit`
 *     ram SOCKET clone PATH          the same with a private mapping
 *     ram SOCKET COMMAND [ARG...]    one order to the holder; prints its answer, exit code 0, or 1 with `error: NAME`
 *
 * Sets of pages are written as "0-99,200,300-311", "all" or "none"; tables of regions as hexadecimal digits.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/gyges.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "stamp.h"

#define ANSWER_BYTES (1 << 20)
#define MAX_ARGS 16

static int fd = -1;
static uint8_t *ram;
static uint64_t pages;

struct answer {
	char *text;
	size_t used;
};

static void say(struct answer *answer, const char *format, ...)
{
	va_list list;
	int n;

	va_start(list, format);
	n = vsnprintf(answer->text + answer->used, ANSWER_BYTES - answer->used, format, list);
	va_end(list);
	if (n > 0 && answer->used + (size_t)n < ANSWER_BYTES)
		answer->used += (size_t)n;
}

/* ---- sets of pages ---- */

static uint64_t words(void)
{
	return (pages + 63) / 64;
}

static uint64_t *read_set(const char *text)
{
	uint64_t *set = calloc(words(), 8);
	uint64_t first, last;
	int used;

	if (!strcmp(text, "all")) {
		for (uint64_t page = 0; page < pages; page++)
			set[page / 64] |= 1ull << page % 64;
		return set;
	}
	if (!strcmp(text, "none"))
		return set;
	while (sscanf(text, "%lu%n", &first, &used) == 1) {
		text += used;
		last = first;
		if (*text == '-' && sscanf(text, "-%lu%n", &last, &used) == 1)
			text += used;
		/* Beyond the end on purpose, in some tests: as far as the last word goes. */
		for (; first <= last && first < words() * 64; first++)
			set[first / 64] |= 1ull << first % 64;
		if (*text == ',')
			text++;
	}
	return set;
}

static bool has(const uint64_t *set, uint64_t page)
{
	return set[page / 64] >> page % 64 & 1;
}

static void say_set(struct answer *answer, const uint64_t *set)
{
	const char *comma = "";

	for (uint64_t page = 0; page < pages; page++) {
		uint64_t first = page;

		if (!has(set, page))
			continue;
		while (page + 1 < pages && has(set, page + 1))
			page++;
		say(answer, first == page ? "%s%lu" : "%s%lu-%lu", comma, first, page);
		comma = ",";
	}
	say(answer, "%s\n", *comma ? "" : "none");
}

/* ---- stamps ---- */

/* 0: as stamped. 1: all zeros. 2: anything else. */
static int look_at_page(const uint64_t *at, uint64_t page, uint64_t seed)
{
	bool right = true, zero = true;

	for (uint64_t i = 0; i < WORDS_PER_PAGE; i++) {
		uint64_t word = at[i];

		right &= word == stamp(page, seed, i);
		zero &= !word;
	}
	return right ? 0 : zero ? 1 : 2;
}

static const uint64_t *page_at(uint64_t page)
{
	return (const uint64_t *)(ram + page * PAGE);
}

/* ---- orders; each 0 or an errno ---- */

static int order(struct answer *answer, unsigned long request, void *arg)
{
	(void)answer;
	return ioctl(fd, request, arg) ? errno : 0;
}

static int do_fill(struct answer *answer, char **arg)
{
	uint64_t *set = read_set(arg[0]);

	(void)answer;
	for (uint64_t page = 0; page < pages; page++) {
		if (has(set, page))
			fill_page((uint64_t *)(ram + page * PAGE), page, strtoull(arg[1], NULL, 0));
	}
	free(set);
	return 0;
}

/* check SET SEED: through the mapping, so it faults. */
static int do_check(struct answer *answer, char **arg)
{
	uint64_t *set = read_set(arg[0]);
	uint64_t count[3] = { 0 }, first_bad = UINT64_MAX;

	for (uint64_t page = 0; page < pages; page++) {
		int what;

		if (!has(set, page))
			continue;
		what = look_at_page(page_at(page), page, strtoull(arg[1], NULL, 0));
		count[what]++;
		if (what && first_bad == UINT64_MAX)
			first_bad = page;
	}
	free(set);
	say(answer, "right=%lu zero=%lu wrong=%lu first_bad=%ld\n", count[0], count[1], count[2], (long)first_bad);
	return 0;
}

struct toucher {
	pthread_t thread;
	uint64_t seed;
	uint64_t stamp;
	uint64_t touches;
	uint64_t wrong;
	bool write;
};

static void *touch(void *arg)
{
	struct toucher *toucher = arg;
	uint64_t x = toucher->seed | 1;

	for (uint64_t i = 0; i < toucher->touches; i++) {
		uint64_t page;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		page = x % pages;
		toucher->wrong += look_at_page(page_at(page), page, toucher->stamp) != 0;
	}
	return NULL;
}

/* touch THREADS TOUCHES SEED STAMP: at random, all at once. */
static int do_touch(struct answer *answer, char **arg)
{
	unsigned int n = (unsigned int)atoi(arg[0]);
	struct toucher *toucher = calloc(n, sizeof(*toucher));
	struct timespec from, to;
	uint64_t wrong = 0;

	clock_gettime(CLOCK_MONOTONIC, &from);
	for (unsigned int i = 0; i < n; i++) {
		toucher[i].touches = strtoull(arg[1], NULL, 0);
		toucher[i].seed = strtoull(arg[2], NULL, 0) + i * 7919;
		toucher[i].stamp = strtoull(arg[3], NULL, 0);
		pthread_create(&toucher[i].thread, NULL, touch, &toucher[i]);
	}
	for (unsigned int i = 0; i < n; i++) {
		pthread_join(toucher[i].thread, NULL);
		wrong += toucher[i].wrong;
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	free(toucher);
	say(answer, "wrong=%lu ms=%ld\n", wrong,
	    (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000);
	return 0;
}

static void read_endpoint(struct gyges_endpoint *endpoint, const char *host, const char *port, const char *token)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };

	inet_pton(AF_INET, host, &in.sin_addr);
	memcpy(endpoint->addr, &in, sizeof(in));
	for (unsigned int i = 0; i < GYGES_TOKEN_BYTES; i++)
		endpoint->token[i] = (uint8_t)token[i % strlen(token)];
}

/* export HOST TOKEN */
static int do_export(struct answer *answer, char **arg)
{
	struct gyges_endpoint endpoint = { 0 };
	struct sockaddr_in in;

	read_endpoint(&endpoint, arg[0], "0", arg[1]);
	if (ioctl(fd, GYGES_IOC_EXPORT, &endpoint))
		return errno;
	memcpy(&in, endpoint.addr, sizeof(in));
	say(answer, "%u\n", ntohs(in.sin_port));
	return 0;
}

/* import HOST PORT TOKEN TIMEOUT_MS [overwrite] */
static int do_import(struct answer *answer, char **arg)
{
	struct gyges_endpoint endpoint = { .timeout_ms = (uint32_t)atoi(arg[3]) };

	read_endpoint(&endpoint, arg[0], arg[1], arg[2]);
	if (arg[4])
		endpoint.flags = GYGES_IMPORT_OVERWRITE;
	return order(answer, GYGES_IOC_IMPORT, &endpoint);
}

static int do_regions(struct answer *answer, char **arg)
{
	struct gyges_region *region = calloc(pages, sizeof(*region));
	struct gyges_regions regions = { .regions_ptr = (uintptr_t)region, .capacity = (uint32_t)pages };
	int ret = order(answer, GYGES_IOC_EXPORT_REGIONS, &regions);

	(void)arg;
	for (uint32_t i = 0; !ret && i < regions.count * sizeof(*region); i++)
		say(answer, "%02x", ((uint8_t *)region)[i]);
	say(answer, "\n");
	free(region);
	return ret;
}

static int do_set_regions(struct answer *answer, char **arg)
{
	size_t bytes = arg[0] ? strlen(arg[0]) / 2 : 0;
	uint8_t *table = calloc(1, bytes + 1);
	struct gyges_regions regions = {
		.regions_ptr = (uintptr_t)table,
		.capacity = (uint32_t)(bytes / sizeof(struct gyges_region)),
	};
	int ret;

	for (size_t i = 0; i < bytes; i++)
		sscanf(arg[0] + 2 * i, "%2hhx", &table[i]);
	ret = order(answer, GYGES_IOC_IMPORT_REGIONS, &regions);
	free(table);
	return ret;
}

static int do_bitmap(struct answer *answer, unsigned long request)
{
	uint64_t *set = calloc(words(), 8);
	struct gyges_bitmap bitmap = { .words_ptr = (uintptr_t)set, .words = words() };
	int ret = order(answer, request, &bitmap);

	if (!ret)
		say_set(answer, set);
	free(set);
	return ret;
}

static int do_present(struct answer *answer, char **arg)
{
	(void)arg;
	return do_bitmap(answer, GYGES_IOC_PRESENT);
}

static int do_dirty(struct answer *answer, char **arg)
{
	(void)arg;
	return do_bitmap(answer, GYGES_IOC_DIRTY_ROUND);
}

static int do_round(struct answer *answer, char **arg)
{
	uint64_t *set = read_set(arg[0]);
	struct gyges_round round = {
		.set = { .words_ptr = (uintptr_t)set, .words = words() },
		.deadline_ms = (uint32_t)atoi(arg[1]),
	};
	int ret = order(answer, GYGES_IOC_IMPORT_ROUND, &round);

	say(answer, "%lu\n", (unsigned long)round.set.pages);
	free(set);
	return ret;
}

static int do_discard(struct answer *answer, char **arg)
{
	uint64_t *set = read_set(arg[0]);
	struct gyges_bitmap bitmap = { .words_ptr = (uintptr_t)set, .words = words() };
	int ret = order(answer, GYGES_IOC_IMPORT_DISCARD, &bitmap);

	say(answer, "%lu\n", (unsigned long)bitmap.pages);
	free(set);
	return ret;
}

/* prefetch on|off BATCH WINDOW RATE */
static int do_prefetch(struct answer *answer, char **arg)
{
	struct gyges_prefetch config = {
		.flags = strcmp(arg[0], "off") ? 0 : GYGES_PREFETCH_OFF,
		.batch_pages = (uint32_t)atoi(arg[1]),
		.precopy_window_pages = (uint32_t)atoi(arg[2]),
		.postcopy_window_pages = (uint32_t)atoi(arg[2]),
		.rate_bytes_per_s = strtoull(arg[3], NULL, 0),
	};

	return order(answer, GYGES_IOC_PREFETCH, &config);
}

static int get_state(struct gyges_state *state)
{
	return ioctl(fd, GYGES_IOC_STATE, state) ? errno : 0;
}

static int say_state(struct answer *answer, const struct gyges_state *state)
{
	say(answer, "phase=%u link=%u round=%u exporting=%u read=%u tracking=%u rounds=%lu missing=%lu lost=%lu error=%d "
	    "conns=%u\n",
	    state->phase, !!(state->flags & GYGES_LINK_UP), !!(state->flags & GYGES_ROUND_ACTIVE),
	    !!(state->flags & GYGES_EXPORTING), !!(state->flags & GYGES_EXPORT_READ),
	    !!(state->flags & GYGES_TRACKING), (unsigned long)state->rounds_done,
	    (unsigned long)state->missing_pages, (unsigned long)state->links_lost, state->link_error,
	    state->connections);
	return 0;
}

static int do_state(struct answer *answer, char **arg)
{
	struct gyges_state state;
	int ret = get_state(&state);

	(void)arg;
	return ret ? ret : say_state(answer, &state);
}

/* await phase|rounds|link N MS: by poll(). */
static int do_await(struct answer *answer, char **arg)
{
	uint64_t value = strtoull(arg[1], NULL, 0);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	struct timespec now;
	int64_t until_ms, left;

	clock_gettime(CLOCK_MONOTONIC, &now);
	until_ms = now.tv_sec * 1000 + now.tv_nsec / 1000000 + atoi(arg[2]);
	for (;;) {
		struct gyges_state state;
		uint64_t is;
		int ret = get_state(&state);

		if (ret)
			return ret;
		is = !strcmp(arg[0], "phase") ? state.phase : !strcmp(arg[0], "rounds") ? state.rounds_done
							   : !!(state.flags & GYGES_LINK_UP);
		if (is == value)
			return say_state(answer, &state);
		clock_gettime(CLOCK_MONOTONIC, &now);
		left = until_ms - now.tv_sec * 1000 - now.tv_nsec / 1000000;
		if (left <= 0) {
			say_state(answer, &state);
			return ETIMEDOUT;
		}
		poll(&p, 1, (int)left);
	}
}

static uint64_t percentile(const struct gyges_hist *hist, unsigned int percent)
{
	uint64_t seen = 0;

	for (unsigned int i = 0; i < GYGES_HIST_BUCKETS; i++) {
		seen += hist->bucket[i];
		if (seen * 100 >= hist->n * percent && seen)
			return i < 8 ? i : ((9ull + i % 8) << (i / 8 - 1)) - 1;
	}
	return 0;
}

static void say_hist(struct answer *answer, const char *name, const struct gyges_hist *hist)
{
	say(answer, " %s_n=%lu %s_p50=%lu %s_p99=%lu %s_max=%lu", name, (unsigned long)hist->n, name,
	    percentile(hist, 50), name, percentile(hist, 99), name, (unsigned long)hist->max);
}

static int do_stats(struct answer *answer, char **arg)
{
	struct gyges_stats stats;

	(void)arg;
	if (ioctl(fd, GYGES_IOC_STATS, &stats))
		return errno;
#define SAY(field) say(answer, #field "=%lu ", (unsigned long)stats.field)
	SAY(total_pages), SAY(present_pages), SAY(missing_pages), SAY(precopy_pages), SAY(postcopy_pages);
	SAY(demand_faults), SAY(prefetched_pages), SAY(zero_pages), SAY(duplicate_pages), SAY(wire_bytes);
	SAY(blocktime_ns), SAY(discarded_pages), SAY(nowait_faults), SAY(nowait_slept), SAY(demand_reads);
	SAY(prefetch_reads), SAY(failed_reads), SAY(joined_faults), SAY(pinned_pages), SAY(registered_pieces);
#undef SAY
	say_hist(answer, "fault", &stats.fault_latency);
	say_hist(answer, "read", &stats.read_latency);
	say(answer, "\n");
	return 0;
}

/* pread SET SEED: like check, by read(). */
static int do_pread(struct answer *answer, char **arg)
{
	uint64_t *set = read_set(arg[0]);
	uint64_t count[3] = { 0 }, buffer[WORDS_PER_PAGE];
	int ret = 0;

	for (uint64_t page = 0; page < pages && !ret; page++) {
		if (!has(set, page))
			continue;
		if (pread(fd, buffer, PAGE, (off_t)(page * PAGE)) != (ssize_t)PAGE)
			ret = errno;
		else
			count[look_at_page(buffer, page, strtoull(arg[1], NULL, 0))]++;
	}
	free(set);
	say(answer, "right=%lu zero=%lu wrong=%lu\n", count[0], count[1], count[2]);
	return ret;
}

/* punch FIRST COUNT */
static int do_punch(struct answer *answer, char **arg)
{
	(void)answer;
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(strtoull(arg[0], NULL, 0) * PAGE),
			 (off_t)(strtoull(arg[1], NULL, 0) * PAGE)) ? errno : 0;
}

static int do_allocated(struct answer *answer, char **arg)
{
	struct stat st;

	(void)arg;
	if (fstat(fd, &st))
		return errno;
	say(answer, "%lu\n", (unsigned long)st.st_blocks / 8);
	return 0;
}

static int do_unmap(struct answer *answer, char **arg)
{
	(void)answer;
	(void)arg;
	return munmap(ram, pages * PAGE) ? errno : 0;
}

struct command {
	const char *name;
	int args;
	unsigned long request;	/* an ioctl without an argument */
	int (*run)(struct answer *answer, char **arg);
};

static const struct command commands[] = {
	{ "fill", 2, 0, do_fill },
	{ "check", 2, 0, do_check },
	{ "pread", 2, 0, do_pread },
	{ "touch", 4, 0, do_touch },
	{ "punch", 2, 0, do_punch },
	{ "allocated", 0, 0, do_allocated },
	{ "unmap", 0, 0, do_unmap },
	{ "present", 0, 0, do_present },
	{ "state", 0, 0, do_state },
	{ "stats", 0, 0, do_stats },
	{ "await", 3, 0, do_await },
	{ "export", 2, 0, do_export },
	{ "regions", 0, 0, do_regions },
	{ "export-end", 0, GYGES_IOC_EXPORT_END, NULL },
	{ "import", 4, 0, do_import },
	{ "set-regions", 0, 0, do_set_regions },
	{ "round", 2, 0, do_round },
	{ "end-round", 0, GYGES_IOC_IMPORT_END_ROUND, NULL },
	{ "discard", 1, 0, do_discard },
	{ "arm", 0, GYGES_IOC_IMPORT_ARM, NULL },
	{ "run", 0, GYGES_IOC_IMPORT_RUN, NULL },
	{ "drop", 0, GYGES_IOC_IMPORT_DROP, NULL },
	{ "abandon", 0, GYGES_IOC_IMPORT_ABANDON, NULL },
	{ "end", 0, GYGES_IOC_IMPORT_END, NULL },
	{ "prefetch", 4, 0, do_prefetch },
	{ "dirty-start", 0, GYGES_IOC_DIRTY_START, NULL },
	{ "dirty-round", 0, 0, do_dirty },
	{ "dirty-stop", 0, GYGES_IOC_DIRTY_STOP, NULL },
};

/* ---- the holder ---- */

static int perform(struct answer *answer, char **arg, int n)
{
	for (size_t i = 0; n && i < sizeof(commands) / sizeof(commands[0]); i++) {
		const struct command *command = &commands[i];

		if (strcmp(command->name, arg[0]))
			continue;
		if (n - 1 < command->args)
			return EINVAL;
		return command->run ? command->run(answer, arg + 1) : order(answer, command->request, NULL);
	}
	return ENOSYS;
}

/* A request is words that each end with NUL; the end of it is the end of the stream. */
static char *read_all(int from, size_t *bytes)
{
	char *text = malloc(ANSWER_BYTES);
	ssize_t n;

	*bytes = 0;
	while ((n = read(from, text + *bytes, ANSWER_BYTES - *bytes - 1)) > 0)
		*bytes += (size_t)n;
	text[*bytes] = 0;
	return text;
}

static void *serve_one(void *opaque)
{
	int peer = (int)(intptr_t)opaque;
	size_t bytes;
	char *text = read_all(peer, &bytes);
	char *arg[MAX_ARGS + 1] = { NULL };
	struct answer answer = { .text = calloc(1, ANSWER_BYTES) };
	int n = 0, ret;

	for (size_t at = 0; at < bytes && n < MAX_ARGS; at += strlen(text + at) + 1)
		arg[n++] = text + at;
	if (n && !strcmp(arg[0], "quit"))
		exit(0);
	ret = perform(&answer, arg, n);
	if (ret)
		say(&answer, "error: %s\n", strerrorname_np(ret));
	if (write(peer, answer.text, answer.used) < 0)
		perror("write");
	close(peer);
	free(answer.text);
	free(text);
	return NULL;
}

static int hold(const struct sockaddr_un *address, const char *path, uint64_t make_pages, int sharing)
{
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct stat st;

	fd = open(path, O_RDWR | O_CLOEXEC | (make_pages ? O_CREAT : 0), 0600);
	if (fd < 0 || (make_pages && ftruncate(fd, (off_t)(make_pages * PAGE))) || fstat(fd, &st)) {
		perror(path);
		return 1;
	}
	pages = (uint64_t)st.st_size / PAGE;
	if (pages) {
		ram = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, sharing, fd, 0);
		if (ram == MAP_FAILED) {
			perror("mmap");
			return 1;
		}
	}
	unlink(address->sun_path);
	if (bind(listener, (const struct sockaddr *)address, sizeof(*address)) || listen(listener, 8)) {
		perror(address->sun_path);
		return 1;
	}
	/* The caller goes on once the socket is there. */
	if (daemon(1, 0))
		return 1;
	for (;;) {
		int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		pthread_t thread;

		if (peer < 0)
			return 1;
		pthread_create(&thread, NULL, serve_one, (void *)(intptr_t)peer);
		pthread_detach(thread);
	}
}

static int ask(const struct sockaddr_un *address, char **arg, int n)
{
	int peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	size_t bytes;
	char *text;
	const char *error;

	if (connect(peer, (const struct sockaddr *)address, sizeof(*address))) {
		perror(address->sun_path);
		return 2;
	}
	for (int i = 0; i < n; i++) {
		if (write(peer, arg[i], strlen(arg[i]) + 1) < 0)
			return 2;
	}
	shutdown(peer, SHUT_WR);
	text = read_all(peer, &bytes);
	fputs(text, stdout);
	error = strstr(text, "error: ");
	free(text);
	return error != NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (argc < 3)
		return 2;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", argv[1]);
	if (!strcmp(argv[2], "hold") && argc > 3)
		return hold(&address, argv[3], argc > 4 ? strtoull(argv[4], NULL, 0) : 0, MAP_SHARED);
	if (!strcmp(argv[2], "clone") && argc > 3)
		return hold(&address, argv[3], 0, MAP_PRIVATE);
	return ask(&address, argv + 2, argc - 2);
}
