// SPDX-License-Identifier: Apache-2.0
/*
 * tracker.c - what another process, QEMU, has written to its guest's RAM.
 *
 * A userfaultfd inside that process write-protects RAM in asynchronous mode: the kernel itself lets a write through and
 * leaves a mark in the page tables, nobody waits. PAGEMAP_SCAN reads the marks and protects again in one step. Where the
 * kernel cannot, soft_dirty.c is the way.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "bitmap.h"
#include "err.h"
#include "gyges.h"
#include "pagemap.h"
#include "ram.h"
#include "remote_call.h"
#include "soft_dirty.h"

/* Linux 6.7; Debian 12's headers are older. */
#define FEATURE_WP_UNPOPULATED (1ull << 13)
#define FEATURE_WP_ASYNC (1ull << 15)
#define WANTED_FEATURES (UFFD_FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC)

#define SCAN_REGIONS 1024u

struct gy_tracker {
	struct gy_ram *ram;
	struct soft_dirty *soft;	/* the way, unless NULL */
	int fd;
	int remote_fd;
	int pagemap_fd;
	struct scan_region region[SCAN_REGIONS];
};

/* ---- what an agent that died has left ---- */

static void unregister(int fd, const struct gy_ram *ram)
{
	for (uint32_t i = 0; i < ram->n_pieces; i++) {
		struct uffdio_range range = { .start = ram->piece[i].address, .len = ram->piece[i].bytes };

		ioctl(fd, UFFDIO_UNREGISTER, &range);
	}
}

/*
 * A mapping can be tracked by one only. A descriptor that catches missing pages has other features, and is never touched:
 * who waits for it would read zeros.
 */
static void end_leftovers(const struct gy_ram *ram)
{
	int left = remote_find_userfaultfd(ram->pid, FEATURE_WP_ASYNC, 0);

	for (; left >= 0; left = remote_find_userfaultfd(ram->pid, FEATURE_WP_ASYNC, left + 1)) {
		int fd = remote_take(ram->pid, left);

		if (fd < 0)
			continue;
		unregister(fd, ram);
		close(fd);
		remote_close(ram->pid, left);
	}
}

static int protect(const struct gy_tracker *tracker, const struct ram_piece *piece, const struct gy_err *err)
{
	struct uffdio_register reg = {
		.range = { .start = piece->address, .len = piece->bytes },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect wp = { .range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP };

	if (ioctl(tracker->fd, UFFDIO_REGISTER, &reg))
		return gy_err_set(err, -errno, "cannot track writes to guest RAM: %s", strerror(errno));
	if (ioctl(tracker->fd, UFFDIO_WRITEPROTECT, &wp))
		return gy_err_set(err, -errno, "cannot write-protect guest RAM: %s", strerror(errno));
	return 0;
}

static void close_userfaultfd(struct gy_tracker *tracker)
{
	if (tracker->remote_fd >= 0)
		remote_close(tracker->ram->pid, tracker->remote_fd);
	if (tracker->fd >= 0)
		close(tracker->fd);
	tracker->remote_fd = -1;
	tracker->fd = -1;
}

/* enum gy_tracker_way. */
static int open_tracker(struct gy_tracker *tracker, const struct gy_err *err)
{
	struct uffdio_api api = { .api = UFFD_API, .features = WANTED_FEATURES };
	int ret;

	tracker->pagemap_fd = pagemap_open(tracker->ram->pid, "pagemap", O_RDONLY, err);
	if (tracker->pagemap_fd < 0)
		return tracker->pagemap_fd;
	end_leftovers(tracker->ram);
	tracker->fd = remote_userfaultfd(tracker->ram->pid, &tracker->remote_fd, err);
	if (tracker->fd < 0)
		return tracker->fd;
	if (!ioctl(tracker->fd, UFFDIO_API, &api))
		return GY_TRACKER_WRITE_PROTECTION;
	close_userfaultfd(tracker);
	ret = soft_dirty_open(tracker->ram, &tracker->soft, err);
	return ret ? ret : GY_TRACKER_SOFT_DIRTY;
}

int gy_tracker_create(struct gy_ram *ram, struct gy_tracker **out, char *err, uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	struct gy_tracker *tracker;
	int ret;

	if (!ram->pid)
		return -EINVAL;
	tracker = malloc(sizeof(*tracker));
	if (!tracker)
		return -ENOMEM;
	*tracker = (struct gy_tracker){ .ram = ram, .fd = -1, .remote_fd = -1, .pagemap_fd = -1 };
	ret = open_tracker(tracker, &words);
	if (ret < 0)
		gy_tracker_destroy(tracker);
	else
		*out = tracker;
	return ret;
}

int gy_tracker_start(struct gy_tracker *tracker, char *err, uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	int ret = 0;

	if (tracker->soft)
		return (int)soft_dirty_collect(tracker->soft, NULL);
	for (uint32_t i = 0; i < tracker->ram->n_pieces && !ret; i++)
		ret = protect(tracker, &tracker->ram->piece[i], &words);
	return ret;
}

void gy_tracker_destroy(struct gy_tracker *tracker)
{
	if (!tracker)
		return;
	if (tracker->fd >= 0)
		unregister(tracker->fd, tracker->ram);
	close_userfaultfd(tracker);
	if (tracker->pagemap_fd >= 0)
		close(tracker->pagemap_fd);
	soft_dirty_close(tracker->soft);
	free(tracker);
}

static void note(const struct gy_tracker *tracker, gy_word *bitmap, const struct scan_region *region, int64_t *found)
{
	uint64_t first = ram_page_at(tracker->ram, region->start);

	for (uint64_t page = first; page < first + (region->end - region->start) / GY_PAGE_BYTES; page++)
		bitmap_set(bitmap, page);
	*found += (int64_t)((region->end - region->start) / GY_PAGE_BYTES);
}

static int scan_piece(struct gy_tracker *tracker, const struct ram_piece *piece, gy_word *bitmap, int64_t *found)
{
	struct scan_arg arg = {
		.flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
		.start = piece->address,
		.end = piece->address + piece->bytes,
		.vec = (uintptr_t)tracker->region,
		.vec_len = SCAN_REGIONS,
		.category_mask = SCAN_WRITTEN,
		.return_mask = SCAN_WRITTEN,
	};

	while (arg.start < arg.end) {
		int n = pagemap_scan(tracker->pagemap_fd, &arg);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++)
			note(tracker, bitmap, &tracker->region[i], found);
		arg.start = arg.walk_end;
	}
	return 0;
}

int gy_tracker_prepare(struct gy_tracker *tracker)
{
	return tracker->soft ? soft_dirty_prepare(tracker->soft) : 0;
}

int64_t gy_tracker_collect(struct gy_tracker *tracker, uint64_t *bitmap, uint64_t words)
{
	int64_t found = 0;

	if (words != bitmap_words(tracker->ram->pages))
		return -EINVAL;
	if (tracker->soft)
		return soft_dirty_collect(tracker->soft, (gy_word *)bitmap);
	for (uint32_t i = 0; i < tracker->ram->n_pieces; i++) {
		int ret = scan_piece(tracker, &tracker->ram->piece[i], (gy_word *)bitmap, &found);

		if (ret)
			return ret;
	}
	return found;
}
