// SPDX-License-Identifier: Apache-2.0
/*
 * helper.c - a thread in somebody else's process, stock QEMU, which makes userfaultfds of that process for Gyges.
 *
 * A userfaultfd is of the process that makes it. Where that one may be traced it is made to from outside; this is for where
 * it may not. The process keeps its own copy, so that its faults are caught also after all others are gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "helper.h"

#define UFFD_FLAGS (O_CLOEXEC | O_NONBLOCK)
#define MADE_MAX 16

static int device = -1;
static int made[MADE_MAX];
static int n_made;

static int make(void)
{
	/* A filter may not know the system call, and privilege may have been given up since the device was opened. */
	int fd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, UFFD_FLAGS) :
			       (int)syscall(SYS_userfaultfd, UFFD_FLAGS);

	if (fd < 0)
		return -errno;
	if (n_made == MADE_MAX) {
		close(fd);
		return -EMFILE;
	}
	made[n_made++] = fd;
	return fd;
}

static int index_of(int fd)
{
	for (int i = 0; i < n_made; i++)
		if (made[i] == fd)
			return i;
	return -1;
}

/* *copy: what goes with the reply, or -1. */
static int obey(const struct helper_request *request, int *copy)
{
	int at = index_of(request->fd);

	if (request->order == HELPER_MAKE)
		return *copy = make();
	if (at < 0)
		return -EBADF;
	if (request->order == HELPER_COPY)
		return *copy = request->fd;
	if (request->order != HELPER_CLOSE)
		return -EINVAL;
	made[at] = made[--n_made];
	return close(request->fd) ? -errno : 0;
}

static void answer(int connection, int result, int copy)
{
	struct helper_reply reply = { result };
	struct iovec io = { &reply, sizeof(reply) };
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { .head = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct msghdr msg = { .msg_iov = &io, .msg_iovlen = 1 };

	if (copy >= 0) {
		memcpy(CMSG_DATA(&control.head), &copy, sizeof(copy));
		msg.msg_control = control.bytes;
		msg.msg_controllen = sizeof(control.bytes);
	}
	sendmsg(connection, &msg, MSG_NOSIGNAL);
}

static void serve(int connection)
{
	/* Nobody else may be kept waiting by one that says nothing. */
	const struct timeval limit = { .tv_sec = 1 };
	struct helper_request request;
	int copy = -1;

	setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (recv(connection, &request, sizeof(request), MSG_WAITALL) == sizeof(request)) {
		int result = obey(&request, &copy);

		answer(connection, result, copy);
	}
	close(connection);
}

static void *listener(void *arg)
{
	for (;;) {
		int connection = accept4(HELPER_LISTEN_FD, NULL, NULL, SOCK_CLOEXEC);

		if (connection >= 0)
			serve(connection);
		else if (errno != EINTR && errno != ECONNABORTED)
			return arg;
	}
}

/* The socket that this very process was started with; not one of that number in a child of it. */
static bool is_ours(const char *path)
{
	struct sockaddr_un address = { 0 };
	struct ucred who;
	socklen_t size = sizeof(address) - 1, who_size = sizeof(who);

	return !getsockname(HELPER_LISTEN_FD, (struct sockaddr *)&address, &size) && address.sun_family == AF_UNIX &&
	       !strcmp(address.sun_path, path) &&
	       !getsockopt(HELPER_LISTEN_FD, SOL_SOCKET, SO_PEERCRED, &who, &who_size) && who.pid == getpid();
}

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv(HELPER_VARIABLE);
	sigset_t all, before;
	pthread_t thread;

	if (!path || !is_ours(path))
		return;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (!pthread_create(&thread, NULL, listener, NULL)) {
		pthread_setname_np(thread, "gy-faults");
		pthread_detach(thread);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}
