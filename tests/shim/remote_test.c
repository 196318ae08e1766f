// SPDX-License-Identifier: Apache-2.0
/*
 * remote_test.c - RAM of another process, as a QEMU has it: faults caught and placed, writes tracked, calls made inside
 * it without its noticing. The other process is a child that does what a pipe says.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bitmap.h"
#include "check.h"
#include "clock.h"
#include "ram.h"
#include "region_table.h"
#include "remote_call.h"
#include "sink.h"
#include "uffd.h"

#define PIECE_BYTES (2ull << 20)
#define PIECE_PAGES (PIECE_BYTES / GY_PAGE_BYTES)
#define PIECES 2u
#define SOON_MS 20000

/* What the child is asked for; it answers with a byte of the page. */
struct order {
	char what;	/* 'r' read, 'w' write, 's' signals seen */
	uint8_t value;
	uint64_t page;
};

struct other {
	pid_t pid;
	int to;
	int from;
	uint64_t base[PIECES];
	int fd[PIECES];
};

static volatile sig_atomic_t signals_seen;

static void on_signal(int number)
{
	(void)number;
	signals_seen++;
}

static void serve(uint8_t *const base[], int from, int to)
{
	struct pollfd p = { .fd = from, .events = POLLIN };
	struct order order;

	for (;;) {
		uint32_t answer;
		volatile uint8_t *at;

		/* Where a QEMU's main thread mostly is. */
		if (ppoll(&p, 1, NULL, NULL) < 0 && errno == EINTR)
			continue;
		if (read(from, &order, sizeof(order)) != sizeof(order))
			_exit(0);
		at = base[order.page / PIECE_PAGES] + order.page % PIECE_PAGES * GY_PAGE_BYTES;
		if (order.what == 'w')
			*at = order.value;
		answer = order.what == 's' ? (uint32_t)signals_seen : *at;
		if (write(to, &answer, sizeof(answer)) != sizeof(answer))
			_exit(1);
	}
}

static void child(const int fd[], int from, int to)
{
	uint8_t *base[PIECES];

	signal(SIGRTMIN, on_signal);
	for (uint32_t i = 0; i < PIECES; i++) {
		base[i] = mmap(NULL, PIECE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd[i], 0);
		if (write(to, &base[i], sizeof(base[i])) != sizeof(base[i]))
			_exit(1);
	}
	serve(base, from, to);
}

static struct other start_other(void)
{
	int down[2], up[2];
	struct other other;

	CHECK(!pipe(down) && !pipe(up));
	for (uint32_t i = 0; i < PIECES; i++) {
		other.fd[i] = memfd_create("piece", MFD_CLOEXEC);
		CHECK(other.fd[i] >= 0 && !ftruncate(other.fd[i], (off_t)PIECE_BYTES));
	}
	other.pid = fork();
	CHECK(other.pid >= 0);
	if (!other.pid)
		child(other.fd, down[0], up[1]);
	close(down[0]);
	close(up[1]);
	other.to = down[1];
	other.from = up[0];
	for (uint32_t i = 0; i < PIECES; i++)
		CHECK(read(other.from, &other.base[i], sizeof(other.base[i])) == sizeof(other.base[i]));
	return other;
}

static void end_other(struct other *other)
{
	kill(other->pid, SIGKILL);
	CHECK(waitpid(other->pid, NULL, 0) == other->pid);
	close(other->to);
	close(other->from);
	for (uint32_t i = 0; i < PIECES; i++)
		close(other->fd[i]);
}

static struct gy_ram *attach(const struct other *other)
{
	struct gy_ram *ram;
	char err[256] = "";

	CHECK(!gy_ram_attach((uint32_t)other->pid, PIECES * PIECE_BYTES, &ram));
	for (uint32_t i = 0; i < PIECES; i++) {
		char path[64];

		snprintf(path, sizeof(path), "/proc/self/fd/%d", other->fd[i]);
		CHECK(!gy_ram_attach_piece(ram, path, 0, other->base[i], PIECE_BYTES, err, sizeof(err)));
	}
	return ram;
}

