// SPDX-License-Identifier: Apache-2.0
/* ram.c - the RAM file: anonymous shared memory with two mappings. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ram.h"

#define RAM_ALIGN (2ull << 20)

static uint8_t *map_shared(int fd, uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

int gy_ram_create(uint64_t bytes, struct gy_ram **out)
{
	struct gy_ram *ram;
	int ret;

	if (!bytes || bytes % RAM_ALIGN || bytes > INT64_MAX)
		return -EINVAL;
	ram = calloc(1, sizeof(*ram));
	if (!ram)
		return -ENOMEM;
	ram->bytes = bytes;
	ram->pages = bytes / GY_PAGE_BYTES;
	ram->fd = memfd_create("gyges-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (ram->fd < 0) {
		ret = -errno;
		goto err_free;
	}
	if (ftruncate(ram->fd, (off_t)bytes)) {
		ret = -errno;
		goto err_close;
	}
	/* A RAM file that changes its size under a running guest is a SIGBUS in the guest. */
	if (fcntl(ram->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
		ret = -errno;
		goto err_close;
	}
	ram->guest = map_shared(ram->fd, bytes);
	if (!ram->guest) {
		ret = -errno;
		goto err_close;
	}
	ram->alias = map_shared(ram->fd, bytes);
	if (!ram->alias) {
		ret = -errno;
		goto err_unmap;
	}
	/*
	 * Guest memory has no place in a core file, and a fork must not copy its page tables. Advice only:
	 * a kernel without it costs time, not correctness.
	 */
	/*
	 * Where shared memory is made of huge pages, punching one small page out of such a page only clears it: it
	 * stays allocated, and a stale page would come back as zeros.
	 */
	madvise(ram->guest, bytes, MADV_NOHUGEPAGE);
	madvise(ram->alias, bytes, MADV_NOHUGEPAGE);
	madvise(ram->guest, bytes, MADV_DONTDUMP);
	madvise(ram->guest, bytes, MADV_DONTFORK);
	madvise(ram->alias, bytes, MADV_DONTDUMP);
	madvise(ram->alias, bytes, MADV_DONTFORK);
	*out = ram;
	return 0;

err_unmap:
	munmap(ram->guest, bytes);
err_close:
	close(ram->fd);
err_free:
	free(ram);
	return ret;
}

void gy_ram_destroy(struct gy_ram *ram)
{
	if (!ram)
		return;
	munmap(ram->alias, ram->bytes);
	munmap(ram->guest, ram->bytes);
	close(ram->fd);
	free(ram);
}

uint64_t gy_ram_bytes(const struct gy_ram *ram)
{
	return ram->bytes;
}

static int range_ok(const struct gy_ram *ram, uint64_t offset, uint64_t len)
{
	return offset <= ram->bytes && len <= ram->bytes - offset;
}

int64_t gy_ram_read(struct gy_ram *ram, uint64_t offset, void *buf, uint64_t len)
{
	uint64_t done = 0;

	if (!range_ok(ram, offset, len))
		return -EINVAL;
	while (done < len) {
		ssize_t n = pread(ram->fd, (uint8_t *)buf + done, len - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			return -EIO;
		done += (uint64_t)n;
	}
	return (int64_t)done;
}

int64_t gy_ram_write(struct gy_ram *ram, uint64_t offset, const void *buf, uint64_t len)
{
	uint64_t done = 0;

	if (!range_ok(ram, offset, len))
		return -EINVAL;
	while (done < len) {
		ssize_t n = pwrite(ram->fd, (const uint8_t *)buf + done, len - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		done += (uint64_t)n;
	}
	return (int64_t)done;
}

int64_t gy_ram_allocated(struct gy_ram *ram)
{
	struct stat st;

	if (fstat(ram->fd, &st))
		return -errno;
	return (int64_t)st.st_blocks * 512;
}

int gy_ram_punch(struct gy_ram *ram, uint64_t offset, uint64_t len)
{
	int ret;

	do {
		ret = fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len);
	} while (ret && errno == EINTR);
	return ret ? -errno : 0;
}

int64_t gy_ram_seek(struct gy_ram *ram, uint64_t offset, int want_data)
{
	off_t at;

	if (offset >= ram->bytes)
		return (int64_t)ram->bytes;
	at = lseek(ram->fd, (off_t)offset, want_data ? SEEK_DATA : SEEK_HOLE);
	if (at < 0 && errno == ENXIO)
		return (int64_t)ram->bytes;
	return at < 0 ? -errno : (int64_t)at;
}
