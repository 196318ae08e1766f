// SPDX-License-Identifier: Apache-2.0
/* tool.c - a program that works for us, as make does: its output goes to a file, its end is waited for. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "argv.h"
#include "clock.h"
#include "err.h"
#include "gyges.h"

extern char **environ;

struct gy_tool {
	pid_t pid;	/* leads a session: what it starts can be ended with it */
	int fd;		/* pidfd */
	int code;	/* once it has ended; < 0 before */
};

/* Output to @log, nothing to read, nothing of ours left open. */
static int set_files(posix_spawn_file_actions_t *files, const char *log)
{
	int ret = posix_spawn_file_actions_addopen(files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);

	if (!ret)
		ret = posix_spawn_file_actions_addopen(files, STDOUT_FILENO, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (!ret)
		ret = posix_spawn_file_actions_adddup2(files, STDOUT_FILENO, STDERR_FILENO);
	if (!ret)
		ret = posix_spawn_file_actions_addclosefrom_np(files, STDERR_FILENO + 1);
	return ret;
}

static int set_signals(posix_spawnattr_t *attributes)
{
	sigset_t none, normal;
	int ret;

	sigemptyset(&none);
	sigemptyset(&normal);
	sigaddset(&normal, SIGPIPE);
	ret = posix_spawnattr_setsigmask(attributes, &none);
	if (!ret)
		ret = posix_spawnattr_setsigdefault(attributes, &normal);
	if (!ret)
		ret = posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK |
					       POSIX_SPAWN_SETSIGDEF);
	return ret;
}

static int spawn(char *const argv[], const char *log, pid_t *pid)
{
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attributes;
	int ret = posix_spawn_file_actions_init(&files);

	if (ret)
		return -ret;
	ret = posix_spawnattr_init(&attributes);
	if (ret)
		goto err_files;
	ret = set_files(&files, log);
	if (!ret)
		ret = set_signals(&attributes);
	if (!ret)
		ret = posix_spawnp(pid, argv[0], &files, &attributes, argv, environ);
	posix_spawnattr_destroy(&attributes);
err_files:
	posix_spawn_file_actions_destroy(&files);
	return -ret;
}

/* Its exit code, as a shell would tell it; it has ended or will at once. */
static int reap(struct gy_tool *tool)
{
	int status;

	while (waitpid(tool->pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	tool->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	return tool->code;
}

int gy_tool_start(const char *argv, uint64_t argv_bytes, const char *log, struct gy_tool **out, char *err,
		  uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	char **list = gy_argv_split(argv, argv_bytes);
	struct gy_tool *tool = malloc(sizeof(*tool));
	int ret = -ENOMEM;

	if (!list)
		ret = gy_err_set(&words, -EINVAL, "there is no program to start");
	if (!list || !tool)
		goto out;
	tool->code = -1;
	ret = spawn(list, log, &tool->pid);
	if (ret) {
		gy_err_set(&words, ret, "cannot start %s: %s", list[0], strerror(-ret));
		goto out;
	}
	tool->fd = (int)syscall(SYS_pidfd_open, tool->pid, 0);
	if (tool->fd < 0) {
		ret = gy_err_set(&words, -errno, "cannot watch %s: %s", list[0], strerror(errno));
		kill(-tool->pid, SIGKILL);
		reap(tool);
		goto out;
	}
	*out = tool;
	tool = NULL;
out:
	free(tool);
	free(list);
	return ret;
}

int gy_tool_wait(struct gy_tool *tool, uint32_t timeout_ms)
{
	uint64_t deadline = deadline_after_ms(timeout_ms);
	struct pollfd p = { .fd = tool->fd, .events = POLLIN };
	int n;

	if (tool->code >= 0)
		return tool->code;
	do {
		n = poll(&p, 1, ms_until(deadline));
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return n ? reap(tool) : -ETIMEDOUT;
}

void gy_tool_destroy(struct gy_tool *tool)
{
	if (!tool)
		return;
	if (tool->code < 0) {
		/* A group keeps its number for as long as anyone is in it, and its leader is not reaped yet. */
		kill(-tool->pid, SIGKILL);
		reap(tool);
	}
	close(tool->fd);
	free(tool);
}
