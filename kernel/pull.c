// SPDX-License-Identifier: GPL-2.0
/*
 * pull.c - one READ: from the page that enters the cache, locked, to the page that is there.
 *
 * The page cache decides who asks for a page: whoever adds the folio does, and nobody else can until it is gone again.
 * The content is in place before the page is uptodate, and the page is uptodate before it stops being missing. When a
 * READ fails its folios leave the cache, still locked, then the lock: whoever waited looks again, finds no folio and a
 * page that is missing, and asks anew.
 */
#include <linux/slab.h>

#include "gyges_internal.h"
#include "gyges_trace.h"

struct gyges_read {
	struct ib_cqe cqe;
	struct gyges_import *imp;
	struct list_head node;
	u64 seen_ns;			/* when a fault first saw the page; 0: prefetch */
	u64 posted_ns;
	unsigned int count;
	pgoff_t first;
	struct folio *folio[GYGES_BATCH_MAX];
	u64 dma[GYGES_BATCH_MAX];
};

static struct kmem_cache *read_cache;

int gyges_pull_init(void)
{
	read_cache = KMEM_CACHE(gyges_read, 0);
	return read_cache ? 0 : -ENOMEM;
}

void gyges_pull_exit(void)
{
	kmem_cache_destroy(read_cache);
}

const struct gyges_region *gyges_region_of(const struct gyges_table *table, pgoff_t page)
{
	u32 lo = 0, hi = table ? table->count : 0;

	while (lo < hi) {
		u32 mid = lo + (hi - lo) / 2;
		const struct gyges_region *region = &table->region[mid];

		if (page < region->first_page)
			hi = mid;
		else if (page - region->first_page >= region->pages)
			lo = mid + 1;
		else
			return region;
	}
	return NULL;
}

static bool is_demand(const struct gyges_read *read)
{
	return read->seen_ns;
}

static void unmap(struct gyges_read *read, unsigned int from)
{
	for (; from < read->count; from++)
		ib_dma_unmap_page(read->imp->pd->device, read->dma[from], PAGE_SIZE, DMA_FROM_DEVICE);
}

/* It is no longer in flight; last, as the link may be taken down after it. */
static void retire(struct gyges_read *read)
{
	struct gyges_import *imp = read->imp;
	unsigned int count = read->count;
	bool demand = is_demand(read);

	kmem_cache_free(read_cache, read);
	if (demand) {
		/* Those that found the queue full wait like those that found no link. */
		if (atomic_dec_return(&imp->demand_inflight) == GYGES_DEMAND_DEPTH - 1)
			wake_up_all(&imp->gi->wait);
	} else {
		atomic_sub(count, &imp->pages_inflight);
		atomic_dec(&imp->prefetch_inflight);
	}
	wake_up(&imp->work);
}

/* ---- completion ---- */

static void count_read(const struct gyges_read *read, u64 now)
{
	struct gyges_inode *gi = read->imp->gi;
	bool precopy = READ_ONCE(read->imp->phase) == GYGES_PHASE_PRECOPY;

	gyges_hist_add(&gi->measures->read_latency, now - read->posted_ns);
	gyges_count(gi, wire_bytes, (u64)read->count << PAGE_SHIFT);
	if (precopy)
		gyges_count(gi, precopy_pages, read->count);
	else
		gyges_count(gi, postcopy_pages, read->count);
	if (is_demand(read)) {
		gyges_hist_add(&gi->measures->fault_latency, now - read->seen_ns);
		gyges_count(gi, demand_faults, 1);
	}
}

/* The content of one page is in place. */
static void arrive(struct gyges_read *read, unsigned int i)
{
	struct gyges_import *imp = read->imp;
	struct folio *folio = read->folio[i];
	pgoff_t index = folio->index;

	/* Who was waiting for a page of prefetch has taken the mark. */
	if (!is_demand(read) && test_and_clear_bit(PG_checked, &folio->flags) &&
	    READ_ONCE(imp->phase) != GYGES_PHASE_PRECOPY)
		gyges_count(imp->gi, prefetched_pages, 1);
	folio_mark_uptodate(folio);
	/* For good: a clean page that nobody maps is dropped by vm.drop_caches, and this one is here alone. */
	folio_set_dirty(folio);
	set_bit(index, imp->gi->present);
	set_bit(index, imp->received);
	if (!test_and_clear_bit(index, imp->missing))
		gyges_count(imp->gi, duplicate_pages, 1);
	else if (atomic64_dec_and_test(&imp->n_missing))
		gyges_import_completed(imp);
	folio_unlock(folio);
	folio_put(folio);
}

