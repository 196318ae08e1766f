// SPDX-License-Identifier: Apache-2.0
/*
 * remote_rights_test.c - faults caught and writes tracked in another process, also in one that may make no userfaultfd by
 * itself: it has no privilege, or a filter kills it for trying.
 */
#include <sched.h>
#include <sys/mount.h>

#include "bitmap.h"
#include "remote_fixture.h"

static void test_pages_are_placed_in_another_process(enum rights rights)
{
	struct other other = start_other_with(rights);
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

static void test_writes_are_tracked(enum rights rights)
{
	struct other other = start_other_with(rights);
	struct gy_ram *ram = attach(&other);
	gy_word bitmap[PIECES * PIECE_PAGES / 64] = { 0 };
	const uint64_t words = sizeof(bitmap) / sizeof(bitmap[0]);
	struct gy_tracker *tracker;
	char err[256] = "";

	ask(&other, 'w', 5, 1);
	answer(&other);
	CHECK(gy_tracker_create(ram, &tracker, err, sizeof(err)) >= 0);
	CHECK(!gy_tracker_start(tracker, err, sizeof(err)));
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

/* Control: without the device there is no way, and the process goes on as it was. */
static void test_control_without_the_device_it_is_refused(void)
{
	struct other other = start_other_with(NO_PRIVILEGE);
	struct gy_ram *ram = attach(&other);
	int before = open_descriptors(other.pid), status;
	pid_t agent = fork();

	CHECK(agent >= 0);
	if (!agent) {
		char err[256] = "";
		struct uffd uffd;

		CHECK(!unshare(CLONE_NEWNS) && !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
		CHECK(!mount("none", "/dev", "tmpfs", 0, NULL));
		CHECK_EQUAL(uffd_open(&uffd, ram, err, sizeof(err)), -EPERM);
		CHECK(strstr(err, "has no privilege and may not make a userfaultfd"));
		_exit(0);
	}
	CHECK(waitpid(agent, &status, 0) == agent && !status);
	ask(&other, 'r', 0, 0);
	CHECK_EQUAL(answer(&other), 0);
	CHECK_EQUAL(open_descriptors(other.pid), before);
	gy_ram_destroy(ram);
	end_other(&other);
}

static bool unprivileged_allowed(void)
{
	FILE *setting = fopen("/proc/sys/vm/unprivileged_userfaultfd", "re");
	int value = 0;

	if (setting) {
		CHECK(fscanf(setting, "%d", &value) == 1);
		fclose(setting);
	}
	return value;
}

int main(void)
{
	test_pages_are_placed_in_another_process(ALL);
	test_writes_are_tracked(ALL);
	if (geteuid() || access("/dev/userfaultfd", R_OK | W_OK)) {
		puts("skip: processes with fewer rights: needs root and /dev/userfaultfd");
		return 77;
	}
	test_pages_are_placed_in_another_process(NO_PRIVILEGE);
	test_pages_are_placed_in_another_process(DEADLY_FILTER);
	test_writes_are_tracked(NO_PRIVILEGE);
	test_writes_are_tracked(DEADLY_FILTER);
	if (!unprivileged_allowed())
		test_control_without_the_device_it_is_refused();
	puts("remote_rights_test: passed");
	return 0;
}
