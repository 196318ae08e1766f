/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hold.h - a mapping of a file that is populated and pinned, and watched for pages that are not the file's any more.
 *
 * Who punches a hole into a file, as QEMU does for its guest's balloon, takes the page out of every mapping; what is
 * pinned stays as it was, and the next to touch the file there gets another page. A mapping that nobody touches has no
 * entry for such a page from then on, whoever has punched, with which device and without a word to anybody. It is
 * locked, so that reclaim takes out none: what is missing was punched.
 */
#ifndef GY_HOLD_H
#define GY_HOLD_H

#include <stdint.h>

#include "err.h"

struct hold {
	uint8_t *at;
	uint64_t bytes;
	int pagemap_fd;
};

/* The pages of [@at, @at + @bytes) are there and pinned, and are touched through it no more. 0, -ENOMEM, -errno. */
int hold_begin(struct hold *hold, uint8_t *at, uint64_t bytes, const struct gy_err *err);
void hold_end(struct hold *hold);

/* Any thread, while others write to the file: 1: a page of it has been replaced, or may be; 0: none; -errno. */
int hold_broken(const struct hold *hold);

/* ---- the two ways, for its tests ---- */

/* -ENOTTY: this kernel cannot. */
int hold_scan(const struct hold *hold);
int hold_read(const struct hold *hold);

#endif
