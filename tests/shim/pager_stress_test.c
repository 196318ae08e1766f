// SPDX-License-Identifier: Apache-2.0
/*
 * pager_stress_test.c - the destination's pager where threads meet: many connections, many waiters, links that come
 * and go. What must not be late is measured against the second after which every thread looks again by itself.
 */
#include <dirent.h>

#include "page_proto.h"
#include "pager_fixture.h"
#include "spin.h"

/* With a window of a page a connection, the last pages come over several connections at the same moment. */
static void counters_at_the_end(void)
{
	struct gy_ram *from = make_ram(true);

	for (int round = 0; round < 12; round++) {
		struct gy_ram *to = make_ram(false);
		struct gy_sink *sink = make_sink(to, true, 8);
		struct gy_source *source;

		CHECK(!gy_source_create(from, 0, &source));
		for (int i = 0; i < 8; i++)
			join(source, sink, GY_ROLE_PREFETCH);
		want_all(sink);
		arm_and_run(sink);
		CHECK_EQUAL(gy_sink_wait(sink, SOON_MS), GY_EVENT_COMPLETE);
		check_complete(sink);
		gy_source_destroy(source);
		gy_sink_destroy(sink);
		gy_ram_destroy(to);
	}
	gy_ram_destroy(from);
}

/* A source whose pages are all wanted, and a sink. */
struct ends {
	struct gy_ram *from;
	struct gy_ram *to;
	struct gy_source *source;
	struct gy_sink *sink;
};

static struct ends make_ends(bool prefetch, uint64_t window_pages)
{
	struct ends ends = { .from = make_ram(true), .to = make_ram(false) };

	ends.sink = make_sink(ends.to, prefetch, window_pages);
	CHECK(!gy_source_create(ends.from, 0, &ends.source));
	want_all(ends.sink);
	return ends;
}

static void destroy_ends(struct ends *ends)
{
	gy_source_destroy(ends->source);
	gy_sink_destroy(ends->sink);
	gy_ram_destroy(ends->from);
	gy_ram_destroy(ends->to);
}

#define TOUCHERS 200u

struct toucher {
	pthread_t thread;
	const uint8_t *base;
	uint64_t page;
	uint64_t step;
	uint64_t pages;
};

static void *touch(void *arg)
{
	struct toucher *toucher = arg;

	for (uint64_t n = 0; n < toucher->pages; n++) {
		CHECK(page_is_right(toucher->base, toucher->page));
		toucher->page = (toucher->page + toucher->step) % PAGES;
	}
	return NULL;
}

/* More faults at once than one connection has room to ask for. */
static void more_waiters_than_requests(void)
{
	static struct toucher toucher[TOUCHERS];
	struct ends ends = make_ends(false, 8);
	struct gy_sink *sink = ends.sink;

	arm_and_run(sink);
	for (uint32_t i = 0; i < TOUCHERS; i++) {
		/* Two threads wait for the same page. */
		toucher[i] = (struct toucher){ .base = ends.to->guest, .page = i / 2, .step = 1, .pages = 1 };
		CHECK(!thread_start(&toucher[i].thread, "guest", touch, &toucher[i]));
	}
	while (atomic_load(&sink->waiters.n) < TOUCHERS)
		nap_ms(1);
	uint64_t began = now_ns();

	join(ends.source, sink, GY_ROLE_DEMAND);
	for (uint32_t i = 0; i < TOUCHERS; i++)
		pthread_join(toucher[i].thread, NULL);
	CHECK(now_ns() - began < PROMPT_NS);
	CHECK_EQUAL(STAT(gy_sink_stats(sink), demand_faults), TOUCHERS);
	CHECK_EQUAL(STAT(gy_sink_stats(sink), postcopy_pages), TOUCHERS / 2);
	CHECK_EQUAL(atomic_load(&sink->waiters.n), 0);
	CHECK_EQUAL(atomic_load(&sink->waiters.asked), 0);
	destroy_ends(&ends);
}

