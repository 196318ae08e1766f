// SPDX-License-Identifier: Apache-2.0
/* uffd.c - see uffd.h. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gyges.h"
#include "uffd.h"

#define WANTED_FEATURES (UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_THREAD_ID)
#define READ_BATCH 16u

/*
 * Not UFFD_USER_MODE_ONLY: a vCPU faults inside KVM. That needs CAP_SYS_PTRACE or the sysctl; /dev/userfaultfd is
 * the way by file permission (Linux 6.1 and later).
 */
static int open_descriptor(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int device, ret;

	if (fd >= 0 || errno != EPERM)
		return fd >= 0 ? fd : -errno;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device < 0)
		return -EPERM;
	fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	ret = fd < 0 ? -errno : fd;
	close(device);
	return ret;
}

static int fail(char *err, uint32_t err_bytes, int ret, const char *what)
{
	if (err && err_bytes)
		snprintf(err, err_bytes, "%s: %s", what, strerror(-ret));
	return ret;
}

int uffd_open(struct uffd *uffd, uint8_t *base, uint64_t bytes, char *err, uint32_t err_bytes)
{
	struct uffdio_api api = { .api = UFFD_API, .features = WANTED_FEATURES };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)base, .len = bytes },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	const uint64_t needed = 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_WAKE | 1ull << _UFFDIO_ZEROPAGE;
	int ret;

	*uffd = (struct uffd){ .fd = open_descriptor(), .base = base, .bytes = bytes };
	if (uffd->fd < 0)
		return fail(err, err_bytes, uffd->fd, "cannot open userfaultfd");
	if (ioctl(uffd->fd, UFFDIO_API, &api)) {
		ret = fail(err, err_bytes, -errno, "userfaultfd has no missing-page mode for shared memory");
		goto err_close;
	}
	if (ioctl(uffd->fd, UFFDIO_REGISTER, &reg)) {
		ret = fail(err, err_bytes, -errno, "cannot register guest RAM with userfaultfd");
		goto err_close;
	}
	if ((reg.ioctls & needed) != needed) {
		ret = fail(err, err_bytes, -EOPNOTSUPP, "userfaultfd cannot place pages in shared memory");
		goto err_close;
	}
	return 0;

err_close:
	close(uffd->fd);
	uffd->fd = -1;
	return ret;
}

void uffd_close(struct uffd *uffd)
{
	if (uffd->fd >= 0)
		close(uffd->fd);
	uffd->fd = -1;
}

static struct uffdio_range range_of(const struct uffd *uffd, uint64_t page, uint64_t count)
{
	return (struct uffdio_range){
		.start = (uintptr_t)uffd->base + page * GY_PAGE_BYTES,
		.len = count * GY_PAGE_BYTES,
	};
}

int uffd_unregister(struct uffd *uffd)
{
	struct uffdio_range range = range_of(uffd, 0, uffd->bytes / GY_PAGE_BYTES);

	return ioctl(uffd->fd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

int uffd_read(struct uffd *uffd, struct uffd_fault *faults, uint32_t max)
{
	struct uffd_msg msg[READ_BATCH];
	int n = 0;
	ssize_t got;

	got = read(uffd->fd, msg, (max < READ_BATCH ? max : READ_BATCH) * sizeof(msg[0]));
	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (size_t i = 0; i < (size_t)got / sizeof(msg[0]); i++) {
		/* No other event was asked for. */
		if (msg[i].event != UFFD_EVENT_PAGEFAULT)
			continue;
		faults[n].page = (msg[i].arg.pagefault.address - (uintptr_t)uffd->base) / GY_PAGE_BYTES;
		faults[n++].tid = msg[i].arg.pagefault.feat.ptid;
	}
	return n;
}

int uffd_wake(struct uffd *uffd, uint64_t page, uint64_t count)
{
	struct uffdio_range range = range_of(uffd, page, count);

	return ioctl(uffd->fd, UFFDIO_WAKE, &range) ? -errno : 0;
}

int uffd_copy(struct uffd *uffd, uint64_t page, uint32_t count, const uint8_t *data, uint64_t *existed)
{
	uint64_t done = 0, len = (uint64_t)count * GY_PAGE_BYTES;

	while (done < len) {
		struct uffdio_copy copy = {
			.dst = (uintptr_t)uffd->base + page * GY_PAGE_BYTES + done,
			.src = (uintptr_t)data + done,
			.len = len - done,
		};
		int err = ioctl(uffd->fd, UFFDIO_COPY, &copy) ? errno : 0;

		if (copy.copy > 0)
			done += (uint64_t)copy.copy;
		/* A partial copy answers EAGAIN too; what stopped it shows at the next try. */
		if (!err || err == EAGAIN)
			continue;
		if (err != EEXIST)
			return -err;
		uffd_wake(uffd, page + done / GY_PAGE_BYTES, 1);
		done += GY_PAGE_BYTES;
		(*existed)++;
	}
	return 0;
}

int uffd_zero(struct uffd *uffd, uint64_t page)
{
	for (;;) {
		struct uffdio_zeropage zero = { .range = range_of(uffd, page, 1) };

		if (!ioctl(uffd->fd, UFFDIO_ZEROPAGE, &zero))
			return 0;
		if (errno == EEXIST)
			return uffd_wake(uffd, page, 1);
		if (errno != EAGAIN)
			return -errno;
	}
}
