// SPDX-License-Identifier: Apache-2.0
/* process.c - other processes: started so that they outlive us, watched and ended by descriptor, never by number. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "argv.h"
#include "clock.h"
#include "detach.h"
#include "err.h"
#include "gyges.h"
#include "helper_start.h"
#include "preload/helper.h"

struct gy_process {
	pid_t pid;
	int fd;		/* pidfd */
};

/* What a start reports through its pipe: the pid once the program runs, or what kept it from running. */
struct report {
	pid_t pid;
	int error;
};

/* ---- start ---- */

struct program {
	char **argv;
	int log_fd;
	int report_fd;
	struct sockaddr_un listen_at;	/* no family: nowhere */
	struct sockaddr_un helper_at;	/* no family: it has no helper */
	int helper_fd;
	char **envp;			/* with the helper */
};

/* As descriptor @fd: it is this process that listens, whatever program and user it becomes. */
static int listen_as(int fd, const struct sockaddr_un *address)
{
	int made = socket(AF_UNIX, SOCK_STREAM, 0);

	/* A program before this one may have left it. */
	unlink(address->sun_path);
	if (made < 0 || bind(made, (const struct sockaddr *)address, sizeof(*address)) || listen(made, 1))
		return -errno;
	/* What dup2() leaves open of it is closed before exec. */
	return dup2(made, fd) < 0 ? -errno : 0;
}

/* What the program finds open from descriptor 3 on, the report at 3. -errno. */
static int arrange(const struct program *program)
{
	unsigned int unused = GY_PROCESS_LISTEN_FD;
	int ret = 0;

	if (program->report_fd != 3)
		dup3(program->report_fd, 3, O_CLOEXEC);
	if (program->listen_at.sun_family) {
		ret = listen_as(GY_PROCESS_LISTEN_FD, &program->listen_at);
		unused = GY_PROCESS_LISTEN_FD + 1;
	}
	if (program->helper_at.sun_family && !ret) {
		ret = listen_as(HELPER_LISTEN_FD, &program->helper_at);
		if (!ret && dup2(program->helper_fd, HELPER_IMAGE_FD) < 0)
			ret = -errno;
		unused = HELPER_IMAGE_FD + 1;
	}
	close_range(unused, UINT_MAX, 0);
	return ret;
}

/* In the new process. */
static void become(void *arg)
{
	const struct program *program = arg;
	struct report report = { .pid = getpid() };
	int null = open("/dev/null", O_RDONLY);
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	dup2(null, STDIN_FILENO);
	dup2(program->log_fd, STDOUT_FILENO);
	dup2(program->log_fd, STDERR_FILENO);
	/* Nothing of ours is left open in it, but the report, which goes with exec. */
	report.error = -arrange(program);
	if (write(3, &report, sizeof(report)) != sizeof(report) || report.error)
		_exit(127);
	execvpe(program->argv[0], program->argv, program->envp ? program->envp : environ);
	report.error = errno;
	if (write(3, &report, sizeof(report)) != sizeof(report))
		_exit(127);
	_exit(127);
}

/* The last word of the start: two reports, the second an error, or one and the end. */
static int read_report(int fd, pid_t *pid)
{
	struct report report;
	int error = ECHILD;

	while (read(fd, &report, sizeof(report)) == sizeof(report)) {
		*pid = report.pid;
		error = report.error;
	}
	return -error;
}

/* It is no child of ours, so that a tracer's waits are its own. */
static int start(struct program program, pid_t *pid)
{
	int pipe_fd[2], ret;

	if (pipe2(pipe_fd, O_CLOEXEC))
		return -errno;
	program.report_fd = pipe_fd[1];
	ret = gy_detach(become, &program);
	close(pipe_fd[1]);
	if (!ret)
		ret = read_report(pipe_fd[0], pid);
	close(pipe_fd[0]);
	return ret;
}

static int set_address(struct sockaddr_un *address, const char *path)
{
	if (strlen(path) >= sizeof(address->sun_path))
		return -ENAMETOOLONG;
	address->sun_family = AF_UNIX;
	strcpy(address->sun_path, path);
	return 0;
}