/* One connection takes requests and answers none. When it dies its pages go to one that has nothing left to do. */
static void pages_of_a_dead_connection(uint32_t role)
{
	struct ends ends = make_ends(true, 64);
	struct gy_sink *sink = ends.sink;
	struct toucher toucher = { .base = ends.to->guest, .page = 100, .step = 1, .pages = 1 };
	struct link mute = make_link();
	struct page_request request;
	uint64_t began;

	CHECK_EQUAL(gy_sink_arm(sink), PAGES);
	CHECK(!gy_sink_add(sink, mute.sink, role));
	if (role == GY_ROLE_DEMAND)
		CHECK(!thread_start(&toucher.thread, "guest", touch, &toucher));
	else
		CHECK(!gy_sink_run(sink));
	CHECK(!gy_channel_read_all(mute.source, &request, sizeof(request), deadline_after_ms(SOON_MS)));
	join(ends.source, sink, GY_ROLE_PREFETCH);
	if (role == GY_ROLE_DEMAND)
		CHECK(!gy_sink_run(sink));
	while (bitmap_count(sink->want, PAGES))
		nap_ms(1);
	nap_ms(100);
	CHECK(STAT(gy_sink_stats(sink), missing_pages) > 0);
	began = now_ns();
	gy_channel_destroy(mute.source);
	wait_complete(sink);
	CHECK(now_ns() - began < PROMPT_NS);
	if (role == GY_ROLE_DEMAND)
		pthread_join(toucher.thread, NULL);
	check_complete(sink);
	destroy_ends(&ends);
}

/* The same where only the connection for faults is left, and a thread waits for a page that it had no need to ask for. */
static void waiter_of_a_dead_prefetch(void)
{
	struct ends ends = make_ends(true, 64);
	struct gy_sink *sink = ends.sink;
	struct toucher toucher = { .base = ends.to->guest, .step = 1, .pages = 1 };
	struct link mute = make_link();
	struct page_request request;
	uint64_t began;

	CHECK(!gy_sink_add(sink, mute.sink, GY_ROLE_PREFETCH));
	arm_and_run(sink);
	CHECK(!gy_channel_read_all(mute.source, &request, sizeof(request), deadline_after_ms(SOON_MS)));
	join(ends.source, sink, GY_ROLE_DEMAND);
	toucher.page = request.first_page;
	CHECK(!thread_start(&toucher.thread, "guest", touch, &toucher));
	while (!atomic_load(&sink->waiters.n))
		nap_ms(1);
	nap_ms(100);
	CHECK_EQUAL(atomic_load(&sink->waiters.asked), 0);
	began = now_ns();
	gy_channel_destroy(mute.source);
	pthread_join(toucher.thread, NULL);
	CHECK(now_ns() - began < PROMPT_NS);
	destroy_ends(&ends);
}

/* The thread of this process that is called @name; 0: there is none. */
static pid_t thread_called(const char *name)
{
	struct dirent *entry;
	DIR *dir = opendir("/proc/self/task");
	pid_t found = 0;

	CHECK(dir);
	while (!found && (entry = readdir(dir))) {
		char path[320], comm[32] = "";
		FILE *file;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", entry->d_name);
		file = fopen(path, "r");
		if (file && fgets(comm, sizeof(comm), file) && !strncmp(comm, name, strlen(name)))
			found = (pid_t)atoi(entry->d_name);
		if (file)
			fclose(file);
	}
	closedir(dir);
	return found;
}

/* It is first in line, and by no real-time policy, see thread.h. */
static void fault_thread_is_urgent(void)
{
	struct gy_ram *to = make_ram(false);
	struct gy_sink *sink = make_sink(to, true, 64);
	uint64_t deadline = deadline_after_ms(SOON_MS);
	int others = getpriority(PRIO_PROCESS, 0);
	pid_t thread = thread_called("gy-fault");

	CHECK(thread);
	/* It makes itself so. */
	while (getpriority(PRIO_PROCESS, (id_t)thread) != THREAD_URGENT_NICE && now_ns() < deadline)
		nap_ms(1);
	CHECK_EQUAL(getpriority(PRIO_PROCESS, (id_t)thread), THREAD_URGENT_NICE);
	CHECK_EQUAL(sched_getscheduler(thread), SCHED_OTHER);
	CHECK_EQUAL(getpriority(PRIO_PROCESS, 0), others);
	gy_sink_destroy(sink);
	gy_ram_destroy(to);
}

/* What happened to channels that are gone must not be taken for the fate of those that follow. */
static void no_events_after_a_drop(void)
{
	struct gy_ram *to = make_ram(false);
	struct gy_sink *sink = make_sink(to, true, 8);
	struct link link[3];

	want_all(sink);
	arm_and_run(sink);
	for (int round = 0; round < 30; round++) {
		for (int i = 0; i < 3; i++) {
			link[i] = make_link();
			CHECK(!gy_sink_add(sink, link[i].sink, i ? GY_ROLE_PREFETCH : GY_ROLE_DEMAND));
		}
		if (round % 3) {
			/* The first is waited for; the others die later, or not at all. */
			gy_channel_shutdown(link[1].source);
			CHECK_EQUAL(gy_sink_wait(sink, SOON_MS), GY_EVENT_LINK_LOST);
		}
		if (round % 3 == 2) {
			gy_channel_shutdown(link[0].source);
			gy_channel_shutdown(link[2].source);
			nap_ms(20);
		}
		gy_sink_drop_channels(sink);
		CHECK_EQUAL(gy_sink_wait(sink, 5), -ETIMEDOUT);
		for (int i = 0; i < 3; i++)
			gy_channel_destroy(link[i].source);
		CHECK_EQUAL(bitmap_count(sink->want, PAGES), PAGES);
	}
	gy_sink_destroy(sink);
	gy_ram_destroy(to);
}

