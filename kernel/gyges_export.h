/* SPDX-License-Identifier: GPL-2.0 */
/* gyges_export.h - what export.c and register.c share. */
#ifndef GYGES_EXPORT_H
#define GYGES_EXPORT_H

#include "gyges_internal.h"

struct gyges_piece;

/* The pages of one file, as they are registered. Under gi->ctl, but for what is said. */
struct gyges_pieces {
	struct gyges_inode *gi;
	struct ib_pd *pd;		/* made for the first connection, under the export's lock */
	pgoff_t pages;
	unsigned int piece_pages;
	unsigned int n;
	struct gyges_piece *piece;
	unsigned long *stale;		/* pieces that do not show the file as it is; set by whoever fills a hole */
	struct scatterlist *sg;
};

/* 0, -EOPNOTSUPP: the device has no fast registration, -ENOMEM; in any case gyges_pieces_free() follows. */
int gyges_pieces_make(struct gyges_pieces *pieces, struct gyges_inode *gi, const struct ib_device_attr *attrs);
/* No connection is left. Frees all but the protection domain. */
void gyges_pieces_free(struct gyges_pieces *pieces);
/* Registers piece @index by way of @conn. 1, 0: it has no pages, or -errno, and the caller marks it stale again. */
int gyges_pieces_register(struct gyges_pieces *pieces, unsigned int index, struct gyges_conn *conn);
/* Writes at most @capacity entries. The entries that there are. */
u32 gyges_pieces_table(const struct gyges_pieces *pieces, struct gyges_region *regions, u32 capacity);

static inline void gyges_pieces_filled(struct gyges_pieces *pieces, pgoff_t page)
{
	set_bit(page / pieces->piece_pages, pieces->stale);
}

#endif
