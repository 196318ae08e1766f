// SPDX-License-Identifier: Apache-2.0
/* ram.c - the RAM file: shared memory without a name, of tmpfs or of gygesfs, with two mappings. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/gyges.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "err.h"
#include "ram.h"

#define RAM_ALIGN (2ull << 20)

static uint8_t *map_shared(int fd, uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

/*
 * Guest memory has no place in a core file, and a fork must not copy its page tables. Advice only: a kernel without it
 * costs time, not correctness.
 */
static void advise(uint8_t *map, uint64_t bytes)
{
	/*
	 * Where shared memory is made of huge pages, punching one small page out of such a page only clears it: it
	 * stays allocated, and a stale page would come back as zeros.
	 */
	madvise(map, bytes, MADV_NOHUGEPAGE);
	madvise(map, bytes, MADV_DONTDUMP);
	madvise(map, bytes, MADV_DONTFORK);
}

/* Takes over @fd, an empty file of @bytes, also on failure. */
static int make_ram(int fd, uint64_t bytes, struct gy_ram **out)
{
	struct gy_ram *ram = calloc(1, sizeof(*ram));
	int ret;

	if (!ram) {
		close(fd);
		return -ENOMEM;
	}
	ram->bytes = bytes;
	ram->pages = bytes / GY_PAGE_BYTES;
	ram->fd = fd;
	ram->guest = map_shared(fd, bytes);
	if (!ram->guest) {
		ret = -errno;
		goto err_close;
	}
	ram->alias = map_shared(fd, bytes);
	if (!ram->alias) {
		ret = -errno;
		goto err_unmap;
	}
	advise(ram->guest, bytes);
	advise(ram->alias, bytes);
	*out = ram;
	return 0;

err_unmap:
	munmap(ram->guest, bytes);
err_close:
	close(fd);
	free(ram);
	return ret;
}

static int size_ok(uint64_t bytes)
{
	return bytes && bytes % RAM_ALIGN == 0 && bytes <= INT64_MAX;
}

int gy_ram_create(uint64_t bytes, struct gy_ram **out)
{
	int fd, ret;

	if (!size_ok(bytes))
		return -EINVAL;
	fd = memfd_create("gyges-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	/* A RAM file that changes its size under a running guest is a SIGBUS in the guest. */
	if (ftruncate(fd, (off_t)bytes) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
		ret = -errno;
		close(fd);
		return ret;
	}
	return make_ram(fd, bytes, out);
}

/* A file without a name in @folder; a file system that is not gygesfs is none of ours to fill. */
static int open_in(const char *folder, const struct gy_err *err)
{
	struct gyges_version version = { 0 };
	char path[PATH_MAX];
	int fd, ret;

	if (snprintf(path, sizeof(path), "%s/gyges-%d-%llx", folder, getpid(), (unsigned long long)now_ns()) >=
	    (int)sizeof(path))
		return gy_err_set(err, -ENAMETOOLONG, "%s is too long a path", folder);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return gy_err_set(err, -errno, "cannot make a file in %s: %s", folder, strerror(errno));
	unlink(path);
	if (!ioctl(fd, GYGES_IOC_VERSION, &version) && version.abi == GYGES_ABI_VERSION)
		return fd;
	ret = version.abi ? gy_err_set(err, -EPROTO, "the loaded module gyges has version %u of its interface, not %u",
				       version.abi, GYGES_ABI_VERSION)
			  : gy_err_set(err, -ENOTTY, "%s is not a gygesfs", folder);
	close(fd);
	return ret;
}

int gy_ram_create_in(const char *folder, uint64_t bytes, struct gy_ram **out, char *err, uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	int fd, ret;

	if (!size_ok(bytes))
		return gy_err_set(&words, -EINVAL, "RAM of %llu bytes is not a multiple of 2 MiB",
				  (unsigned long long)bytes);
	fd = open_in(folder, &words);
	if (fd < 0)
		return fd;
	if (ftruncate(fd, (off_t)bytes)) {
		ret = gy_err_set(&words, -errno, "%s has no room for %llu bytes: %s", folder, (unsigned long long)bytes,
				 strerror(errno));
		close(fd);
		return ret;
	}
	return make_ram(fd, bytes, out);
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

/* By the mapping: a file of gygesfs is written in no other way. */
int64_t gy_ram_write(struct gy_ram *ram, uint64_t offset, const void *buf, uint64_t len)
{
	if (!range_ok(ram, offset, len))
		return -EINVAL;
	memcpy(ram->alias + offset, buf, len);
	return (int64_t)len;
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
