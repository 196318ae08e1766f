/* SPDX-License-Identifier: Apache-2.0 */
/*
 * soft_dirty.h - what another process has written to its guest's RAM, by soft-dirty bits: for kernels without asynchronous
 * write protection. See soft_dirty.c for what makes these marks hold.
 */
#ifndef GY_SOFT_DIRTY_H
#define GY_SOFT_DIRTY_H

#include <stdbool.h>
#include <stdint.h>

#include "bitmap.h"
#include "err.h"
#include "gyges.h"

struct soft_dirty;

/* With the guest running, as it takes time. -ENOTSUP, with words, where no mark is made or one could go; -errno. */
int soft_dirty_open(struct gy_ram *ram, struct soft_dirty **out, const struct gy_err *err);
void soft_dirty_close(struct soft_dirty *soft);

/* With the guest running, before soft_dirty_collect(): the guest then stands for less. 0 or -errno. */
int soft_dirty_prepare(struct soft_dirty *soft);

/*
 * With the guest stopped, its disks' requests done: ORs into @bitmap the pages written since the last call, and answers
 * how many there were. The first call, with NULL, is the beginning. -errno.
 */
int64_t soft_dirty_collect(struct soft_dirty *soft, gy_word *bitmap);

/* ---- for its tests ---- */

/* A page at a look. */
struct soft_dirty_page {
	uint64_t theirs;	/* its word in the process's pagemap */
	bool held;		/* our mapping has had it ever since the last look */
	bool content;		/* the file has it */
	bool was_mapped;	/* the process had it in its page table at the last look */
	bool had_content;	/* the file had it at the last look */
};

bool soft_dirty_written(const struct soft_dirty_page *page);

#endif
