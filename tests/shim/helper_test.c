// SPDX-License-Identifier: Apache-2.0
/* helper_test.c - a process that nobody may trace makes userfaultfds all the same: by what it was started with. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "gyges.h"
#include "no_tracing.h"
#include "remote_call.h"
#include "remote_helper.h"

#define SOON_MS 20000
#define MADE_MAX 16
#define FEATURES UFFD_FEATURE_MISSING_SHMEM

static char folder[] = "/tmp/gyges-helper-XXXXXX";
static char log_path[64], socket_path[64];

static struct gy_process *start_sleeper(const char *helper_path)
{
	static const char argv[] = "sleep\0" "60";
	struct gy_process *process;
	char err[256] = "";

	CHECK(!gy_process_start(argv, sizeof(argv), log_path, "", helper_path, &process, err, sizeof(err)));
	return process;
}

static pid_t pid_of(const struct gy_process *process)
{
	return (pid_t)gy_process_pid(process);
}

static void end(struct gy_process *process)
{
	CHECK(!gy_process_kill(process) && !gy_process_wait(process, SOON_MS));
	gy_process_destroy(process);
}

/* It has it soon after it was started; a descriptor that the helper did not make is none of its. */
static void await_helper(pid_t pid)
{
	uint64_t deadline = deadline_after_ms(SOON_MS);
	int copy, ret;

	while ((ret = remote_helper(pid, HELPER_COPY, 0, &copy)) == -ENOENT) {
		CHECK(now_ns() < deadline);
		usleep(1000);
	}
	CHECK_EQUAL(ret, -EBADF);
}

/* Memory that this process has, and the caller not. */
static struct uffdio_range heap_of(pid_t pid)
{
	unsigned long from = 0, to = 0;
	char path[64], line[512];
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	CHECK(maps);
	while (fgets(line, sizeof(line), maps) && !strstr(line, "[heap]"))
		;
	CHECK(sscanf(line, "%lx-%lx", &from, &to) == 2);
	fclose(maps);
	return (struct uffdio_range){ from, to - from };
}

static void check_is_of(int uffd, pid_t pid)
{
	struct uffdio_api api = { .api = UFFD_API, .features = FEATURES };
	struct uffdio_register reg = { .range = heap_of(pid), .mode = UFFDIO_REGISTER_MODE_MISSING };

	CHECK(!ioctl(uffd, UFFDIO_API, &api));
	CHECK(!ioctl(uffd, UFFDIO_REGISTER, &reg));
	CHECK(!ioctl(uffd, UFFDIO_UNREGISTER, &reg.range));
}

/* One that connects and says nothing keeps the others waiting for a second at most. */
static int connect_silently(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, socket_path);
	CHECK(!connect(fd, (const struct sockaddr *)&address, sizeof(address)));
	return fd;
}

static void test_it_makes_keeps_and_closes(void)
{
	struct gy_process *process = start_sleeper(socket_path);
	pid_t pid = pid_of(process);
	int there, uffd, copy, silent;

	await_helper(pid);
	silent = connect_silently();
	uffd = remote_userfaultfd(pid, &there, NULL);
	CHECK(uffd >= 0);
	close(silent);
	check_is_of(uffd, pid);
	/* Whoever comes after us finds it there. */
	close(uffd);
	CHECK_EQUAL(remote_find_userfaultfd(pid, FEATURES, 0), there);
	copy = remote_take(pid, there);
	CHECK(copy >= 0);
	close(copy);
	CHECK_EQUAL(remote_take(pid, 0), -EPERM);
	remote_close(pid, there);
	CHECK_EQUAL(remote_find_userfaultfd(pid, FEATURES, 0), -ENOENT);
	CHECK_EQUAL(remote_helper(pid, HELPER_CLOSE, there, &copy), -EBADF);
	CHECK_EQUAL(remote_helper(pid, (enum helper_order)99, there, &copy), -EBADF);
	end(process);
}

static void test_there_are_only_so_many(void)
{
	struct gy_process *process = start_sleeper(socket_path);
	pid_t pid = pid_of(process);
	int copy, first;

	await_helper(pid);
	first = remote_helper(pid, HELPER_MAKE, -1, &copy);
	close(copy);
	for (int i = 1; i < MADE_MAX; i++) {
		CHECK(remote_helper(pid, HELPER_MAKE, -1, &copy) >= 0);
		close(copy);
	}
	CHECK_EQUAL(remote_helper(pid, HELPER_MAKE, -1, &copy), -EMFILE);
	CHECK_EQUAL(remote_helper(pid, HELPER_CLOSE, first, &copy), 0);
	CHECK_EQUAL(remote_helper(pid, HELPER_MAKE, -1, &copy), first);
	close(copy);
	end(process);
}

/* Control: without the helper there is no way. */
static void test_control_it_is_refused(void)
{
	struct gy_process *process = start_sleeper("");
	char words[256] = "";
	struct gy_err err = { words, sizeof(words) };
	int there;

	CHECK_EQUAL(remote_userfaultfd(pid_of(process), &there, &err), -EBUSY);
	CHECK(strstr(words, "may not trace process"));
	end(process);
}

/* Where it may be traced nothing is loaded into it. */
static void test_no_helper_where_none_is_needed(void)
{
	struct gy_process *process = start_sleeper(socket_path);
	uint64_t deadline = deadline_after_ms(200);
	int copy;

	for (; now_ns() < deadline; usleep(1000))
		CHECK_EQUAL(remote_helper(pid_of(process), HELPER_COPY, 0, &copy), -ENOENT);
	CHECK(access(socket_path, F_OK) && errno == ENOENT);
	end(process);
}

static void in_another_process(void (*tests)(void))
{
	pid_t pid = fork();
	int status;

	CHECK(pid >= 0);
	if (!pid) {
		tests();
		/* Not the sanitizer's look for leaks, which traces. */
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && !status);
}

static void where_tracing_is_forbidden(void)
{
	CHECK(!forbid_tracing());
	test_it_makes_keeps_and_closes();
	test_there_are_only_so_many();
	test_control_it_is_refused();
}

static bool is_filtered_already(void)
{
	return prctl(PR_GET_SECCOMP) > 0;
}

int main(void)
{
	if (geteuid()) {
		puts("skip: userfaultfds of another process: needs root");
		return 77;
	}
	CHECK(mkdtemp(folder));
	snprintf(log_path, sizeof(log_path), "%s/log", folder);
	snprintf(socket_path, sizeof(socket_path), "%s/faults.sock", folder);
	if (!is_filtered_already())
		test_no_helper_where_none_is_needed();
	in_another_process(where_tracing_is_forbidden);
	unlink(log_path);
	unlink(socket_path);
	rmdir(folder);
	puts("helper_test: passed");
	return 0;
}