static void ask(const struct other *other, char what, uint64_t page, uint8_t value)
{
	struct order order = { .what = what, .page = page, .value = value };

	CHECK(write(other->to, &order, sizeof(order)) == sizeof(order));
}

static bool answered(const struct other *other, int ms)
{
	struct pollfd p = { .fd = other->from, .events = POLLIN };

	return poll(&p, 1, ms) > 0;
}

static uint32_t answer(const struct other *other)
{
	uint32_t value = 0;

	CHECK(answered(other, SOON_MS));
	CHECK(read(other->from, &value, sizeof(value)) == sizeof(value));
	return value;
}

static int open_descriptors(pid_t pid)
{
	char command[64];
	FILE *p;
	int n = -1;

	snprintf(command, sizeof(command), "ls /proc/%d/fd | wc -l", pid);
	p = popen(command, "re");
	CHECK(p && fscanf(p, "%d", &n) == 1);
	pclose(p);
	return n;
}

static uint64_t await_fault(struct uffd *uffd)
{
	uint64_t deadline = deadline_after_ms(SOON_MS);
	struct uffd_fault fault;
	int n;

	do {
		n = uffd_read(uffd, &fault, 1);
		CHECK(now_ns() < deadline);
	} while (!n);
	CHECK_EQUAL(n, 1);
	return fault.page;
}

static void test_pages_are_placed_in_another_process(void)
{
	struct other other = start_other();
	struct gy_ram *ram = attach(&other);
	static uint8_t data[4 * GY_PAGE_BYTES];
	int before = open_descriptors(other.pid);
	uint64_t edge = PIECE_PAGES - 2, existed = 0;
	struct uffd uffd;
	char err[256] = "";

	for (uint64_t i = 0; i < 4; i++)
		memset(data + i * GY_PAGE_BYTES, (int)(0x40 + i), GY_PAGE_BYTES);
	CHECK(!uffd_open(&uffd, ram, err, sizeof(err)));
	/* It has a copy of its own. */
	CHECK_EQUAL(open_descriptors(other.pid), before + 1);

	ask(&other, 'r', PIECE_PAGES + 1, 0);
	CHECK_EQUAL(await_fault(&uffd), PIECE_PAGES + 1);
	CHECK(!answered(&other, 20));
	/* Across the edge of two pieces, with the page that is waited for in the second. */
	CHECK(!uffd_copy(&uffd, edge, 4, data, &existed));
	CHECK_EQUAL(answer(&other), 0x43);
	CHECK_EQUAL(existed, 0);
	ask(&other, 'r', edge, 0);
	CHECK_EQUAL(answer(&other), 0x40);

	ask(&other, 'r', 7, 0);
	CHECK_EQUAL(await_fault(&uffd), 7);
	CHECK(!uffd_zero(&uffd, 7));
	CHECK_EQUAL(answer(&other), 0);

	CHECK(!uffd_unregister(&uffd));
	uffd_close(&uffd);
	CHECK_EQUAL(open_descriptors(other.pid), before);
	/* Ordinary memory again. */
	ask(&other, 'r', 9, 0);
	CHECK_EQUAL(answer(&other), 0);
	gy_ram_destroy(ram);
	end_other(&other);
}

/* The agent dies: whoever waits for a page goes on waiting, and reads no zeros. */
static void test_faults_wait_without_the_agent(void)
{
	struct other other = start_other();
	struct gy_ram *ram = attach(&other);
	struct uffd uffd;
	char err[256] = "";

	CHECK(!uffd_open(&uffd, ram, err, sizeof(err)));
	uffd_close(&uffd);
	ask(&other, 'r', 3, 0);
	CHECK(!answered(&other, 200));
	gy_ram_destroy(ram);
	end_other(&other);
}

