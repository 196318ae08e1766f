// SPDX-License-Identifier: Apache-2.0
/*
 * guard.c - what is left to do if this process dies at a bad moment: a small process of its own waits for that.
 *
 * A QEMU outlives the agent that moves its guest. If the agent is killed while it has the guest stopped, somebody must let
 * it run on; if it is killed while a QEMU waits for a guest, that QEMU is of no use to anybody. The guard holds the read
 * end of a pipe: a byte says that all is well, the end of the pipe without one that the agent is gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "clock.h"
#include "detach.h"
#include "gyges.h"

#define RESCUE_MS 30000u
#define RETRY_US 100000
#define ANSWER_MS 2000

struct gy_guard {
	int fd;
};

/* ---- in the guard: system calls only ---- */

/* Whether QEMU's next answer is no error; its greeting and events have neither word. */
static bool answered_well(int fd)
{
	static char buf[65536];
	uint64_t deadline = deadline_after_ms(ANSWER_MS);
	size_t n = 0;

	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		ssize_t got;

		if (poll(&p, 1, ms_until(deadline)) <= 0)
			return false;
		got = read(fd, buf + n, sizeof(buf) - 1 - n);
		if (got <= 0)
			return false;
		n += (size_t)got;
		buf[n] = 0;
		if (strstr(buf, "\"error\""))
			return false;
		if (strstr(buf, "\"return\""))
			return true;
		if (n == sizeof(buf) - 1)
			n = 0;
	}
}

static bool order(int fd, const char *words)
{
	return write(fd, words, strlen(words)) == (ssize_t)strlen(words) && answered_well(fd);
}

static bool let_run(const struct sockaddr_un *monitor)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	bool runs = false;

	/* The agent's own connection ended with it. */
	if (fd >= 0 && !connect(fd, (const struct sockaddr *)monitor, sizeof(*monitor)) &&
	    order(fd, "{\"execute\":\"qmp_capabilities\"}\n")) {
		order(fd, "{\"execute\":\"migrate-set-capabilities\",\"arguments\":{\"capabilities\":["
			  "{\"capability\":\"x-ignore-shared\",\"state\":false}]}}\n");
		runs = order(fd, "{\"execute\":\"cont\"}\n");
	}
	if (fd >= 0)
		close(fd);
	return runs;
}

/* A migration under way has to fail first, as it does with the agent gone. */
static void rescue(const struct sockaddr_un *monitor)
{
	uint64_t deadline = deadline_after_ms(RESCUE_MS);

	while (!let_run(monitor) && now_ns() < deadline)
		usleep(RETRY_US);
}

struct post {
	int fd;
	const struct sockaddr_un *monitor;
	int victim;	/* pidfd; < 0: the guest behind @monitor is to run */
};

/* Leaves nothing open but @fd and @victim, which become 3 and 4. */
static void keep_only(int *fd, int *victim)
{
	int null = open("/dev/null", O_RDWR);
	int high[2] = { fcntl(*fd, F_DUPFD, 100), *victim < 0 ? -1 : fcntl(*victim, F_DUPFD, 100) };

	for (int i = 0; i < 3; i++)
		dup2(null, i);
	*fd = dup2(high[0], 3);
	if (*victim >= 0)
		*victim = dup2(high[1], 4);
	close_range(*victim >= 0 ? 5 : 4, UINT_MAX, 0);
}

static void stand_guard(void *arg)
{
	struct post *post = arg;
	char word;
	ssize_t n;

	keep_only(&post->fd, &post->victim);
	prctl(PR_SET_NAME, "gyges-guard");
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	do {
		n = read(post->fd, &word, 1);
	} while (n < 0 && errno == EINTR);
	if (n > 0)
		return;
	if (post->victim >= 0)
		syscall(SYS_pidfd_send_signal, post->victim, SIGKILL, NULL, 0);
	else
		rescue(post->monitor);
}

/* ---- in the agent ---- */

static int start(const struct sockaddr_un *monitor, int victim, struct gy_guard **out)
{
	struct gy_guard *guard = malloc(sizeof(*guard));
	struct post post = { .monitor = monitor, .victim = victim };
	int pipe_fd[2], ret;

	if (!guard)
		return -ENOMEM;
	if (pipe2(pipe_fd, O_CLOEXEC)) {
		free(guard);
		return -errno;
	}
	post.fd = pipe_fd[0];
	ret = gy_detach(stand_guard, &post);
	close(pipe_fd[0]);
	if (ret) {
		close(pipe_fd[1]);
		free(guard);
		return ret;
	}
	guard->fd = pipe_fd[1];
	*out = guard;
	return 0;
}

int gy_guard_run(const char *monitor, struct gy_guard **out)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (strlen(monitor) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path, monitor, strlen(monitor));
	return start(&address, -1, out);
}

int gy_guard_kill(uint32_t pid, struct gy_guard **out)
{
	int victim = (int)syscall(SYS_pidfd_open, pid, 0);
	int ret;

	if (victim < 0)
		return -errno;
	ret = start(NULL, victim, out);
	close(victim);
	return ret;
}

void gy_guard_dismiss(struct gy_guard *guard)
{
	/* It cannot fail but where the guard is gone, which is as well. */
	if (write(guard->fd, "", 1) < 0)
		errno = 0;
	close(guard->fd);
	free(guard);
}
