// SPDX-License-Identifier: Apache-2.0
/* remote_test.c - RAM of another process, as a QEMU has it: calls made inside it without its noticing, and agents that die. */
#include <sys/ptrace.h>

#include "bitmap.h"
#include "region_table.h"
#include "remote_call.h"
#include "remote_fixture.h"
#include "sink.h"

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
		CHECK(gy_tracker_create(ram, &tracker, err, sizeof(err)) >= 0);
		CHECK(!gy_tracker_start(tracker, err, sizeof(err)));
		_exit(0);
	}
	CHECK(waitpid(agent, NULL, 0) == agent);
	CHECK_EQUAL(open_descriptors(other.pid), before + 1);
	CHECK(gy_tracker_create(ram, &tracker, err, sizeof(err)) >= 0);
	CHECK(!gy_tracker_start(tracker, err, sizeof(err)));
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
	test_faults_wait_without_the_agent();
	test_a_new_agent_answers_what_the_dead_one_had_read();
	test_a_new_agent_finds_what_is_here();
	test_control_the_last_copy_gone_reads_zeros();
	test_a_tracker_left_behind_is_ended();
	test_calls_disturb_nothing();
	test_a_debugger_is_named();
	test_a_process_that_is_gone_is_named();
	puts("remote_test: passed");
	return 0;
}
