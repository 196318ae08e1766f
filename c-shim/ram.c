// SPDX-License-Identifier: Apache-2.0
/*
 * ram.c - guest RAM: shared memory without a name, of tmpfs or of gygesfs, with two mappings; or files that another
 * process, QEMU, has as its guest's RAM, in pieces.
 */
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
	ram->piece[0] = (struct ram_piece){ .bytes = bytes, .address = (uintptr_t)ram->guest, .fd = fd };
	ram->n_pieces = 1;
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

/* ---- RAM of another process ---- */

int gy_ram_attach(uint32_t pid, uint64_t bytes, struct gy_ram **out)
{
	struct gy_ram *ram;
	void *reserved;

	if (!size_ok(bytes) || !pid || pid > INT32_MAX)
		return -EINVAL;
	ram = calloc(1, sizeof(*ram));
	if (!ram)
		return -ENOMEM;
	/* Pieces are mapped over it one by one: to the pager RAM is one stretch. */
	reserved = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (reserved == MAP_FAILED) {
		free(ram);
		return -ENOMEM;
	}
	ram->bytes = bytes;
	ram->pages = bytes / GY_PAGE_BYTES;
	ram->alias = reserved;
	ram->pid = (pid_t)pid;
	*out = ram;
	return 0;
}

static uint64_t attached_bytes(const struct gy_ram *ram)
{
	const struct ram_piece *last = &ram->piece[ram->n_pieces - 1];

	return ram->n_pieces ? last->first + last->bytes : 0;
}

static int map_piece(struct gy_ram *ram, const struct ram_piece *piece, const char *path, const struct gy_err *err)
{
	struct stat st;

	if (fstat(piece->fd, &st))
		return gy_err_set(err, -errno, "cannot look at %s: %s", path, strerror(errno));
	if ((uint64_t)st.st_size < piece->file_offset + piece->bytes)
		return gy_err_set(err, -EINVAL, "%s has %lld bytes and should have %llu", path, (long long)st.st_size,
				  (unsigned long long)(piece->file_offset + piece->bytes));
	if (mmap(ram->alias + piece->first, piece->bytes, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED | MAP_NORESERVE, piece->fd, (off_t)piece->file_offset) == MAP_FAILED)
		return gy_err_set(err, -errno, "cannot map %s: %s", path, strerror(errno));
	advise(ram->alias + piece->first, piece->bytes);
	return 0;
}

int gy_ram_attach_piece(struct gy_ram *ram, const char *path, uint64_t file_offset, uint64_t address, uint64_t bytes,
			char *err, uint32_t err_bytes)
{
	struct ram_piece piece = {
		.first = attached_bytes(ram), .bytes = bytes, .address = address, .file_offset = file_offset,
	};
	struct gy_err words = { err, err_bytes };
	int ret;

	if (!ram->pid || ram->n_pieces == RAM_MAX_PIECES)
		return gy_err_set(&words, -EINVAL, "RAM has more than %u pieces", RAM_MAX_PIECES);
	if (!size_ok(bytes) || bytes > ram->bytes - piece.first)
		return gy_err_set(&words, -EINVAL, "%s: %llu bytes are not a multiple of 2 MiB, or too many", path,
				  (unsigned long long)bytes);
	piece.fd = open(path, O_RDWR | O_CLOEXEC);
	if (piece.fd < 0)
		return gy_err_set(&words, -errno, "cannot open %s: %s", path, strerror(errno));
	ret = map_piece(ram, &piece, path, &words);
	if (ret) {
		close(piece.fd);
		return ret;
	}
	ram->piece[ram->n_pieces++] = piece;
	return 0;
}

void gy_ram_destroy(struct gy_ram *ram)
{
	if (!ram)
		return;
	munmap(ram->alias, ram->bytes);
	if (ram->guest)
		munmap(ram->guest, ram->bytes);
	for (uint32_t i = 0; i < ram->n_pieces; i++)
		close(ram->piece[i].fd);
	free(ram);
}

uint64_t gy_ram_bytes(const struct gy_ram *ram)
{
	return ram->bytes;
}

/* ---- pieces ---- */

const struct ram_piece *ram_piece_at(const struct gy_ram *ram, uint64_t offset)
{
	const struct ram_piece *piece = ram->piece;

	while (offset - piece->first >= piece->bytes)
		piece++;
	return piece;
}

uint64_t ram_address_of(const struct gy_ram *ram, uint64_t page)
{
	const struct ram_piece *piece = ram_piece_at(ram, page * GY_PAGE_BYTES);

	return piece->address + page * GY_PAGE_BYTES - piece->first;
}

uint64_t ram_page_at(const struct gy_ram *ram, uint64_t address)
{
	for (uint32_t i = 0; i < ram->n_pieces; i++) {
		const struct ram_piece *piece = &ram->piece[i];

		if (address - piece->address < piece->bytes)
			return (piece->first + address - piece->address) / GY_PAGE_BYTES;
	}
	return ram->pages;
}

/* How much of [offset, offset + len) lies in @piece. */
static uint64_t part_of(const struct ram_piece *piece, uint64_t offset, uint64_t len)
{
	uint64_t room = piece->first + piece->bytes - offset;

	return len < room ? len : room;
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
		uint64_t at = offset + done;
		const struct ram_piece *piece = ram_piece_at(ram, at);
		ssize_t n = pread(piece->fd, (uint8_t *)buf + done, part_of(piece, at, len - done),
				  (off_t)(at - piece->first + piece->file_offset));

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
	int64_t bytes = 0;

	for (uint32_t i = 0; i < ram->n_pieces; i++) {
		struct stat st;

		if (fstat(ram->piece[i].fd, &st))
			return -errno;
		bytes += (int64_t)st.st_blocks * 512;
	}
	return bytes;
}

static int punch_in(const struct ram_piece *piece, uint64_t offset, uint64_t len)
{
	int ret;

	do {
		ret = fallocate(piece->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)(offset - piece->first + piece->file_offset), (off_t)len);
	} while (ret && errno == EINTR);
	return ret ? -errno : 0;
}

int gy_ram_punch(struct gy_ram *ram, uint64_t offset, uint64_t len)
{
	while (len) {
		const struct ram_piece *piece = ram_piece_at(ram, offset);
		uint64_t part = part_of(piece, offset, len);
		int ret = punch_in(piece, offset, part);

		if (ret)
			return ret;
		offset += part;
		len -= part;
	}
	return 0;
}

int64_t gy_ram_seek(struct gy_ram *ram, uint64_t offset, int want_data)
{
	while (offset < ram->bytes) {
		const struct ram_piece *piece = ram_piece_at(ram, offset);
		uint64_t end = piece->first + piece->bytes;
		off_t at = lseek(piece->fd, (off_t)(offset - piece->first + piece->file_offset),
				 want_data ? SEEK_DATA : SEEK_HOLE);

		if (at < 0 && errno != ENXIO)
			return -errno;
		/* The end of the file is a hole to lseek(), and the beginning of the next piece to us. */
		if (at >= 0 && (uint64_t)at - piece->file_offset < piece->bytes)
			return (int64_t)((uint64_t)at - piece->file_offset + piece->first);
		offset = end;
	}
	return (int64_t)ram->bytes;
}
