// SPDX-License-Identifier: Apache-2.0
/* remote_helper.c - see remote_helper.h. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "remote_helper.h"

#define ANSWER_S 5

/* Whether it has got so far as to map the library; what only listens would never answer. */
static bool has_library(pid_t pid)
{
	char path[64], line[512];
	bool found = false;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	while (maps && !found && fgets(line, sizeof(line), maps))
		found = strstr(line, "/memfd:" HELPER_IMAGE_NAME);
	if (maps)
		fclose(maps);
	return found;
}

/* Where the process was told to listen. */
static int find_socket(pid_t pid, struct sockaddr_un *address)
{
	const size_t name = strlen(HELPER_VARIABLE "=");
	char path[64], *entry = NULL;
	size_t size = 0;
	int ret = -ENOENT;
	FILE *environ_of;

	snprintf(path, sizeof(path), "/proc/%d/environ", pid);
	environ_of = fopen(path, "re");
	while (environ_of && ret && getdelim(&entry, &size, '\0', environ_of) > 0) {
		if (strncmp(entry, HELPER_VARIABLE "=", name) || strlen(entry + name) >= sizeof(address->sun_path))
			continue;
		address->sun_family = AF_UNIX;
		strcpy(address->sun_path, entry + name);
		ret = 0;
	}
	free(entry);
	if (environ_of)
		fclose(environ_of);
	return ret;
}

/* The number may be another process's by now, and the path another's. */
static bool is_of(int fd, pid_t pid)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) && peer.pid == pid;
}

static int reach(pid_t pid)
{
	const struct timeval limit = { .tv_sec = ANSWER_S };
	struct sockaddr_un address = { 0 };
	int fd;

	if (find_socket(pid, &address) || !has_library(pid))
		return -ENOENT;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (!connect(fd, (const struct sockaddr *)&address, sizeof(address)) && is_of(fd, pid))
		return fd;
	close(fd);
	return -ENOENT;
}

static int take_reply(int connection, int *copy)
{
	struct helper_reply reply = { 0 };
	struct iovec io = { &reply, sizeof(reply) };
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct msghdr msg = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = control.bytes,
			      .msg_controllen = sizeof(control.bytes) };
	ssize_t got = recvmsg(connection, &msg, MSG_CMSG_CLOEXEC);

	if (got < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	if (got != sizeof(reply))
		return -ECONNRESET;
	if (msg.msg_controllen >= sizeof(control.head) && control.head.cmsg_type == SCM_RIGHTS)
		memcpy(copy, CMSG_DATA(&control.head), sizeof(*copy));
	return reply.result;
}

int remote_helper(pid_t pid, enum helper_order order, int fd, int *copy)
{
	const struct helper_request request = { .order = order, .fd = fd };
	int connection = reach(pid), ret;

	*copy = -1;
	if (connection < 0)
		return connection;
	if (send(connection, &request, sizeof(request), MSG_NOSIGNAL) == sizeof(request))
		ret = take_reply(connection, copy);
	else
		ret = -errno;
	close(connection);
	/* Sent and not come: there was no room for it here. */
	if (ret >= 0 && order != HELPER_CLOSE && *copy < 0)
		return -EMFILE;
	return ret;
}
