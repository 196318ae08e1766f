// SPDX-License-Identifier: Apache-2.0
/* hold.c - see hold.h. */
#include "hold.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gyges.h"
#include "pagemap.h"

/* Pages by one read. */
#define READ_PAGES 4096u

int hold_begin(struct hold *hold, uint8_t *at, uint64_t bytes, const struct gy_err *err)
{
	*hold = (struct hold){ .at = at, .bytes = bytes };
	hold->pagemap_fd = pagemap_open(getpid(), "pagemap", O_RDONLY, err);
	if (hold->pagemap_fd < 0)
		return hold->pagemap_fd;
	/* On fault: there is nothing to populate, and what is punched must not be made again. */
	if (mlock2(at, bytes, MLOCK_ONFAULT)) {
		int ret = -errno;

		close(hold->pagemap_fd);
		return gy_err_set(err, ret, "%llu bytes cannot be locked in memory: %s", (unsigned long long)bytes,
				  strerror(-ret));
	}
	return 0;
}

void hold_end(struct hold *hold)
{
	munlock(hold->at, hold->bytes);
	close(hold->pagemap_fd);
}

int hold_scan(const struct hold *hold)
{
	struct scan_region first;
	struct scan_arg arg = {
		.start = (uintptr_t)hold->at,
		.end = (uintptr_t)hold->at + hold->bytes,
		.vec = (uintptr_t)&first,
		.vec_len = 1,
		.max_pages = 1,
		/* Neither. */
		.category_inverted = SCAN_PRESENT | SCAN_SWAPPED,
		.category_mask = SCAN_PRESENT | SCAN_SWAPPED,
		.return_mask = SCAN_PRESENT,
	};

	return pagemap_scan(hold->pagemap_fd, &arg);
}

int hold_read(const struct hold *hold)
{
	uint64_t words[READ_PAGES];

	for (uint64_t page = 0, pages = hold->bytes / GY_PAGE_BYTES, n; page < pages; page += n) {
		int ret;

		n = pages - page < READ_PAGES ? pages - page : READ_PAGES;
		ret = pagemap_read(hold->pagemap_fd, (uintptr_t)hold->at + page * GY_PAGE_BYTES, n, words);
		if (ret)
			return ret;
		for (uint64_t i = 0; i < n; i++) {
			if (!(words[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)))
				return 1;
		}
	}
	return 0;
}

int hold_broken(const struct hold *hold)
{
	int ret = hold_scan(hold);

	return ret == -ENOTTY ? hold_read(hold) : ret;
}