/* A fault whose message went with the agent that read it is answered by the next one. */
static void test_a_new_agent_answers_what_the_dead_one_had_read(void)
{
	struct other other = start_other();
	struct gy_ram *ram = attach(&other);
	static uint8_t data[GY_PAGE_BYTES] = { 0x55 };
	int before = open_descriptors(other.pid);
	uint64_t existed = 0;
	struct uffd uffd;
	char err[256] = "";
	pid_t agent = fork();

	CHECK(agent >= 0);
	if (!agent) {
		CHECK(!uffd_open(&uffd, ram, err, sizeof(err)));
		ask(&other, 'r', PIECE_PAGES + 3, 0);
		CHECK_EQUAL(await_fault(&uffd), PIECE_PAGES + 3);
		_exit(0);
	}
	CHECK(waitpid(agent, NULL, 0) == agent);
	CHECK(!uffd_take_over(&uffd, ram, err, sizeof(err)));
	CHECK(!answered(&other, 50));
	CHECK(!uffd_wake_all(&uffd));
	CHECK_EQUAL(await_fault(&uffd), PIECE_PAGES + 3);
	CHECK(!uffd_copy(&uffd, PIECE_PAGES + 3, 1, data, &existed));
	CHECK_EQUAL(answer(&other), 0x55);
	CHECK(!uffd_unregister(&uffd));
	uffd_close(&uffd);
	CHECK_EQUAL(open_descriptors(other.pid), before);
	CHECK_EQUAL(uffd_take_over(&uffd, ram, err, sizeof(err)), -ENOENT);
	gy_ram_destroy(ram);
	end_other(&other);
}

/* What is in the file is here and stays as it is; the rest is missing, but for what no region has. */
static void test_a_new_agent_finds_what_is_here(void)
{
	struct other other = start_other();
	struct gy_ram *ram = attach(&other);
	const struct gyges_region half = { .first_page = 0, .pages = PIECE_PAGES, .remote_addr = 1 << 20 };
	struct gy_sink_config config = { .postcopy_window_bytes = GY_PAGE_BYTES, .take_over = 1 };
	static uint8_t data[2 * GY_PAGE_BYTES] = { 0x66 }, empty[GY_PAGE_BYTES];
	uint64_t existed = 0;
	struct gy_sink *sink;
	struct uffd uffd;
	char err[256] = "";

	CHECK_EQUAL(gy_sink_create(ram, &config, &sink, err, sizeof(err)), -ENOENT);
	CHECK(!uffd_open(&uffd, ram, err, sizeof(err)));
	/* At the edges of the pieces, where a look by extents may go wrong. */
	CHECK(!uffd_copy(&uffd, PIECE_PAGES - 1, 2, data, &existed));
	CHECK(!uffd_copy(&uffd, 0, 1, data, &existed));
	CHECK(!uffd_copy(&uffd, PIECES * PIECE_PAGES - 1, 1, data, &existed));
	uffd_close(&uffd);

	CHECK(!gy_sink_create(ram, &config, &sink, err, sizeof(err)));
	CHECK(!gy_sink_regions(sink, (const uint8_t *)&half, sizeof(half)));
	CHECK_EQUAL(gy_sink_arm(sink), PIECE_PAGES - 2);
	CHECK_EQUAL(bitmap_count(sink->received, PIECES * PIECE_PAGES), 4);
	CHECK_EQUAL(bitmap_count(sink->zero, PIECES * PIECE_PAGES), PIECE_PAGES - 2);
	CHECK(bitmap_test(sink->received, PIECE_PAGES) && !bitmap_test(sink->want, PIECE_PAGES - 1));
	CHECK(!uffd_copy(&sink->uffd, 0, 1, empty, &existed));
	CHECK_EQUAL(existed, 1);
	ask(&other, 'r', 0, 0);
	CHECK_EQUAL(answer(&other), 0x66);
	end_other(&other);
	gy_sink_destroy(sink);
	gy_ram_destroy(ram);
}

/* Control: without a copy of its own the same process reads zeros when the agent is gone. */
static void test_control_the_last_copy_gone_reads_zeros(void)
{
	struct other other = start_other();
	struct gy_ram *ram = attach(&other);
	struct uffd uffd;
	char err[256] = "";

	CHECK(!uffd_open(&uffd, ram, err, sizeof(err)));
	remote_close(other.pid, uffd.remote_fd);
	uffd_close(&uffd);
	ask(&other, 'r', 3, 0);
	CHECK_EQUAL(answer(&other), 0);
	gy_ram_destroy(ram);
	end_other(&other);
}

