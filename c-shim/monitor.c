// SPDX-License-Identifier: Apache-2.0
/* monitor.c - a descriptor handed to QEMU through the connection that this process has to its monitor. */
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "err.h"
#include "gyges.h"

static int option(int fd, int name)
{
	int value = -1;
	socklen_t size = sizeof(value);

	return getsockopt(fd, SOL_SOCKET, name, &value, &size) ? -1 : value;
}

/* A connection that we made to a socket of process @pid: that has a name, and ours has none. */
static bool leads_to(int fd, pid_t pid)
{
	struct sockaddr_un here, there;
	struct ucred peer = { 0 };
	socklen_t here_size = sizeof(here), there_size = sizeof(there), size = sizeof(peer);

	return option(fd, SO_DOMAIN) == AF_UNIX && option(fd, SO_TYPE) == SOCK_STREAM &&
	       !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) && peer.pid == pid &&
	       !getsockname(fd, (struct sockaddr *)&here, &here_size) && here_size == sizeof(here.sun_family) &&
	       !getpeername(fd, (struct sockaddr *)&there, &there_size) && there_size > sizeof(there.sun_family);
}

static int find_connection(pid_t pid, const struct gy_err *err)
{
	DIR *folder = opendir("/proc/self/fd");
	int found = -1, n = 0;

	if (!folder)
		return gy_err_set(err, -errno, "cannot look at our own descriptors: %s", strerror(errno));
	for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
		int fd = atoi(entry->d_name);

		if (entry->d_name[0] == '.' || !leads_to(fd, pid))
			continue;
		found = fd;
		n++;
	}
	closedir(folder);
	if (n == 1)
		return found;
	return gy_err_set(err, -ENOTCONN, "there are %d connections to sockets of process %d, and one was expected", n, pid);
}

static int connect_to(const char *path, const struct gy_err *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd, ret;

	if (strlen(path) >= sizeof(address.sun_path))
		return gy_err_set(err, -ENAMETOOLONG, "the path %s is too long for a socket", path);
	memcpy(address.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && !connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return fd;
	ret = gy_err_set(err, -errno, "cannot connect to %s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return ret;
}

/* All of @words or none: a socket's buffer holds far more than one command. */
static int send_with(int to, const char *words, int fd)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {
		.head = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS },
	};
	struct iovec io = { (char *)(uintptr_t)words, strlen(words) };
	const struct msghdr msg = {
		.msg_iov = &io,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	ssize_t sent;

	memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	sent = sendmsg(to, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (sent < 0)
		return -errno;
	return (size_t)sent == io.iov_len ? 0 : -EIO;
}

int gy_monitor_send_connection(uint32_t pid, const char *words, const char *path, char *err, uint32_t err_bytes)
{
	struct gy_err text = { err, err_bytes };
	int to = find_connection((pid_t)pid, &text), fd, ret;

	if (to < 0)
		return to;
	fd = connect_to(path, &text);
	if (fd < 0)
		return fd;
	ret = send_with(to, words, fd);
	if (ret)
		gy_err_set(&text, ret, "cannot send to the monitor of process %u: %s", pid, strerror(-ret));
	close(fd);
	return ret;
}
