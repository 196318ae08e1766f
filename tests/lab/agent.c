// SPDX-License-Identifier: Apache-2.0
/*
 * Process 1 of a lab host: runs commands for the harness over a virtio-serial
 * port.
 *
 *     agent PORT ROOT
 *
 * Both ways the port carries frames, a header of three little-endian u32
 * (type, id, length) and `length` bytes. The harness chooses ids:
 *
 *     EXEC    to the host    command, NUL, bytes for its stdin
 *     SIGNAL  to the host    u32 signal, for the command's session
 *     HELLO   from the host  nothing: commands are taken from now on
 *     OUT     from the host  bytes of stdout
 *     ERR     from the host  bytes of stderr
 *     EXIT    from the host  u32 exit code, 128 + signal if one ended it;
 *                            nothing of this id follows
 *
 * Commands run by /bin/sh in ROOT. The harness goes away: the host powers off.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum frame_type { HELLO, EXEC, SIGNAL, OUT, ERR, EXIT };

struct frame {
	uint32_t type;
	uint32_t id;
	uint32_t length;
};

enum { MAX_JOBS = 64, CHUNK = 32768, CANNOT_RUN = 126 };

/* A slot is free while its pid is 0; pipes are -1 once they have ended. */
struct job {
	pid_t pid;
	uint32_t id;
	int pipes[2];
};

static struct job jobs[MAX_JOBS];
static int port;
static const char *root;

static _Noreturn void power_off(const char *why)
{
	perror(why);
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void read_all(void *into, size_t length)
{
	for (char *at = into; length;) {
		ssize_t n = read(port, at, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			power_off("agent: the harness is gone");
		at += n;
		length -= (size_t)n;
	}
}

static void write_all(int fd, const void *from, size_t length)
{
	for (const char *at = from; length;) {
		ssize_t n = write(fd, at, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			power_off("agent: write");
		at += n;
		length -= (size_t)n;
	}
}

static void send_frame(uint32_t type, uint32_t id, const void *data, uint32_t n)
{
	struct frame frame = { .type = type, .id = id, .length = n };

	write_all(port, &frame, sizeof(frame));
	write_all(port, data, n);
}

static void send_exit(uint32_t id, uint32_t code)
{
	send_frame(EXIT, id, &code, sizeof(code));
}

static _Noreturn void become(const char *command, int in, int out, int err)
{
	sigset_t none;

	setsid();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	dup2(in, STDIN_FILENO);
	dup2(out, STDOUT_FILENO);
	dup2(err, STDERR_FILENO);
	if (chroot(root) || chdir("/root"))
		_exit(CANNOT_RUN);
	execl("/bin/sh", "sh", "-c", command, NULL);
	_exit(CANNOT_RUN);
}

static int stdin_of(const char *bytes, size_t length)
{
	int fd = memfd_create("stdin", MFD_CLOEXEC);

	if (fd < 0)
		power_off("agent: memfd_create");
	write_all(fd, bytes, length);
	lseek(fd, 0, SEEK_SET);
	return fd;
}

static void start_job(uint32_t id, const char *payload, size_t length)
{
	size_t words = strnlen(payload, length) + 1;
	int in, out[2], err[2];
	struct job *job = jobs;

	while (job < jobs + MAX_JOBS && job->pid)
		job++;
	if (job == jobs + MAX_JOBS || words > length) {
		send_exit(id, CANNOT_RUN);
		return;
	}
	in = stdin_of(payload + words, length - words);
	if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
		power_off("agent: pipe2");
	job->pid = fork();
	if (job->pid == 0)
		become(payload, in, out[1], err[1]);
	close(in);
	close(out[1]);
	close(err[1]);
	if (job->pid < 0) {
		job->pid = 0;
		close(out[0]);
		close(err[0]);
		send_exit(id, CANNOT_RUN);
		return;
	}
	job->id = id;
	job->pipes[0] = out[0];
	job->pipes[1] = err[0];
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);
}

static void signal_job(uint32_t id, uint32_t number)
{
	for (struct job *job = jobs; job < jobs + MAX_JOBS; job++)
		if (job->pid && job->id == id)
			kill(-job->pid, (int)number);
}

static void take_frame(void)
{
	struct frame frame;
	uint32_t number = 0;
	char *payload;

	read_all(&frame, sizeof(frame));
	payload = calloc(1, (size_t)frame.length + 1);
	if (!payload)
		power_off("agent: calloc");
	read_all(payload, frame.length);
	switch (frame.type) {
	case EXEC:
		start_job(frame.id, payload, frame.length);
		break;
	case SIGNAL:
		memcpy(&number, payload, sizeof(number));
		signal_job(frame.id, number);
		break;
	}
	free(payload);
}

/* Hands on one chunk of pipe `which`; false when there is none now. */
static int forward(struct job *job, int which)
{
	static char chunk[CHUNK];
	ssize_t n;

	if (job->pipes[which] < 0)
		return 0;
	n = read(job->pipes[which], chunk, sizeof(chunk));
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) {
		close(job->pipes[which]);
		job->pipes[which] = -1;
		return 0;
	}
	send_frame(which ? ERR : OUT, job->id, chunk, (uint32_t)n);
	return 1;
}

/* What it left in the background may keep the pipes: nobody waits for that. */
static void end_job(struct job *job, int status)
{
	for (int which = 0; which < 2; which++) {
		while (forward(job, which))
			;
		if (job->pipes[which] >= 0)
			close(job->pipes[which]);
	}
	send_exit(job->id, WIFEXITED(status) ? (uint32_t)WEXITSTATUS(status)
					     : 128U + (uint32_t)WTERMSIG(status));
	job->pid = 0;
}

/* Orphans of the whole host come here too. */
static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (struct job *job = jobs; job < jobs + MAX_JOBS; job++)
			if (job->pid == pid)
				end_job(job, status);
}

static void serve(int signals)
{
	struct pollfd fds[2 + 2 * MAX_JOBS];
	struct signalfd_siginfo info;

	for (;;) {
		fds[0] = (struct pollfd){ .fd = port, .events = POLLIN };
		fds[1] = (struct pollfd){ .fd = signals, .events = POLLIN };
		for (int i = 0; i < 2 * MAX_JOBS; i++) {
			const struct job *job = &jobs[i / 2];

			fds[2 + i] = (struct pollfd){
				.fd = job->pid ? job->pipes[i % 2] : -1,
				.events = POLLIN,
			};
		}
		if (poll(fds, 2 + 2 * MAX_JOBS, -1) < 0 && errno != EINTR)
			power_off("agent: poll");
		for (int i = 0; i < 2 * MAX_JOBS; i++)
			if (fds[2 + i].revents)
				forward(&jobs[i / 2], i % 2);
		if (fds[1].revents && read(signals, &info, sizeof(info)) > 0)
			reap();
		if (fds[0].revents)
			take_frame();
	}
}

int main(int argc, char **argv)
{
	sigset_t child;
	int signals;

	if (argc != 3)
		power_off("usage: agent PORT ROOT");
	root = argv[2];
	port = open(argv[1], O_RDWR | O_CLOEXEC);
	if (port < 0)
		power_off(argv[1]);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0)
		power_off("agent: signalfd");
	send_frame(HELLO, 0, NULL, 0);
	serve(signals);
}
