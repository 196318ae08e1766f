// SPDX-License-Identifier: Apache-2.0
/* remote_call.c - see remote_call.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "proc_status.h"
#include "remote_call.h"
#include "remote_helper.h"
#include "remote_thread.h"

#define UFFD_FLAGS (O_CLOEXEC | O_NONBLOCK)

/* ---- single calls ---- */

static int64_t one_call(struct remote *remote, void *arg)
{
	return remote_syscall(remote, arg);
}

/* One system call of process @pid: its result (>= 0, or -errno of its own), or -errno with the words in @err. */
static int64_t remote_call(pid_t pid, uint64_t args[5], const struct gy_err *err)
{
	return remote_stopped(pid, one_call, args, err);
}

static int take(pid_t pid, int remote_fd)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	int fd, ret;

	if (pidfd < 0)
		return -errno;
	fd = (int)syscall(SYS_pidfd_getfd, pidfd, remote_fd, 0);
	ret = fd < 0 ? -errno : fd;
	close(pidfd);
	return ret;
}

int remote_take(pid_t pid, int remote_fd)
{
	int copy;

	return remote_helper(pid, HELPER_COPY, remote_fd, &copy) >= 0 ? copy : take(pid, remote_fd);
}

void remote_close(pid_t pid, int fd)
{
	uint64_t args[5] = { SYS_close, (uint64_t)fd };
	int copy;

	if (remote_helper(pid, HELPER_CLOSE, fd, &copy) < 0)
		remote_call(pid, args, NULL);
}

/* ---- a userfaultfd by /dev/userfaultfd, for a process that may not have one by itself ---- */

/* In that process, while it is stopped. */
struct parcel {
	int pair[2];
	int filler;
	char byte;
	struct msghdr msg;
	struct iovec io;
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
};

static int peek(const struct remote *remote, uint64_t at, void *to, size_t len)
{
	const struct iovec here = { to, len }, there = { (void *)(uintptr_t)at, len };

	return process_vm_readv(remote->pid, &here, 1, &there, 1, 0) == (ssize_t)len ? 0 : -EFAULT;
}

static int poke(const struct remote *remote, uint64_t at, const void *from, size_t len)
{
	const struct iovec here = { (void *)(uintptr_t)from, len }, there = { (void *)(uintptr_t)at, len };

	return process_vm_writev(remote->pid, &here, 1, &there, 1, 0) == (ssize_t)len ? 0 : -EFAULT;
}

static void attach_descriptor(struct parcel *parcel, int fd)
{
	parcel->io = (struct iovec){ &parcel->byte, 1 };
	parcel->msg = (struct msghdr){
		.msg_iov = &parcel->io,
		.msg_iovlen = 1,
		.msg_control = parcel->control.bytes,
		.msg_controllen = sizeof(parcel->control.bytes),
	};
	parcel->control.head = (struct cmsghdr){
		.cmsg_len = CMSG_LEN(sizeof(int)),
		.cmsg_level = SOL_SOCKET,
		.cmsg_type = SCM_RIGHTS,
	};
	memcpy(CMSG_DATA(&parcel->control.head), &fd, sizeof(fd));
}

/* Sends @device into the socket pair of which the process has @end. */
static int post(const struct remote *remote, int end, int device)
{
	int ours = take(remote->pid, end), ret;
	struct parcel parcel = { 0 };

	if (ours < 0)
		return ours;
	attach_descriptor(&parcel, device);
	ret = sendmsg(ours, &parcel.msg, MSG_DONTWAIT | MSG_NOSIGNAL) == 1 ? 0 : -errno;
	close(ours);
	return ret;
}

/* The process takes what was posted. Its descriptor, or -errno. */
static int64_t receive(struct remote *remote, uint64_t at, int end)
{
	struct parcel parcel = { 0 };
	const uint64_t args[5] = { SYS_recvmsg, (uint64_t)end, at + offsetof(struct parcel, msg),
				   MSG_DONTWAIT | MSG_CMSG_CLOEXEC };
	int64_t ret;
	int fd;

	parcel.io = (struct iovec){ (void *)(uintptr_t)(at + offsetof(struct parcel, byte)), 1 };
	parcel.msg = (struct msghdr){
		.msg_iov = (void *)(uintptr_t)(at + offsetof(struct parcel, io)),
		.msg_iovlen = 1,
		.msg_control = (void *)(uintptr_t)(at + offsetof(struct parcel, control)),
		.msg_controllen = sizeof(parcel.control.bytes),
	};
	ret = poke(remote, at, &parcel, sizeof(parcel));
	if (!ret)
		ret = remote_syscall(remote, args);
	if (ret >= 0)
		ret = peek(remote, at, &parcel, sizeof(parcel));
	if (ret < 0)
		return ret;
	if (parcel.control.head.cmsg_len != CMSG_LEN(sizeof(int)))
		return -EMFILE;
	memcpy(&fd, CMSG_DATA(&parcel.control.head), sizeof(fd));
	return fd;
}

