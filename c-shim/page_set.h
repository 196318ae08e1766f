/* SPDX-License-Identifier: Apache-2.0 */
/* page_set.h - walking an encoded page set without a bitmap of one's own. */
#ifndef GY_PAGE_SET_H
#define GY_PAGE_SET_H

#include <stdint.h>

typedef void gy_set_fn(void *arg, uint64_t first, uint64_t count);

/* Checks all of the set, then calls @fn for its runs in order. Pages in the set, or -EBADMSG with no call made. */
int64_t gy_set_for_each(const uint8_t *in, uint64_t len, uint64_t pages, gy_set_fn *fn, void *arg);

#endif