static void read_done(struct ib_cq *cq, struct ib_wc *wc)
{
	struct gyges_read *read = container_of(wc->wr_cqe, struct gyges_read, cqe);
	struct gyges_import *imp = read->imp;
	u64 now = ktime_get_ns();
	unsigned long flags;
	unsigned int i;

	unmap(read, 0);
	trace_gyges_read_done(imp->gi->vfs_inode.i_ino, read->first, read->count, wc->status, now - read->posted_ns);
	if (unlikely(wc->status != IB_WC_SUCCESS)) {
		spin_lock_irqsave(&imp->failed_lock, flags);
		list_add_tail(&read->node, &imp->failed);
		spin_unlock_irqrestore(&imp->failed_lock, flags);
		/* All that follows on this queue pair is flushed; the first one says why. */
		gyges_import_fail(imp, wc->status == IB_WC_REM_ACCESS_ERR ? -EREMOTEIO : -ECONNRESET);
		return;
	}
	count_read(read, now);
	for (i = 0; i < read->count; i++)
		arrive(read, i);
	retire(read);
}

/* ---- failure ---- */

/* The pages of one READ are wanted again. */
static void give_up(struct gyges_read *read)
{
	struct gyges_import *imp = read->imp;
	struct address_space *mapping = imp->gi->vfs_inode.i_mapping;
	unsigned int i;

	for (i = 0; i < read->count; i++) {
		struct folio *folio = read->folio[i];

		clear_bit(PG_checked, &folio->flags);
		set_bit(folio->index, imp->want);
		gyges_remove_folio(mapping, folio);
		folio_unlock(folio);
		folio_put(folio);
	}
	gyges_count(imp->gi, failed_reads, 1);
	retire(read);
}

void gyges_pull_requeue(struct gyges_import *imp)
{
	struct gyges_read *read, *next;
	LIST_HEAD(failed);

	spin_lock_irq(&imp->failed_lock);
	list_splice_init(&imp->failed, &failed);
	spin_unlock_irq(&imp->failed_lock);
	list_for_each_entry_safe(read, next, &failed, node)
		give_up(read);
}

/* ---- posting ---- */

/* Adds an empty folio, locked. 0, -EEXIST: the page is there or on its way, -ENOMEM. */
static int add_page(struct gyges_read *read, pgoff_t index, gfp_t gfp)
{
	struct address_space *mapping = read->imp->gi->vfs_inode.i_mapping;
	struct folio *folio = filemap_alloc_folio(gfp | __GFP_HIGHMEM, 0);
	int ret;

	if (!folio)
		return -ENOMEM;
	ret = filemap_add_folio(mapping, folio, index, gfp);
	if (ret) {
		folio_put(folio);
		return ret;
	}
	clear_bit(index, read->imp->want);
	read->folio[read->count++] = folio;
	return 0;
}

static int map_pages(struct gyges_read *read)
{
	struct ib_device *device = read->imp->pd->device;
	unsigned int i;

	for (i = 0; i < read->count; i++) {
		read->dma[i] = ib_dma_map_page(device, folio_page(read->folio[i], 0), 0, PAGE_SIZE, DMA_FROM_DEVICE);
		if (ib_dma_mapping_error(device, read->dma[i])) {
			while (i--)
				ib_dma_unmap_page(device, read->dma[i], PAGE_SIZE, DMA_FROM_DEVICE);
			return -EIO;
		}
	}
	return 0;
}

