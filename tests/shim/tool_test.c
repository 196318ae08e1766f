// SPDX-License-Identifier: Apache-2.0
/* tool_test.c - programs that work for us, and who uses a file system. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "gyges.h"
#include "host.h"

static char folder[] = "/tmp/gyges-tool-XXXXXX";
static char log_path[64];

static struct gy_tool *start(const char *script)
{
	char argv[256] = "sh\0-c";
	struct gy_tool *tool = NULL;
	char err[256] = "";

	strcpy(argv + sizeof("sh\0-c"), script);
	CHECK_EQUAL(gy_tool_start(argv, sizeof("sh\0-c") + strlen(script) + 1, log_path, &tool, err, sizeof(err)), 0);
	return tool;
}

static int run(const char *script)
{
	struct gy_tool *tool = start(script);
	int code = gy_tool_wait(tool, 30000);

	CHECK_EQUAL(gy_tool_wait(tool, 0), code);
	gy_tool_destroy(tool);
	return code;
}

static void read_log(char *text, size_t size)
{
	int64_t n = gy_host_read(log_path, text, size - 1);

	CHECK(n >= 0);
	text[n] = '\0';
	unlink(log_path);
}

/* The last word of a log, a number. */
static pid_t number_in_log(void)
{
	char text[64];

	for (;;) {
		int64_t n = gy_host_read(log_path, text, sizeof(text) - 1);

		if (n > 0 && text[n - 1] == '\n')
			break;
		nap_ms(10);
	}
	return atoi(text);
}

static void test_codes_and_output(void)
{
	char text[128];

	CHECK_EQUAL(run("echo out; echo err >&2; exit 7"), 7);
	CHECK_EQUAL(run("echo more; kill -9 $$"), 128 + SIGKILL);
	read_log(text, sizeof(text));
	CHECK(!strcmp(text, "out\nerr\nmore\n"));
	/* Nothing of ours is open in it, and nothing is there to read. */
	CHECK_EQUAL(run("cat; ls /proc/self/fd | wc -l"), 0);
	read_log(text, sizeof(text));
	CHECK_EQUAL(atoi(text), 4); /* ls's own */
}

static void test_end_takes_all(void)
{
	struct gy_tool *tool = start("sleep 600 & echo $!; wait");
	pid_t child = number_in_log();

	CHECK_EQUAL(gy_tool_wait(tool, 10), -ETIMEDOUT);
	CHECK_EQUAL(kill(child, 0), 0);
	gy_tool_destroy(tool);
	for (int tries = 0; kill(child, 0) == 0 && tries < 500; tries++) {
		char path[64], text[256] = "";

		/* Where nobody takes orphans in, it stays as a zombie. */
		snprintf(path, sizeof(path), "/proc/%d/stat", child);
		if (gy_host_read(path, text, sizeof(text) - 1) <= 0 || strstr(text, ") Z"))
			break;
		CHECK(tries < 499);
		nap_ms(10);
	}
	unlink(log_path);
}

static void test_refusals(void)
{
	struct gy_tool *tool = NULL;
	char err[256] = "";

	CHECK_EQUAL(gy_tool_start("/no/such", 9, log_path, &tool, err, sizeof(err)), -ENOENT);
	CHECK_WORDS(err, "cannot start /no/such");
	CHECK_EQUAL(gy_tool_start("open", 4, log_path, &tool, err, sizeof(err)), -EINVAL);
	CHECK(!tool);
	gy_tool_destroy(NULL);
	unlink(log_path);
}

/* Whether this process is among the users of what /dev/shm is. */
static bool uses_shm(void)
{
	char text[4096], line[32];
	int64_t n = gy_mount_users("/dev/shm", text, sizeof(text) - 1);

	CHECK(n >= 0);
	text[n] = '\0';
	snprintf(line, sizeof(line), "%d tool_test\n", getpid());
	return strstr(text, line) != NULL;
}

static void test_mount_users(void)
{
	char path[64];
	void *page;
	int fd;

	CHECK(!uses_shm());
	snprintf(path, sizeof(path), "/dev/shm/gyges-tool-%d", getpid());
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && !unlink(path) && !ftruncate(fd, 4096));
	CHECK(uses_shm());
	page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(page != MAP_FAILED);
	close(fd);
	CHECK(uses_shm());
	munmap(page, 4096);
	CHECK(!uses_shm());
	CHECK_EQUAL(gy_mount_users("/no/such", path, sizeof(path)), -ENOENT);
}

int main(void)
{
	CHECK(mkdtemp(folder));
	snprintf(log_path, sizeof(log_path), "%s/log", folder);
	test_codes_and_output();
	test_end_takes_all();
	test_refusals();
	test_mount_users();
	rmdir(folder);
	return 0;
}
