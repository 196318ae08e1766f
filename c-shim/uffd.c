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

#include "err.h"
#include "gyges.h"
#include "remote_call.h"
#include "ram.h"
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

static int register_piece(const struct uffd *uffd, const struct ram_piece *piece, const struct gy_err *err)
{
	struct uffdio_register reg = {
		.range = { .start = piece->address, .len = piece->bytes },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	const uint64_t needed = 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_WAKE | 1ull << _UFFDIO_ZEROPAGE;

	if (ioctl(uffd->fd, UFFDIO_REGISTER, &reg))
		return gy_err_set(err, -errno, "cannot register guest RAM with userfaultfd: %s", strerror(errno));
	if ((reg.ioctls & needed) != needed)
		return gy_err_set(err, -EOPNOTSUPP, "userfaultfd cannot place pages in shared memory");
	return 0;
}

static int register_all(const struct uffd *uffd, const struct gy_err *err)
{
	int ret = 0;

	for (uint32_t i = 0; i < uffd->ram->n_pieces && !ret; i++)
		ret = register_piece(uffd, &uffd->ram->piece[i], err);
	return ret;
}

static int set_up(struct uffd *uffd, const struct gy_err *err)
{
	struct uffdio_api api = { .api = UFFD_API, .features = WANTED_FEATURES };

	if (ioctl(uffd->fd, UFFDIO_API, &api))
		return gy_err_set(err, -errno, "userfaultfd has no missing-page mode for shared memory: %s",
				  strerror(errno));
	return register_all(uffd, err);
}

int uffd_open(struct uffd *uffd, const struct gy_ram *ram, char *err, uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	int ret;

	*uffd = (struct uffd){ .ram = ram, .remote_fd = -1 };
	uffd->fd = ram->pid ? remote_userfaultfd(ram->pid, &uffd->remote_fd, &words) : open_descriptor();
	if (uffd->fd < 0)
		return ram->pid ? uffd->fd : gy_err_set(&words, uffd->fd, "cannot open userfaultfd: %s",
							strerror(-uffd->fd));
	ret = set_up(uffd, &words);
	if (ret) {
		uffd_unregister(uffd);
		uffd_close(uffd);
	}
	return ret;
}

int gy_ram_try_faults(struct gy_ram *ram, char *err, uint32_t err_bytes)
{
	struct uffd uffd;
	int ret = uffd_open(&uffd, ram, err, err_bytes);

	if (ret)
		return ret;
	ret = uffd_unregister(&uffd);
	uffd_close(&uffd);
	return ret;
}

/* Of several it is the one that has the pieces: to register them again changes nothing, and no other may. */
int uffd_take_over(struct uffd *uffd, const struct gy_ram *ram, char *err, uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	int ret = gy_err_set(&words, -ENOENT, "process %d has no userfaultfd", ram->pid);
	int remote = remote_find_userfaultfd(ram->pid, WANTED_FEATURES, 0);

	*uffd = (struct uffd){ .ram = ram, .fd = -1, .remote_fd = -1 };
	for (; remote >= 0; remote = remote_find_userfaultfd(ram->pid, WANTED_FEATURES, remote + 1)) {
		uffd->fd = remote_take(ram->pid, remote);
		if (uffd->fd < 0)
			return gy_err_set(&words, uffd->fd, "cannot take a descriptor of process %d: %s", ram->pid,
					  strerror(-uffd->fd));
		ret = register_all(uffd, &words);
		if (!ret) {
			uffd->remote_fd = remote;
			return 0;
		}
		uffd_close(uffd);
	}
	if (remote == -ENOENT)
		return ret;
	return gy_err_set(&words, remote, "cannot look at the descriptors of process %d: %s", ram->pid,
			  strerror(-remote));
}

void uffd_close(struct uffd *uffd)
{
	if (uffd->fd >= 0)
		close(uffd->fd);
	uffd->fd = -1;
}

static uint64_t address_of(const struct uffd *uffd, uint64_t page)
{
	return ram_address_of(uffd->ram, page);
}

int uffd_unregister(struct uffd *uffd)
{
	int ret = 0;

	for (uint32_t i = 0; i < uffd->ram->n_pieces; i++) {
		const struct ram_piece *piece = &uffd->ram->piece[i];
		struct uffdio_range range = { .start = piece->address, .len = piece->bytes };

		if (ioctl(uffd->fd, UFFDIO_UNREGISTER, &range) && !ret)
			ret = -errno;
	}
	if (uffd->remote_fd >= 0 && !ret) {
		remote_close(uffd->ram->pid, uffd->remote_fd);
		uffd->remote_fd = -1;
	}
	return ret;
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
		faults[n].page = ram_page_at(uffd->ram, msg[i].arg.pagefault.address);
		/* Only pieces of RAM are registered. */
		if (faults[n].page == uffd->ram->pages)
			return -EFAULT;
		faults[n++].tid = msg[i].arg.pagefault.feat.ptid;
	}
	return n;
}

int uffd_wake(struct uffd *uffd, uint64_t page)
{
	struct uffdio_range range = { .start = address_of(uffd, page), .len = GY_PAGE_BYTES };

	return ioctl(uffd->fd, UFFDIO_WAKE, &range) ? -errno : 0;
}

int uffd_wake_all(struct uffd *uffd)
{
	for (uint32_t i = 0; i < uffd->ram->n_pieces; i++) {
		const struct ram_piece *piece = &uffd->ram->piece[i];
		struct uffdio_range range = { .start = piece->address, .len = piece->bytes };

		if (ioctl(uffd->fd, UFFDIO_WAKE, &range))
			return -errno;
	}
	return 0;
}

/* Within one piece. */
static int copy_part(struct uffd *uffd, uint64_t page, uint64_t len, const uint8_t *data, uint64_t *existed)
{
	uint64_t done = 0;

	while (done < len) {
		struct uffdio_copy copy = {
			.dst = address_of(uffd, page) + done,
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
		uffd_wake(uffd, page + done / GY_PAGE_BYTES);
		done += GY_PAGE_BYTES;
		(*existed)++;
	}
	return 0;
}

int uffd_copy(struct uffd *uffd, uint64_t page, uint32_t count, const uint8_t *data, uint64_t *existed)
{
	uint64_t end = page + count;

	while (page < end) {
		const struct ram_piece *piece = ram_piece_at(uffd->ram, page * GY_PAGE_BYTES);
		uint64_t piece_end = (piece->first + piece->bytes) / GY_PAGE_BYTES;
		uint64_t n = (end < piece_end ? end : piece_end) - page;
		int ret = copy_part(uffd, page, n * GY_PAGE_BYTES, data, existed);

		if (ret)
			return ret;
		page += n;
		data += n * GY_PAGE_BYTES;
	}
	return 0;
}

int uffd_zero(struct uffd *uffd, uint64_t page)
{
	for (;;) {
		struct uffdio_zeropage zero = { .range = { .start = address_of(uffd, page), .len = GY_PAGE_BYTES } };

		if (!ioctl(uffd->fd, UFFDIO_ZEROPAGE, &zero))
			return 0;
		if (errno == EEXIST)
			return uffd_wake(uffd, page);
		if (errno != EAGAIN)
			return -errno;
	}
}