static int post(struct gyges_read *read, struct ib_qp *qp, const struct gyges_region *region)
{
	struct ib_sge sge[GYGES_BATCH_MAX];
	struct ib_rdma_wr wr = {
		.wr = {
			.wr_cqe = &read->cqe,
			.sg_list = sge,
			.num_sge = read->count,
			.opcode = IB_WR_RDMA_READ,
		},
		.remote_addr = region->remote_addr + ((u64)(read->first - region->first_page) << PAGE_SHIFT),
		.rkey = region->rkey,
	};
	unsigned int i;
	int ret;

	for (i = 0; i < read->count; i++)
		sge[i] = (struct ib_sge){
			.addr = read->dma[i],
			.length = PAGE_SIZE,
			.lkey = read->imp->pd->local_dma_lkey,
		};
	read->cqe.done = read_done;
	read->posted_ns = ktime_get_ns();
	ret = ib_post_send(qp, &wr.wr, NULL);
	if (ret)
		unmap(read, 0);
	return ret;
}

/*
 * Sends the READ of pages that are in the cache already, so whatever goes wrong is a failed READ: there may be waiters.
 */
static void launch(struct gyges_read *read, struct ib_qp *qp, const struct gyges_region *region)
{
	struct gyges_import *imp = read->imp;
	unsigned long flags;
	int ret;

	trace_gyges_read_post(imp->gi->vfs_inode.i_ino, read->first, read->count, is_demand(read));
	ret = map_pages(read);
	if (!ret)
		ret = post(read, qp, region);
	if (!ret)
		return;
	spin_lock_irqsave(&imp->failed_lock, flags);
	list_add_tail(&read->node, &imp->failed);
	spin_unlock_irqrestore(&imp->failed_lock, flags);
	gyges_import_fail(imp, ret);
}

static struct gyges_read *make_read(struct gyges_import *imp, pgoff_t first, gfp_t gfp)
{
	struct gyges_read *read = kmem_cache_alloc(read_cache, gfp);

	if (!read)
		return NULL;
	read->imp = imp;
	read->first = first;
	read->count = 0;
	read->seen_ns = 0;
	return read;
}

int gyges_pull_demand(struct gyges_import *imp, pgoff_t index, gfp_t gfp, u64 seen_ns)
{
	const struct gyges_region *region = gyges_region_of(imp->table, index);
	struct gyges_read *read;
	int ret;

	/* A table that does not cover the missing pages is refused, so without a region there is no link either. */
	if (!imp->link_up || !region)
		return -EAGAIN;
	if (!atomic_add_unless(&imp->demand_inflight, 1, GYGES_DEMAND_DEPTH))
		return -EAGAIN;
	read = make_read(imp, index, gfp);
	ret = read ? add_page(read, index, gfp) : -ENOMEM;
	if (ret) {
		if (read)
			kmem_cache_free(read_cache, read);
		atomic_dec(&imp->demand_inflight);
		return ret;
	}
	read->seen_ns = seen_ns;
	gyges_count(imp->gi, demand_reads, 1);
	gyges_prefetch_fault(imp, index, seen_ns);
	launch(read, imp->demand->id->qp, region);
	return 0;
}

int gyges_pull_run(struct gyges_import *imp, pgoff_t first, unsigned int count)
{
	/* Nobody is killed for want of memory that a guest may never ask for: the worker tries again. */
	const gfp_t gfp = GFP_KERNEL | __GFP_RETRY_MAYFAIL | __GFP_NOWARN;
	const struct gyges_region *region = gyges_region_of(imp->table, first);
	struct gyges_read *read;
	int ret = 0;

	if (!imp->link_up || !region)
		return -EAGAIN;
	read = make_read(imp, first, gfp);
	if (!read)
		return -ENOMEM;
	while (!ret && read->count < count) {
		ret = add_page(read, first + read->count, gfp);
		if (!ret)
			folio_set_checked(read->folio[read->count - 1]);
	}
	if (!read->count) {
		kmem_cache_free(read_cache, read);
		/* A touch was quicker with it. */
		if (ret == -EEXIST)
			clear_bit(first, imp->want);
		return ret == -EEXIST ? 0 : ret;
	}
	count = read->count;
	atomic_inc(&imp->prefetch_inflight);
	atomic_add(count, &imp->pages_inflight);
	gyges_count(imp->gi, prefetch_reads, 1);
	launch(read, imp->prefetch->id->qp, region);
	return count;
}
