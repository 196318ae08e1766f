// SPDX-License-Identifier: GPL-2.0
/*
 * register.c - the present pages of a file, registered for remote reading.
 *
 * In pieces of up to max_fast_reg_page_list_len pages, each by fast registration with a key of its own; a hole inside of
 * a piece shows the zero page, a piece of holes alone is not registered. When the guest fills a hole its piece is noted,
 * and the next EXPORT_REGIONS registers that piece again, under a new key: the caller sees to it that nobody reads
 * meanwhile. Pages are held as long as they are registered, so a punch is refused (EBUSY).
 *
 * Registration arithmetic: a registration is posted on the send queue of a connection as up to two requests, the
 * invalidation of the old key and the new one; one piece at a time, so a send queue of 4 does (one is for the drain).
 * Memory: 8 bytes a page for DMA addresses, and what the device needs for each piece.
 */
#include <linux/pagevec.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "gyges_export.h"

#define PIECE_MAX	512

struct gyges_piece {
	struct ib_mr *mr;
	u64 *dma;			/* DMA address of each page, NULL: none of them is present */
	unsigned int mapped;		/* entries of dma that are in use */
	bool registered;
};

int gyges_pieces_make(struct gyges_pieces *pieces, struct gyges_inode *gi, const struct ib_device_attr *attrs)
{
	pieces->gi = gi;
	pieces->pages = gyges_pages(gi);
	if (!attrs->max_fast_reg_page_list_len || !(attrs->device_cap_flags & IB_DEVICE_MEM_MGT_EXTENSIONS))
		return -EOPNOTSUPP;
	pieces->piece_pages = min_t(u32, attrs->max_fast_reg_page_list_len, PIECE_MAX);
	pieces->n = DIV_ROUND_UP(pieces->pages, pieces->piece_pages);
	pieces->piece = kvcalloc(pieces->n, sizeof(*pieces->piece), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	pieces->sg = kvcalloc(pieces->piece_pages, sizeof(*pieces->sg), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	pieces->stale = bitmap_alloc(pieces->n, GFP_KERNEL_ACCOUNT);
	if (!pieces->piece || !pieces->sg || !pieces->stale)
		return -ENOMEM;
	bitmap_fill(pieces->stale, pieces->n);
	return 0;
}

static void unmap_piece(struct gyges_pieces *pieces, unsigned int index)
{
	struct gyges_piece *piece = &pieces->piece[index];
	pgoff_t first = (pgoff_t)index * pieces->piece_pages;
	unsigned int i;

	for (i = 0; i < piece->mapped; i++) {
		struct folio *folio;

		ib_dma_unmap_page(pieces->pd->device, piece->dma[i], PAGE_SIZE, DMA_TO_DEVICE);
		if (!test_and_clear_bit(first + i, pieces->gi->exported))
			continue;
		/* Held since it was mapped, so it is still the same. */
		folio = gyges_get_folio(pieces->gi->vfs_inode.i_mapping, first + i);
		if (WARN_ON_ONCE(!folio))
			continue;
		folio_put(folio);
		folio_put(folio);
	}
	kvfree(piece->dma);
}

void gyges_pieces_free(struct gyges_pieces *pieces)
{
	unsigned int i;

	for (i = 0; pieces->piece && i < pieces->n; i++) {
		if (pieces->piece[i].mr)
			ib_dereg_mr(pieces->piece[i].mr);
		unmap_piece(pieces, i);
	}
	kvfree(pieces->piece);
	kvfree(pieces->sg);
	bitmap_free(pieces->stale);
}

struct wait_cqe {
	struct ib_cqe cqe;
	struct completion done;
	enum ib_wc_status status;
};

static void reg_done(struct ib_cq *cq, struct ib_wc *wc)
{
	struct wait_cqe *wait = container_of(wc->wr_cqe, struct wait_cqe, cqe);

	wait->status = wc->status;
	complete(&wait->done);
}

/* An invalidation that fails is followed by a registration that does: one report is enough. */
static void inv_done(struct ib_cq *cq, struct ib_wc *wc)
{
}

static struct ib_cqe inv_cqe = { .done = inv_done };

/* The page of entry @i as it is now, mapped; the reference on a present one stays as long as it is. 0 or -EIO. */
static int map_page(struct gyges_pieces *pieces, struct gyges_piece *piece, unsigned int i, pgoff_t index)
{
	struct ib_device *device = pieces->pd->device;
	struct folio *folio = gyges_get_folio(pieces->gi->vfs_inode.i_mapping, index);
	struct page *page = folio ? folio_page(folio, 0) : ZERO_PAGE(0);
	u64 dma;

	/* A hole was mapped as the zero page before, and still is one. */
	if (!folio && i < piece->mapped)
		return 0;
	dma = ib_dma_map_page(device, page, 0, PAGE_SIZE, DMA_TO_DEVICE);
	if (ib_dma_mapping_error(device, dma)) {
		if (folio)
			folio_put(folio);
		return -EIO;
	}
	if (i < piece->mapped)
		ib_dma_unmap_page(device, piece->dma[i], PAGE_SIZE, DMA_TO_DEVICE);
	else
		piece->mapped = i + 1;
	piece->dma[i] = dma;
	if (folio)
		set_bit(index, pieces->gi->exported);
	return 0;
}

static bool has_pages(struct gyges_pieces *pieces, pgoff_t first, unsigned int n)
{
	struct folio_batch batch;
	bool found;

	folio_batch_init(&batch);
	found = filemap_get_folios(pieces->gi->vfs_inode.i_mapping, &first, first + n - 1, &batch);
	folio_batch_release(&batch);
	return found;
}

/* Pages mapped, 0 for a piece of holes, or -errno. */
static int map_piece(struct gyges_pieces *pieces, unsigned int index)
{
	struct gyges_piece *piece = &pieces->piece[index];
	pgoff_t first = (pgoff_t)index * pieces->piece_pages;
	unsigned int i, n = min_t(pgoff_t, pieces->piece_pages, pieces->pages - first);
	int ret;

	if (!has_pages(pieces, first, n))
		return 0;
	if (!piece->dma)
		piece->dma = kvcalloc(n, sizeof(u64), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!piece->dma)
		return -ENOMEM;
	sg_init_table(pieces->sg, n);
	for (i = 0; i < n; i++) {
		ret = test_bit(first + i, pieces->gi->exported) ? 0 : map_page(pieces, piece, i, first + i);
		if (ret)
			return ret;
		sg_dma_address(&pieces->sg[i]) = piece->dma[i];
		sg_dma_len(&pieces->sg[i]) = PAGE_SIZE;
	}
	return n;
}

static int post_registration(struct gyges_piece *piece, struct gyges_conn *conn)
{
	struct wait_cqe wait = { .cqe = { .done = reg_done } };
	struct ib_reg_wr reg = {
		.wr = { .opcode = IB_WR_REG_MR, .wr_cqe = &wait.cqe },
		.mr = piece->mr,
		.access = IB_ACCESS_REMOTE_READ,
	};
	struct ib_send_wr invalidate = {
		.opcode = IB_WR_LOCAL_INV,
		.wr_cqe = &inv_cqe,
		.next = &reg.wr,
		.ex.invalidate_rkey = piece->mr->rkey,
	};
	int ret;

	init_completion(&wait.done);
	/* A key is never used for two sets of pages. */
	ib_update_fast_reg_key(piece->mr, ib_inc_rkey(piece->mr->rkey));
	reg.key = piece->mr->rkey;
	ret = ib_post_send(conn->id->qp, piece->registered ? &invalidate : &reg.wr, NULL);
	if (ret)
		return ret;
	/* It completes, in error at the worst: the queue pair is drained before it goes. */
	wait_for_completion(&wait.done);
	return wait.status == IB_WC_SUCCESS ? 0 : -EIO;
}

int gyges_pieces_register(struct gyges_pieces *pieces, unsigned int index, struct gyges_conn *conn)
{
	struct gyges_piece *piece = &pieces->piece[index];
	int n, ret;

	/* Before the look at its pages: what is filled after it marks the piece again. */
	clear_bit(index, pieces->stale);
	smp_mb__after_atomic();
	n = map_piece(pieces, index);
	if (n <= 0)
		return n;
	if (!piece->mr) {
		struct ib_mr *mr = ib_alloc_mr(pieces->pd, IB_MR_TYPE_MEM_REG, pieces->piece_pages);

		if (IS_ERR(mr))
			return PTR_ERR(mr);
		piece->mr = mr;
	}
	ret = ib_map_mr_sg(piece->mr, pieces->sg, n, NULL, PAGE_SIZE);
	if (ret != n)
		return ret < 0 ? ret : -EIO;
	ret = post_registration(piece, conn);
	piece->registered = !ret;
	return ret ? ret : 1;
}

u32 gyges_pieces_table(const struct gyges_pieces *pieces, struct gyges_region *regions, u32 capacity)
{
	unsigned int i;
	u32 count = 0;

	for (i = 0; i < pieces->n; i++) {
		const struct gyges_piece *piece = &pieces->piece[i];

		if (!piece->registered)
			continue;
		if (count < capacity)
			regions[count] = (struct gyges_region){
				.first_page = (u64)i * pieces->piece_pages,
				.remote_addr = piece->mr->iova,
				.pages = piece->mapped,
				.rkey = piece->mr->rkey,
			};
		count++;
	}
	return count;
}
