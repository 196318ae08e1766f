/* SPDX-License-Identifier: Apache-2.0 */
/* pagemap.h - what the kernel tells of a process's page tables: /proc/PID/pagemap, and PAGEMAP_SCAN where it has that. */
#ifndef GY_PAGEMAP_H
#define GY_PAGEMAP_H

#include <linux/types.h>
#include <stdint.h>
#include <sys/types.h>

#include "err.h"

/* Bits of a page's word. */
#define PAGEMAP_SOFT_DIRTY (1ull << 55)
#define PAGEMAP_SWAPPED (1ull << 62)	/* also: just being moved elsewhere */
#define PAGEMAP_PRESENT (1ull << 63)

/* Categories of a scan. */
#define SCAN_WRITTEN (1ull << 1)
#define SCAN_PRESENT (1ull << 3)
#define SCAN_SWAPPED (1ull << 4)
/* Flags: protect what is found; fail where asynchronous write protection is not in force. */
#define SCAN_WP_MATCHING (1ull << 0)
#define SCAN_CHECK_WPASYNC (1ull << 1)

struct scan_region {
	__u64 start, end, categories;
};

/* Linux 6.7; Debian 12's headers are older. */
struct scan_arg {
	__u64 size, flags, start, end, walk_end, vec, vec_len, max_pages;
	__u64 category_inverted, category_mask, category_anyof_mask, return_mask;
};

/* Opens /proc/@pid/@name with @flags; -errno, with words. */
int pagemap_open(pid_t pid, const char *name, int flags, const struct gy_err *err);

/* The words of @pages from @address on; 0 or -errno, -ESRCH when the process is gone. */
int pagemap_read(int pagemap, uint64_t address, uint64_t pages, uint64_t *words);

/* One step; how many regions it has put into @arg's vector, -ENOTTY where the kernel cannot, -errno. */
int pagemap_scan(int pagemap, struct scan_arg *arg);

#endif