/* Adds a helper that listens at @path. */
static int add_helper(struct program *program, const char *path)
{
	int ret = set_address(&program->helper_at, path);

	if (ret)
		return ret;
	program->helper_fd = helper_image();
	if (program->helper_fd < 0)
		return program->helper_fd;
	program->envp = helper_environment(path);
	return program->envp ? 0 : -ENOMEM;
}

static void forget(struct program *program)
{
	close(program->log_fd);
	if (program->helper_fd >= 0)
		close(program->helper_fd);
	free(program->envp);
	free(program->argv);
}

int gy_process_start(const char *argv, uint64_t argv_bytes, const char *log, const char *socket_path,
		     const char *helper_path, struct gy_process **out, char *err, uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	char **list = gy_argv_split(argv, argv_bytes);
	struct program program = { .argv = list, .helper_fd = -1 };
	pid_t pid = 0;
	int ret;

	if (!list)
		return gy_err_set(&words, -EINVAL, "there is no program to start");
	program.log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (program.log_fd < 0) {
		ret = gy_err_set(&words, -errno, "cannot open %s: %s", log, strerror(errno));
		free(list);
		return ret;
	}
	ret = *socket_path ? set_address(&program.listen_at, socket_path) : 0;
	if (!ret && *helper_path && helper_is_wanted())
		ret = add_helper(&program, helper_path);
	if (!ret)
		ret = start(program, &pid);
	if (ret)
		gy_err_set(&words, ret, "cannot start %s: %s", list[0], strerror(-ret));
	forget(&program);
	return ret ? ret : gy_process_open((uint32_t)pid, out);
}

/* ---- watch ---- */

int gy_process_open(uint32_t pid, struct gy_process **out)
{
	struct gy_process *process = malloc(sizeof(*process));

	if (!process)
		return -ENOMEM;
	process->pid = (pid_t)pid;
	process->fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (process->fd < 0) {
		int ret = -errno;

		free(process);
		return ret;
	}
	*out = process;
	return 0;
}

uint32_t gy_process_pid(const struct gy_process *process)
{
	return (uint32_t)process->pid;
}

int gy_process_wait(struct gy_process *process, uint32_t timeout_ms)
{
	uint64_t deadline = deadline_after_ms(timeout_ms);
	struct pollfd p = { .fd = process->fd, .events = POLLIN };

	for (;;) {
		int n = poll(&p, 1, ms_until(deadline));

		if (n > 0)
			return 0;
		if (!n)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

int gy_process_kill(struct gy_process *process)
{
	if (!syscall(SYS_pidfd_send_signal, process->fd, SIGKILL, NULL, 0) || errno == ESRCH)
		return 0;
	return -errno;
}

int64_t gy_process_read(struct gy_process *process, const char *name, void *buf, uint64_t cap)
{
	uint64_t done = 0;
	char path[64];
	int fd;

	if (strcmp(name, "maps") && strcmp(name, "cmdline") && strcmp(name, "status"))
		return -EINVAL;
	snprintf(path, sizeof(path), "/proc/%d/%s", process->pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while (done < cap) {
		ssize_t n = read(fd, (uint8_t *)buf + done, cap - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (uint64_t)n;
	}
	close(fd);
	/* The number may be somebody else's by now. */
	if (!gy_process_wait(process, 0))
		return -ESRCH;
	return done < cap ? (int64_t)done : -ENOSPC;
}

void gy_process_destroy(struct gy_process *process)
{
	if (!process)
		return;
	close(process->fd);
	free(process);
}

int gy_unix_listener_pid(const char *path)
{
	struct sockaddr_un address = { 0 };
	struct ucred peer;
	socklen_t size = sizeof(peer);
	int fd, ret = set_address(&address, path);

	if (ret)
		return ret;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	ret = connect(fd, (struct sockaddr *)&address, sizeof(address)) ||
	      getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) ? -errno : peer.pid;
	close(fd);
	return ret;
}
