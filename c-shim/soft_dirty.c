// SPDX-License-Identifier: Apache-2.0
/*
 * soft_dirty.c - see soft_dirty.h.
 *
 * The kernel marks a page in the process's page table when it is written (bit 55 of its pagemap), and "4" in clear_refs
 * takes all marks away and write-protects. KVM's own tables are emptied by that too, so a guest's next write is a fault
 * in QEMU's page table as any other. What such marks do not give by themselves:
 *
 * - Look and clearing are two steps: what is written between them is lost. So a collect is made with the guest stopped and
 *   its disks' requests done. Of QEMU itself only these write to RAM; a kernel thread of vhost is stopped with them.
 * - A mark goes with its page table entry. Of shared memory reclaim, huge pages and whoever punches a hole simply drop the
 *   entry, and a later read maps the page anew, without a mark: the write is lost, and nothing shows it. So RAM is mapped
 *   here too, by a mapping for nothing else, locked: reclaim leaves its pages alone, in QEMU as well, and what drops a
 *   page all the same drops it here too and is seen by that. The marks are believed of pages only that this mapping has
 *   had since the last look; any other page with content counts as written. Only pages that are in memory are taken into
 *   it: a host that is short of memory has nothing swapped in for us, and a hole stays a hole.
 * - A page of a huge one is not protected by such a lock: RAM in huge pages is refused, and so is hugetlbfs, without marks.
 * - A page that the kernel is just moving elsewhere keeps its right to be written through a clearing, and loses the mark
 *   (from Linux 6.1 on it is given one again, on most processors). That state takes microseconds; marks are cleared twice.
 * - A mapping that is new or has grown has all of its pages marked: more is sent than need be, nothing is lost.
 */
#include "soft_dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "pagemap.h"
#include "ram.h"

/* RAM and its pieces are multiples of it, and what one read fault maps around itself never crosses it. */
#define CHUNK_PAGES 512u
#define CHUNK_BYTES (CHUNK_PAGES * (uint64_t)GY_PAGE_BYTES)

#define BETWEEN_CLEARINGS_US 1000
#define LACK \
	"this kernel cannot track the writes of a QEMU guest: it has no asynchronous write protection (Linux 6.7 has), and "

struct soft_dirty {
	struct gy_ram *ram;
	int clear_fd;
	int theirs_fd;		/* pagemaps */
	int ours_fd;
	uint8_t *reserved;
	uint8_t *hold;		/* the locked mapping, within it */
	gy_word *content;	/* at the last look */
	gy_word *mapped;
	gy_word *doubtful;	/* taken into hold since then, with content that may have been written before */
};

/* ---- whether it can be had ---- */