static void test_writes_are_tracked(void)
{
	struct other other = start_other();
	struct gy_ram *ram = attach(&other);
	gy_word bitmap[PIECES * PIECE_PAGES / 64] = { 0 };
	const uint64_t words = sizeof(bitmap) / sizeof(bitmap[0]);
	struct gy_tracker *tracker;
	char err[256] = "";

	ask(&other, 'w', 5, 1);
	answer(&other);
	CHECK(!gy_tracker_create(ram, &tracker, err, sizeof(err)));
	CHECK_EQUAL(gy_tracker_collect(tracker, (uint64_t *)bitmap, words), 0);
	/* One that was there, one that was not, one of the other piece, one only read. */
	ask(&other, 'w', 5, 2);
	answer(&other);
	ask(&other, 'w', 6, 2);
	answer(&other);
	ask(&other, 'w', PIECE_PAGES + 9, 2);
	answer(&other);
	ask(&other, 'r', 8, 0);
	answer(&other);
	CHECK_EQUAL(gy_tracker_collect(tracker, (uint64_t *)bitmap, words), 3);
	CHECK(bitmap_test(bitmap, 5) && bitmap_test(bitmap, 6) && bitmap_test(bitmap, PIECE_PAGES + 9));
	CHECK_EQUAL(bitmap_count(bitmap, PIECES * PIECE_PAGES), 3);
	/* Each collect protects again. */
	CHECK_EQUAL(gy_tracker_collect(tracker, (uint64_t *)bitmap, words), 0);
	ask(&other, 'w', 5, 3);
	answer(&other);
	CHECK_EQUAL(gy_tracker_collect(tracker, (uint64_t *)bitmap, words), 1);
	gy_tracker_destroy(tracker);
	gy_ram_destroy(ram);
	end_other(&other);
}

/* An agent that died has left its tracker in the process: the next one's works all the same. */
static void test_a_tracker_left_behind_is_ended(void)
{
	struct other other = start_other();
	struct gy_ram *ram = attach(&other);
	gy_word bitmap[PIECES * PIECE_PAGES / 64] = { 0 };
	int before = open_descriptors(other.pid);
	struct gy_tracker *tracker;
	char err[256] = "";
	pid_t agent = fork();

	CHECK(agent >= 0);
	if (!agent) {
		CHECK(!gy_tracker_create(ram, &tracker, err, sizeof(err)));
		_exit(0);
	}
	CHECK(waitpid(agent, NULL, 0) == agent);
	CHECK_EQUAL(open_descriptors(other.pid), before + 1);
	CHECK(!gy_tracker_create(ram, &tracker, err, sizeof(err)));
	ask(&other, 'w', 5, 2);
	answer(&other);
	CHECK_EQUAL(gy_tracker_collect(tracker, (uint64_t *)bitmap, PIECES * PIECE_PAGES / 64), 1);
	gy_tracker_destroy(tracker);
	CHECK_EQUAL(open_descriptors(other.pid), before);
	gy_ram_destroy(ram);
	end_other(&other);
}

/* Calls again and again inside a process that is being signalled: none of its signals is lost, and it goes on. */
static void test_calls_disturb_nothing(void)
{
	struct other other = start_other();
	struct gy_ram *ram = attach(&other);
	int before = open_descriptors(other.pid);
	char err[256] = "";

	for (int i = 0; i < 300; i++) {
		struct uffd uffd;

		CHECK(!sigqueue(other.pid, SIGRTMIN, (union sigval){ 0 }));
		CHECK(!uffd_open(&uffd, ram, err, sizeof(err)));
		CHECK(!sigqueue(other.pid, SIGRTMIN, (union sigval){ 0 }));
		CHECK(!uffd_unregister(&uffd));
		uffd_close(&uffd);
	}
	ask(&other, 's', 0, 0);
	CHECK_EQUAL(answer(&other), 600);
	CHECK_EQUAL(open_descriptors(other.pid), before);
	gy_ram_destroy(ram);
	end_other(&other);
}