/* A round that has lost every connection can be ended, and the next one pulls what it left. */
static void round_without_connections(void)
{
	struct gy_ram *from = make_ram(true), *to = make_ram(false);
	struct gy_sink *sink = make_sink(to, true, 8);
	struct link mute = make_link();
	struct page_request request;
	struct gy_source *source;
	uint8_t set[16];

	CHECK(!gy_source_create(from, 0, &source));
	CHECK(!gy_sink_add(sink, mute.sink, GY_ROLE_PREFETCH));
	CHECK_EQUAL(gy_sink_round(sink, set, all_pages(set), 60000), PAGES);
	CHECK(!gy_channel_read_all(mute.source, &request, sizeof(request), deadline_after_ms(SOON_MS)));
	gy_channel_destroy(mute.source);
	CHECK_EQUAL(gy_sink_wait(sink, SOON_MS), GY_EVENT_LINK_LOST);
	CHECK(!gy_sink_end_round(sink));
	CHECK_EQUAL(gy_sink_wait(sink, SOON_MS / 10), GY_EVENT_ROUND_DONE);
	CHECK_EQUAL(bitmap_count(sink->want, PAGES), PAGES);
	gy_sink_drop_channels(sink);
	join(source, sink, GY_ROLE_PREFETCH);
	CHECK_EQUAL(gy_sink_round(sink, set, 0, 60000), -EBADMSG);
	CHECK_EQUAL(gy_sink_round(sink, set, all_pages(set), 60000), PAGES);
	CHECK_EQUAL(gy_sink_wait(sink, SOON_MS), GY_EVENT_ROUND_DONE);
	arm_and_run(sink);
	CHECK_EQUAL(gy_sink_wait(sink, SOON_MS), GY_EVENT_COMPLETE);
	check_complete(sink);
	gy_source_destroy(source);
	gy_sink_destroy(sink);
	gy_ram_destroy(from);
	gy_ram_destroy(to);
}

/* Links are cut again and again, from either end, under a guest that faults all the time. */
static void storm(uint64_t seed)
{
	struct gy_ram *from = make_ram(true), *to = make_ram(false);
	struct gy_sink *sink = make_sink(to, true, 16);
	struct toucher toucher[4];
	struct gy_source *source;

	CHECK(!gy_source_create(from, 4000000, &source));
	want_all(sink);
	arm_and_run(sink);
	for (uint32_t i = 0; i < 4; i++) {
		toucher[i] = (struct toucher){
			.base = to->guest, .page = i * 128, .step = 1 + 2 * random_below(&seed, 50), .pages = PAGES,
		};
		CHECK(!thread_start(&toucher[i].thread, "guest", touch, &toucher[i]));
	}
	for (int cut = 0; cut < 20; cut++) {
		join(source, sink, GY_ROLE_DEMAND);
		for (uint64_t n = random_below(&seed, 3); n; n--)
			join(source, sink, GY_ROLE_PREFETCH);
		nap_ms((uint32_t)random_below(&seed, 12));
		if (random_below(&seed, 2))
			gy_source_drop_channels(source);
		gy_sink_drop_channels(sink);
		gy_source_drop_channels(source);
	}
	join(source, sink, GY_ROLE_DEMAND);
	join(source, sink, GY_ROLE_PREFETCH);
	for (uint32_t i = 0; i < 4; i++)
		pthread_join(toucher[i].thread, NULL);
	wait_complete(sink);
	check_complete(sink);
	gy_source_destroy(source);
	gy_sink_destroy(sink);
	gy_ram_destroy(from);
	gy_ram_destroy(to);
}

int main(void)
{
	counters_at_the_end();
	more_waiters_than_requests();
	pages_of_a_dead_connection(GY_ROLE_PREFETCH);
	pages_of_a_dead_connection(GY_ROLE_DEMAND);
	waiter_of_a_dead_prefetch();
	fault_thread_is_urgent();
	no_events_after_a_drop();
	round_without_connections();
	for (uint64_t seed = 1; seed <= 2; seed++) {
		spin_pretend_cpus(seed == 1 ? 1 : SPIN_CPUS);
		storm(seed);
	}
	puts("pager_stress_test: passed");
	return 0;
}