/* A page that has just been made is marked, wherever the kernel has marks at all. */
static int try_marks(const struct soft_dirty *soft, const struct gy_err *err)
{
	uint8_t *page = mmap(NULL, GY_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t word = 0;
	int ret, locks;

	if (page == MAP_FAILED)
		return -ENOMEM;
	*(volatile uint8_t *)page = 1;
	ret = pagemap_read(soft->ours_fd, (uintptr_t)page, 1, &word);
	/* Came with locks that hold from the fault on, and not from when reclaim first meets the page. */
	locks = !madvise(page, GY_PAGE_BYTES, MADV_DONTNEED_LOCKED);
	munmap(page, GY_PAGE_BYTES);
	if (ret)
		return gy_err_set(err, ret, "cannot read our own pagemap: %s", strerror(-ret));
	if (word & PAGEMAP_SOFT_DIRTY && locks)
		return 0;
	return gy_err_set(err, -ENOTSUP, LACK "no soft-dirty bits%s",
			  locks ? " (CONFIG_MEM_SOFT_DIRTY)" : " that hold (Linux 5.18 has)");
}

static bool is_of(const struct gy_ram *ram, uint64_t start, uint64_t end)
{
	for (uint32_t i = 0; i < ram->n_pieces; i++) {
		if (ram->piece[i].address < end && start < ram->piece[i].address + ram->piece[i].bytes)
			return true;
	}
	return false;
}

/* Of all of RAM's mappings: may they have huge pages, or have some? */
static int has_huge_pages(const struct gy_ram *ram)
{
	unsigned long start, end, n;
	char line[512], perms[8];
	bool ours = false, huge = false;
	FILE *smaps;

	snprintf(line, sizeof(line), "/proc/%d/smaps", ram->pid);
	smaps = fopen(line, "re");
	if (!smaps)
		return -errno;
	while (fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx %7s", &start, &end, perms) == 3)
			ours = is_of(ram, start, end);
		else if (ours && (sscanf(line, "ShmemPmdMapped: %lu", &n) == 1 || sscanf(line, "THPeligible: %lu", &n) == 1))
			huge |= n > 0;
	}
	fclose(smaps);
	return huge;
}

static int check_ram(const struct gy_ram *ram, const struct gy_err *err)
{
	int huge;

	for (uint32_t i = 0; i < ram->n_pieces; i++) {
		struct statfs fs;

		if (fstatfs(ram->piece[i].fd, &fs))
			return gy_err_set(err, -errno, "cannot look at the guest's RAM file: %s", strerror(errno));
		if (fs.f_type != TMPFS_MAGIC)
			return gy_err_set(err, -ENOTSUP, LACK "soft-dirty bits only for RAM in tmpfs: this is in a file "
					  "system of type 0x%lx", (unsigned long)fs.f_type);
	}
	huge = has_huge_pages(ram);
	if (huge < 0)
		return gy_err_set(err, huge, "cannot read /proc/%d/smaps: %s", ram->pid, strerror(-huge));
	return huge ? gy_err_set(err, -ENOTSUP, LACK "no soft-dirty bits that hold for RAM with huge pages, which this has or "
				 "may get") : 0;
}

/* ---- pages held ---- */

static int map_held(struct soft_dirty *soft, const struct gy_err *err)
{
	const struct gy_ram *ram = soft->ram;
	void *at = mmap(NULL, ram->bytes + CHUNK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		return -ENOMEM;
	soft->reserved = at;
	soft->hold = soft->reserved + (CHUNK_BYTES - (uintptr_t)at % CHUNK_BYTES);
	for (uint32_t i = 0; i < ram->n_pieces; i++) {
		const struct ram_piece *piece = &ram->piece[i];

		at = mmap(soft->hold + piece->first, piece->bytes, PROT_READ, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
			  piece->fd, (off_t)piece->file_offset);
		if (at == MAP_FAILED)
			return gy_err_set(err, -errno, "cannot map guest RAM: %s", strerror(errno));
		madvise(at, piece->bytes, MADV_DONTDUMP);
		madvise(at, piece->bytes, MADV_DONTFORK);
	}
	if (mlock2(soft->hold, ram->bytes, MLOCK_ONFAULT))
		return gy_err_set(err, -ENOTSUP, LACK "soft-dirty bits only for RAM that is locked in memory, as %llu bytes "
				  "here cannot be (%s): run as root, or raise ulimit -l", (unsigned long long)ram->bytes,
				  strerror(errno));
	return 0;
}

/*
 * Takes into hold what is in memory of the chunk at @first. Whether it was written before is not known: only what was a
 * hole, and is all zeros, is as it was; RDMA makes such pages of all holes. Others on the way are mapped by the same
 * fault: what is judged is all that has come.
 */
static int hold_chunk(struct soft_dirty *soft, uint64_t first)
{
	uint8_t *at = soft->hold + first * GY_PAGE_BYTES;
	uint64_t before[CHUNK_PAGES], after[CHUNK_PAGES];
	unsigned char in_memory[CHUNK_PAGES];
	bool came = false;
	int ret = pagemap_read(soft->ours_fd, (uintptr_t)at, CHUNK_PAGES, before);

	if (ret)
		return ret;
	if (mincore(at, CHUNK_BYTES, in_memory))
		return -errno;
	for (uint64_t i = 0, end; i < CHUNK_PAGES; i = end + 1) {
		for (end = i; end < CHUNK_PAGES && !(before[end] & PAGEMAP_PRESENT) && in_memory[end] & 1; end++)
			;
		if (end == i)
			continue;
		if (madvise(at + i * GY_PAGE_BYTES, (end - i) * GY_PAGE_BYTES, MADV_POPULATE_READ))
			return -errno;
		came = true;
	}
	if (!came)
		return 0;
	ret = pagemap_read(soft->ours_fd, (uintptr_t)at, CHUNK_PAGES, after);
	for (uint64_t i = 0; i < CHUNK_PAGES && !ret; i++) {
		if (before[i] & PAGEMAP_PRESENT || !(after[i] & PAGEMAP_PRESENT))
			continue;
		if (bitmap_test(soft->content, first + i) || !ram_is_zero(at + i * GY_PAGE_BYTES))
			bitmap_set(soft->doubtful, first + i);
	}
	return ret;
}

int soft_dirty_prepare(struct soft_dirty *soft)
{
	int ret = 0;

	for (uint64_t page = 0; page < soft->ram->pages && !ret; page += CHUNK_PAGES)
		ret = hold_chunk(soft, page);
	return ret;
}

/* ---- looking ---- */

bool soft_dirty_written(const struct soft_dirty_page *page)
{
	if (!page->held)
		return page->content || page->had_content;
	/* Elsewhere, or on its way. */
	if (page->theirs & PAGEMAP_SWAPPED)
		return true;
	if (page->theirs & PAGEMAP_PRESENT)
		return page->theirs & PAGEMAP_SOFT_DIRTY;
	/* Never touched, unless somebody has dropped it, and its mark with it. */
	return page->was_mapped;
}

static void keep(gy_word *map, uint64_t page, bool value)
{
	if (value)
		bitmap_set(map, page);
	else
		bitmap_clear(map, page);
}

/* Of pages that are not held: 1 the file has it, in swap. *next: its first content after a hole, as far as is known. */
static int has_content(struct soft_dirty *soft, uint64_t page, uint64_t *next)
{
	int64_t at;

	if (page < *next)
		return 0;
	at = gy_ram_seek(soft->ram, page * GY_PAGE_BYTES, 1);
	if (at < 0)
		return (int)at;
	*next = (uint64_t)at / GY_PAGE_BYTES;
	return *next == page;
}

static int64_t look_at_chunk(struct soft_dirty *soft, uint64_t first, gy_word *bitmap, uint64_t *next)
{
	uint64_t theirs[CHUNK_PAGES], ours[CHUNK_PAGES];
	int64_t found = 0;
	int ret = hold_chunk(soft, first);

	if (!ret)
		ret = pagemap_read(soft->theirs_fd, ram_address_of(soft->ram, first), CHUNK_PAGES, theirs);
	if (!ret)
		ret = pagemap_read(soft->ours_fd, (uintptr_t)soft->hold + first * GY_PAGE_BYTES, CHUNK_PAGES, ours);
	if (ret)
		return ret;
	for (uint64_t i = 0; i < CHUNK_PAGES; i++) {
		uint64_t at = first + i;
		struct soft_dirty_page page = {
			.theirs = theirs[i],
			.held = ours[i] & PAGEMAP_PRESENT,
			.was_mapped = bitmap_test(soft->mapped, at),
			.had_content = bitmap_test(soft->content, at),
		};
		int content = page.held ? 1 : has_content(soft, at, next);

		if (content < 0)
			return content;
		page.content = content;
		keep(soft->content, at, content);
		keep(soft->mapped, at, theirs[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED));
		if ((bitmap_clear(soft->doubtful, at) || soft_dirty_written(&page)) && bitmap) {
			bitmap_set(bitmap, at);
			found++;
		}
	}
	return found;
}

static int clear(struct soft_dirty *soft)
{
	return pwrite(soft->clear_fd, "4", 1, 0) == 1 ? 0 : -errno;
}

int64_t soft_dirty_collect(struct soft_dirty *soft, gy_word *bitmap)
{
	uint64_t next = 0;
	int64_t found = 0;
	int ret;

	for (uint64_t page = 0; page < soft->ram->pages; page += CHUNK_PAGES) {
		int64_t n = look_at_chunk(soft, page, bitmap, &next);

		if (n < 0)
			return n;
		found += n;
	}
	ret = clear(soft);
	if (ret)
		return ret;
	usleep(BETWEEN_CLEARINGS_US);
	ret = clear(soft);
	return ret ? ret : found;
}

/* ---- life ---- */

static gy_word *new_bitmap(const struct gy_ram *ram)
{
	return calloc(bitmap_words(ram->pages), sizeof(gy_word));
}

static int set_up(struct soft_dirty *soft, const struct gy_err *err)
{
	int ret;

	soft->ours_fd = pagemap_open(getpid(), "pagemap", O_RDONLY, err);
	if (soft->ours_fd < 0)
		return soft->ours_fd;
	ret = try_marks(soft, err);
	if (!ret)
		ret = check_ram(soft->ram, err);
	if (ret)
		return ret;
	soft->theirs_fd = pagemap_open(soft->ram->pid, "pagemap", O_RDONLY, err);
	if (soft->theirs_fd < 0)
		return soft->theirs_fd;
	soft->clear_fd = pagemap_open(soft->ram->pid, "clear_refs", O_WRONLY, err);
	if (soft->clear_fd < 0)
		return soft->clear_fd;
	soft->content = new_bitmap(soft->ram);
	soft->mapped = new_bitmap(soft->ram);
	soft->doubtful = new_bitmap(soft->ram);
	if (!soft->content || !soft->mapped || !soft->doubtful)
		return -ENOMEM;
	ret = map_held(soft, err);
	return ret ? ret : soft_dirty_prepare(soft);
}

int soft_dirty_open(struct gy_ram *ram, struct soft_dirty **out, const struct gy_err *err)
{
	struct soft_dirty *soft = malloc(sizeof(*soft));
	int ret;

	if (!soft)
		return -ENOMEM;
	*soft = (struct soft_dirty){ .ram = ram, .clear_fd = -1, .theirs_fd = -1, .ours_fd = -1 };
	ret = set_up(soft, err);
	if (ret) {
		soft_dirty_close(soft);
		return ret;
	}
	*out = soft;
	return 0;
}

void soft_dirty_close(struct soft_dirty *soft)
{
	const int fds[] = { soft ? soft->clear_fd : -1, soft ? soft->theirs_fd : -1, soft ? soft->ours_fd : -1 };

	if (!soft)
		return;
	if (soft->reserved)
		munmap(soft->reserved, soft->ram->bytes + CHUNK_BYTES);
	for (uint32_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	free(soft->content);
	free(soft->mapped);
	free(soft->doubtful);
	free(soft);
}