static void test_a_debugger_is_named(void)
{
	struct other other = start_other();
	struct gy_ram *ram = attach(&other);
	struct uffd uffd;
	char err[256] = "";
	int status;
	pid_t debugger = fork();

	CHECK(debugger >= 0);
	if (!debugger) {
		if (ptrace(PTRACE_SEIZE, other.pid, NULL, NULL))
			_exit(1);
		raise(SIGSTOP);
		pause();
	}
	CHECK(waitpid(debugger, &status, WUNTRACED) == debugger && WIFSTOPPED(status));
	CHECK_EQUAL(uffd_open(&uffd, ram, err, sizeof(err)), -EBUSY);
	CHECK(strstr(err, "debugger"));
	kill(debugger, SIGKILL);
	CHECK(waitpid(debugger, NULL, 0) == debugger);
	/* It is as it was. */
	ask(&other, 'r', 0, 0);
	answer(&other);
	gy_ram_destroy(ram);
	end_other(&other);
}

static void test_a_process_that_is_gone_is_named(void)
{
	struct other other = start_other();
	struct gy_ram *ram = attach(&other);
	struct uffd uffd;
	char err[256] = "";

	end_other(&other);
	CHECK(uffd_open(&uffd, ram, err, sizeof(err)) < 0);
	CHECK(strlen(err) > 0);
	gy_ram_destroy(ram);
}

static void test_pieces_are_one_ram(void)
{
	struct other other = start_other();
	struct gy_ram *ram = attach(&other);
	uint8_t byte = 0;

	ask(&other, 'w', 0, 0x11);
	answer(&other);
	ask(&other, 'w', PIECE_PAGES + 3, 0x22);
	answer(&other);
	CHECK_EQUAL(gy_ram_read(ram, PIECE_BYTES + 3 * GY_PAGE_BYTES, &byte, 1), 1);
	CHECK_EQUAL(byte, 0x22);
	CHECK_EQUAL(gy_ram_allocated(ram), 2 * GY_PAGE_BYTES);
	/* The first piece is a hole from page 1 on, the second up to page 3. */
	CHECK_EQUAL(gy_ram_seek(ram, GY_PAGE_BYTES, 1), PIECE_BYTES + 3 * GY_PAGE_BYTES);
	CHECK_EQUAL(gy_ram_seek(ram, 0, 0), GY_PAGE_BYTES);
	CHECK_EQUAL(gy_ram_seek(ram, PIECE_BYTES + 4 * GY_PAGE_BYTES, 1), PIECES * PIECE_BYTES);
	CHECK(!gy_ram_punch(ram, 0, PIECES * PIECE_BYTES));
	CHECK_EQUAL(gy_ram_allocated(ram), 0);
	ask(&other, 'r', PIECE_PAGES + 3, 0);
	CHECK_EQUAL(answer(&other), 0);
	gy_ram_destroy(ram);
	end_other(&other);
}

static void test_wrong_pieces_are_refused(void)
{
	struct other other = start_other();
	char err[256] = "", path[64];
	struct gy_ram *ram;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", other.fd[0]);
	CHECK_EQUAL(gy_ram_attach((uint32_t)other.pid, PIECE_BYTES + 1, &ram), -EINVAL);
	CHECK(!gy_ram_attach((uint32_t)other.pid, PIECES * PIECE_BYTES, &ram));
	CHECK_EQUAL(gy_ram_attach_piece(ram, path, 0, other.base[0], 2 * PIECE_BYTES, err, sizeof(err)), -EINVAL);
	CHECK(strstr(err, "has 2097152 bytes and should have 4194304"));
	CHECK_EQUAL(gy_ram_attach_piece(ram, "/nowhere", 0, other.base[0], PIECE_BYTES, err, sizeof(err)), -ENOENT);
	gy_ram_destroy(ram);
	end_other(&other);
}

int main(void)
{
	test_pieces_are_one_ram();
	test_wrong_pieces_are_refused();
	test_pages_are_placed_in_another_process();
	test_faults_wait_without_the_agent();
	test_a_new_agent_answers_what_the_dead_one_had_read();
	test_a_new_agent_finds_what_is_here();
	test_control_the_last_copy_gone_reads_zeros();
	test_writes_are_tracked();
	test_a_tracker_left_behind_is_ended();
	test_calls_disturb_nothing();
	test_a_debugger_is_named();
	test_a_process_that_is_gone_is_named();
	puts("remote_test: passed");
	return 0;
}