static void close_there(struct remote *remote, int64_t fd)
{
	const uint64_t args[5] = { SYS_close, (uint64_t)fd };

	remote_syscall(remote, args);
}

/* A copy of @device in the process. Its descriptor there, or -errno. */
static int64_t hand_over(struct remote *remote, int device)
{
	uint64_t at = remote_scratch(remote, sizeof(struct parcel));
	const uint64_t args[5] = { SYS_socketpair, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0,
				   at + offsetof(struct parcel, pair) };
	int64_t ret = remote_syscall(remote, args);
	int pair[2];

	if (!ret)
		ret = peek(remote, at + offsetof(struct parcel, pair), pair, sizeof(pair));
	if (ret)
		return ret;
	ret = post(remote, pair[0], device);
	if (!ret)
		ret = receive(remote, at, pair[1]);
	close_there(remote, pair[0]);
	close_there(remote, pair[1]);
	return ret;
}

static int64_t make_by_device(struct remote *remote, void *arg)
{
	uint64_t args[5] = { SYS_ioctl, 0, USERFAULTFD_IOC_NEW, UFFD_FLAGS };
	int64_t there = hand_over(remote, *(const int *)arg), made;

	if (there < 0)
		return gy_err_set(remote->err, (int)there, "cannot hand /dev/userfaultfd to process %d: %s", remote->pid,
				  strerror((int)-there));
	args[1] = (uint64_t)there;
	made = remote_syscall(remote, args);
	close_there(remote, there);
	if (made < 0)
		return gy_err_set(remote->err, (int)made, "process %d cannot make a userfaultfd of /dev/userfaultfd: %s",
				  remote->pid, strerror((int)-made));
	return made;
}

/* ---- a userfaultfd ---- */

/* Whether a filter says what the process may call, and perhaps kills it for what it does not know. */
static bool is_filtered(pid_t pid)
{
	int mode = 0;

	proc_status(pid, "Seccomp: %d", &mode);
	return mode != 0;
}

/*
 * The system call is what a process with privilege may make. Without, or where a filter might not know that call, we
 * open the device and the process makes a userfaultfd of it: no more than an ioctl.
 */
static int64_t make_userfaultfd(pid_t pid, const struct gy_err *err)
{
	uint64_t args[5] = { SYS_userfaultfd, UFFD_FLAGS };
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int64_t made = -EPERM;

	if (device < 0 || !is_filtered(pid))
		made = remote_call(pid, args, err);
	if (made == -EPERM && device >= 0)
		made = remote_stopped(pid, make_by_device, &device, err);
	else if (made == -EPERM)
		gy_err_set(err, -EPERM, "process %d has no privilege and may not make a userfaultfd, and there is no "
			   "/dev/userfaultfd to make it by", pid);
	if (device >= 0)
		close(device);
	return made;
}

int remote_userfaultfd(pid_t pid, int *remote_fd, const struct gy_err *err)
{
	int64_t made;
	int fd;

	/* It may lack what we can hand over, if we may. */
	made = remote_helper(pid, HELPER_MAKE, -1, &fd);
	if (made < 0) {
		made = make_userfaultfd(pid, err);
		if (made < 0)
			return (int)made;
		fd = take(pid, (int)made);
	}
	if (fd < 0) {
		remote_close(pid, (int)made);
		return gy_err_set(err, fd, "cannot take a descriptor of process %d: %s", pid, strerror(-fd));
	}
	*remote_fd = (int)made;
	return fd;
}

/* ---- one that is there already ---- */

/* 0: descriptor @name of the process is no userfaultfd. */
static uint64_t features_of(pid_t pid, const char *name)
{
	unsigned long long api, features = 0;
	char path[64], line[128];
	FILE *info;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%.10s", pid, name);
	info = fopen(path, "re");
	while (info && fgets(line, sizeof(line), info))
		sscanf(line, "API:\t%llx:%llx:", &api, &features);
	if (info)
		fclose(info);
	return features;
}

int remote_find_userfaultfd(pid_t pid, uint64_t features, int from)
{
	int found = -ENOENT;
	char path[64];
	DIR *folder;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	folder = opendir(path);
	if (!folder)
		return errno == ENOENT ? -ESRCH : -errno;
	for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
		int fd = atoi(entry->d_name);

		if (entry->d_name[0] != '.' && fd >= from && (found < 0 || fd < found) &&
		    (features_of(pid, entry->d_name) & features) == features)
			found = fd;
	}
	closedir(folder);
	return found;
}
