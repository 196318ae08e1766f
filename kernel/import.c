// SPDX-License-Identifier: GPL-2.0
/*
 * import.c - the destination's side of a file: its phases, its link, its orders.
 *
 *   IMPORT            ARM             RUN             last page
 *   ------> PRECOPY ------> ARMED ------> RUNNING -------------> COMPLETE
 *              | END          |              |
 *              v              +- ABANDON, ---+---> ABANDONED      touching a missing page is SIGBUS, for good
 *            (none)              last close
 *
 * The link comes and goes independently of the phase. There is one way down for it, close_link(), whatever the reason:
 * a READ that failed, a word of the connection manager, an order, the end. It runs where it may sleep; the link is
 * marked down first, with every poster out of the way, so that after the queue pairs are drained nothing is under way.
 */
#include <linux/kthread.h>
#include <linux/nsproxy.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>

#include "gyges_internal.h"
#include "gyges_trace.h"

/*
 * Whoever gave the orders ENDs a whole import at once, and tells the other end itself. If nobody has for so long the
 * kernel does, as it alone may be left.
 */
#define FAREWELL_TIMEOUT	(2 * HZ)
#define FAREWELL_TRIES		15

static struct address_space *mapping_of(const struct gyges_import *imp)
{
	return imp->gi->vfs_inode.i_mapping;
}

static void changed(struct gyges_import *imp)
{
	trace_gyges_state(imp->gi->vfs_inode.i_ino, imp->phase, imp->link_up, imp->link_error);
	gyges_changed(imp->gi);
	wake_up(&imp->work);
}

/* ---- link ---- */

void gyges_import_fail(struct gyges_import *imp, int error)
{
	cmpxchg(&imp->link_error, 0, error);
	queue_work(gyges_queue, &imp->recovery);
}

static void link_lost(void *owner)
{
	gyges_import_fail(owner, -ECONNRESET);
}

static void close_link(struct gyges_import *imp)
{
	struct address_space *mapping = mapping_of(imp);
	struct gyges_conn *demand, *prefetch;
	struct ib_pd *pd;

	filemap_invalidate_lock(mapping);
	demand = imp->demand;
	prefetch = imp->prefetch;
	pd = imp->pd;
	imp->demand = NULL;
	imp->prefetch = NULL;
	if (imp->link_up && imp->phase != GYGES_PHASE_COMPLETE)
		imp->links_lost++;
	imp->link_up = false;
	filemap_invalidate_unlock(mapping);
	if (!demand)
		return;
	gyges_conn_close(demand);
	gyges_conn_close(prefetch);
	gyges_pull_requeue(imp);
	ib_dealloc_pd(pd);
	imp->pd = NULL;
	changed(imp);
}

static void recover(struct work_struct *work)
{
	close_link(container_of(work, struct gyges_import, recovery));
}

static int dial_both(struct gyges_import *imp, const struct gyges_endpoint *endpoint)
{
	struct gyges_dial dial = {
		.token = endpoint->token,
		.role = GYGES_ROLE_DEMAND,
		.depth = GYGES_DEMAND_DEPTH,
		.sges = 1,
		.deadline = jiffies + msecs_to_jiffies(endpoint->timeout_ms),
		.net = imp->net,
	};
	struct gyges_conn *demand, *prefetch;
	struct ib_pd *pd = NULL;
	int ret;

	ret = gyges_addr_read(endpoint, &dial.addr);
	if (ret)
		return ret;
	ret = gyges_conn_dial(&dial, &pd, link_lost, imp, &demand);
	if (ret)
		goto err_pd;
	dial.role = GYGES_ROLE_PREFETCH;
	dial.depth = GYGES_PREFETCH_DEPTH;
	dial.sges = min3(GYGES_BATCH_MAX, pd->device->attrs.max_send_sge, pd->device->attrs.max_sge_rd);
	ret = gyges_conn_dial(&dial, &pd, link_lost, imp, &prefetch);
	if (ret)
		goto err_demand;
	filemap_invalidate_lock(mapping_of(imp));
	/* Recovery takes this lock too: what one has suffered before has found no link to take down, so it counts here. */
	ret = READ_ONCE(demand->error) ?: READ_ONCE(prefetch->error);
	if (!ret) {
		imp->demand = demand;
		imp->prefetch = prefetch;
		imp->pd = pd;
		imp->endpoint = *endpoint;
		imp->max_batch = dial.sges;
		imp->link_error = 0;
		imp->link_up = true;
	}
	filemap_invalidate_unlock(mapping_of(imp));
	if (ret)
		goto err_prefetch;
	changed(imp);
	return 0;

err_prefetch:
	gyges_conn_close(prefetch);
err_demand:
	gyges_conn_close(demand);
err_pd:
	if (pd)
		ib_dealloc_pd(pd);
	return ret;
}

/* A destination that has all its pages has no use for a connection: it is the request that counts. */
void gyges_import_farewell(struct gyges_import *imp)
{
	struct gyges_dial dial = {
		.token = imp->endpoint.token,
		.role = GYGES_ROLE_FAREWELL,
		.depth = 1,
		.sges = 1,
		.deadline = jiffies + FAREWELL_TIMEOUT,
		.net = imp->net,
	};
	struct gyges_conn *conn = NULL;
	struct ib_pd *pd = NULL;
	int ret;

	if (!imp->farewells || time_before(jiffies, imp->farewell_at))
		return;
	imp->farewells--;
	ret = gyges_addr_read(&imp->endpoint, &dial.addr);
	if (!ret)
		ret = gyges_conn_dial(&dial, &pd, link_lost, imp, &conn);
	gyges_conn_close(conn);
	if (pd)
		ib_dealloc_pd(pd);
	/* It has been heard, or nobody listens there any more. */
	if (ret == -ECONNREFUSED)
		imp->farewells = 0;
	imp->farewell_at = jiffies + GYGES_FAREWELL_AFTER;
}

/* ---- life ---- */

static void free_import(struct gyges_import *imp)
{
	put_net(imp->net);
	kvfree(imp->missing);
	kvfree(imp->want);
	if (likely(!(gyges_inject & GYGES_INJECT_LEAK)))
		kvfree(imp->received);
	kvfree(imp->table);
	/* It knows the token. */
	kfree_sensitive(imp);
}

static struct gyges_import *make_import(struct gyges_inode *gi)
{
	struct gyges_import *imp = kzalloc(sizeof(*imp), GFP_KERNEL_ACCOUNT);
	size_t longs = BITS_TO_LONGS(gyges_pages(gi));

	if (!imp)
		return NULL;
	imp->gi = gi;
	imp->net = get_net(current->nsproxy->net_ns);
	imp->farewells = FAREWELL_TRIES;
	imp->pages = gyges_pages(gi);
	imp->phase = GYGES_PHASE_PRECOPY;
	imp->missing = kvcalloc(longs, sizeof(long), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	imp->want = kvcalloc(longs, sizeof(long), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	imp->received = kvcalloc(longs, sizeof(long), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!imp->missing || !imp->want || !imp->received) {
		free_import(imp);
		return NULL;
	}
	spin_lock_init(&imp->failed_lock);
	INIT_LIST_HEAD(&imp->failed);
	INIT_WORK(&imp->recovery, recover);
	init_waitqueue_head(&imp->work);
	return imp;
}

static void attach(struct gyges_inode *gi, struct gyges_import *imp)
{
	filemap_invalidate_lock(gi->vfs_inode.i_mapping);
	WRITE_ONCE(gi->import, imp);
	filemap_invalidate_unlock(gi->vfs_inode.i_mapping);
}

/* No worker and no link after this. */
static void quiesce(struct gyges_import *imp)
{
	gyges_prefetch_stop(imp);
	close_link(imp);
	cancel_work_sync(&imp->recovery);
}

void gyges_import_free(struct gyges_inode *gi)
{
	struct gyges_import *imp = gi->import;

	lockdep_assert_held(&gi->ctl);
	if (!imp)
		return;
	quiesce(imp);
	attach(gi, NULL);
	/* Some look without invalidate_lock, under RCU. */
	synchronize_rcu();
	free_import(imp);
	gyges_changed(gi);
}

static int begin(struct gyges_inode *gi, bool overwrite)
{
	struct gyges_import *imp;
	int ret;

	if (!gyges_pages(gi))
		return -EINVAL;
	if (gi->export || gyges_is_tracking(gi))
		return -EBUSY;
	if (!overwrite && gi->vfs_inode.i_mapping->nrpages)
		return -ENOTEMPTY;
	ret = gyges_measures_make(gi);
	if (ret)
		return ret;
	imp = make_import(gi);
	if (!imp)
		return -ENOMEM;
	ret = gyges_prefetch_start(imp);
	if (ret) {
		free_import(imp);
		return ret;
	}
	attach(gi, imp);
	return 0;
}

int gyges_import_connect(struct gyges_inode *gi, const struct gyges_endpoint *endpoint)
{
	bool fresh = !gi->import;
	int ret;

	lockdep_assert_held(&gi->ctl);
	if (fresh) {
		ret = begin(gi, endpoint->flags & GYGES_IMPORT_OVERWRITE);
		if (ret)
			return ret;
	} else {
		if (gi->import->phase == GYGES_PHASE_COMPLETE)
			return -EALREADY;
		if (gi->import->phase == GYGES_PHASE_ABANDONED)
			return -ESHUTDOWN;
		/* A link that is being taken down is gone after this. */
		flush_work(&gi->import->recovery);
		if (gi->import->link_up)
			return -EBUSY;
	}
	ret = dial_both(gi->import, endpoint);
	if (ret && fresh)
		gyges_import_free(gi);
	else if (ret)
		gi->import->link_error = ret;
	return ret;
}

static void drop_all_pages(struct gyges_inode *gi)
{
	struct address_space *mapping = gi->vfs_inode.i_mapping;

	filemap_invalidate_lock(mapping);
	unmap_mapping_pages(mapping, 0, 0, true);
	truncate_inode_pages(mapping, 0);
	bitmap_zero(gi->present, gyges_pages(gi));
	filemap_invalidate_unlock(mapping);
}

int gyges_import_end(struct gyges_inode *gi)
{
	struct gyges_import *imp = gi->import;
	bool whole;

	lockdep_assert_held(&gi->ctl);
	if (!imp)
		return -EINVAL;
	whole = imp->phase == GYGES_PHASE_COMPLETE;
	if (!whole && imp->phase != GYGES_PHASE_PRECOPY &&
	    (imp->phase != GYGES_PHASE_ABANDONED || mapping_mapped(gi->vfs_inode.i_mapping)))
		return -EBUSY;
	gyges_import_free(gi);
	if (!whole)
		drop_all_pages(gi);
	return 0;
}

void gyges_import_orphan(struct gyges_inode *gi)
{
	struct gyges_import *imp = gi->import;

	lockdep_assert_held(&gi->ctl);
	if (!imp)
		return;
	if (imp->phase == GYGES_PHASE_PRECOPY || imp->phase == GYGES_PHASE_COMPLETE) {
		gyges_import_end(gi);
		return;
	}
	gyges_import_abandon(gi);
	quiesce(imp);
}

/* ---- where pages are ---- */

static bool table_is_valid(const struct gyges_import *imp, const struct gyges_table *table)
{
	u64 end = 0;
	u32 i;

	for (i = 0; i < table->count; i++) {
		const struct gyges_region *region = &table->region[i];
		u64 bytes = (u64)region->pages << PAGE_SHIFT;
		u64 last;

		if (!region->pages || region->first_page < end || region->first_page >= imp->pages ||
		    region->pages > imp->pages - region->first_page)
			return false;
		if (check_add_overflow(region->remote_addr, bytes - 1, &last))
			return false;
		end = region->first_page + region->pages;
	}
	return true;
}

int gyges_import_regions(struct gyges_inode *gi, struct gyges_table *table)
{
	struct gyges_import *imp = gi->import;
	struct gyges_table *old;

	lockdep_assert_held(&gi->ctl);
	if (!imp)
		return -EINVAL;
	if (!table_is_valid(imp, table))
		return -EINVAL;
	if (imp->phase == GYGES_PHASE_COMPLETE || imp->phase == GYGES_PHASE_ABANDONED)
		return -ESHUTDOWN;
	/* While READs are under way, only of the old table may be spoken. */
	if (READ_ONCE(imp->round_active) || (imp->phase != GYGES_PHASE_PRECOPY && imp->link_up))
		return -EBUSY;
	filemap_invalidate_lock(mapping_of(imp));
	old = imp->table;
	imp->table = table;
	filemap_invalidate_unlock(mapping_of(imp));
	kvfree(old);
	return 0;
}

/* ---- phases ---- */

/* Pre-copy, and nothing is under way. */
static int check_precopy(const struct gyges_import *imp)
{
	if (!imp || imp->phase != GYGES_PHASE_PRECOPY)
		return -EINVAL;
	return READ_ONCE(imp->round_active) ? -EBUSY : 0;
}

int gyges_import_discard(struct gyges_inode *gi, const unsigned long *set)
{
	struct gyges_import *imp = gi->import;
	int ret = check_precopy(imp);

	lockdep_assert_held(&gi->ctl);
	if (ret)
		return ret;
	if (!gyges_is_covered(imp, set))
		return -ERANGE;
	filemap_invalidate_lock(mapping_of(imp));
	gyges_want(imp, set);
	gyges_count(gi, discarded_pages, gyges_drop_set_locked(imp, set));
	filemap_invalidate_unlock(mapping_of(imp));
	return 0;
}

int gyges_import_round(struct gyges_inode *gi, const unsigned long *set, u32 deadline_ms)
{
	struct gyges_import *imp = gi->import;
	int ret = check_precopy(imp);

	if (!ret && !imp->link_up)
		ret = -ENOTCONN;
	if (!ret)
		ret = gyges_import_discard(gi, set);
	if (ret)
		return ret;
	filemap_invalidate_lock(mapping_of(imp));
	imp->cursor = 0;
	imp->round_ended = false;
	imp->round_deadline_ns = ktime_get_ns() + (u64)deadline_ms * NSEC_PER_MSEC;
	WRITE_ONCE(imp->round_active, true);
	filemap_invalidate_unlock(mapping_of(imp));
	changed(imp);
	return 0;
}

int gyges_import_end_round(struct gyges_inode *gi)
{
	struct gyges_import *imp = gi->import;

	lockdep_assert_held(&gi->ctl);
	if (!imp || imp->phase != GYGES_PHASE_PRECOPY)
		return -EINVAL;
	WRITE_ONCE(imp->round_ended, true);
	wake_up(&imp->work);
	return 0;
}

static void set_phase(struct gyges_import *imp, u32 phase)
{
	filemap_invalidate_lock(mapping_of(imp));
	WRITE_ONCE(imp->phase, phase);
	filemap_invalidate_unlock(mapping_of(imp));
	changed(imp);
}

int gyges_import_arm(struct gyges_inode *gi)
{
	struct gyges_import *imp = gi->import;
	s64 missing;
	int ret = check_precopy(imp);

	lockdep_assert_held(&gi->ctl);
	if (ret)
		return ret;
	if (!gyges_is_covered(imp, imp->missing))
		return -ERANGE;
	if (!imp->link_up && atomic64_read(&imp->n_missing))
		return -ENOTCONN;
	filemap_invalidate_lock(mapping_of(imp));
	/* First, so that whoever touches a page from here on pulls it. */
	WRITE_ONCE(imp->phase, GYGES_PHASE_ARMED);
	gyges_count(gi, discarded_pages, gyges_drop_unvouched_locked(imp));
	missing = atomic64_read(&imp->n_missing);
	atomic64_set(&gi->measures->count.zero_pages, imp->pages - missing - mapping_of(imp)->nrpages);
	filemap_invalidate_unlock(mapping_of(imp));
	changed(imp);
	return 0;
}

int gyges_import_run(struct gyges_inode *gi)
{
	lockdep_assert_held(&gi->ctl);
	if (!gi->import || gi->import->phase != GYGES_PHASE_ARMED)
		return -EINVAL;
	/* Without prefetch the guest has its first second to show what it touches. */
	WRITE_ONCE(gi->import->last_fault_ns, ktime_get_ns());
	set_phase(gi->import, GYGES_PHASE_RUNNING);
	return 0;
}

void gyges_import_completed(struct gyges_import *imp)
{
	/* The worker looks after the rest: this may be a softirq. */
	wake_up(&imp->work);
}

int gyges_import_drop(struct gyges_inode *gi)
{
	struct gyges_import *imp = gi->import;

	lockdep_assert_held(&gi->ctl);
	if (!imp)
		return -EINVAL;
	close_link(imp);
	flush_work(&imp->recovery);
	return 0;
}

int gyges_import_abandon(struct gyges_inode *gi)
{
	struct gyges_import *imp = gi->import;

	lockdep_assert_held(&gi->ctl);
	if (!imp || (imp->phase != GYGES_PHASE_ARMED && imp->phase != GYGES_PHASE_RUNNING))
		return -EINVAL;
	set_phase(imp, GYGES_PHASE_ABANDONED);
	close_link(imp);
	return 0;
}

int gyges_import_configure(struct gyges_inode *gi, const struct gyges_prefetch *config)
{
	struct gyges_import *imp = gi->import;

	lockdep_assert_held(&gi->ctl);
	if (!imp)
		return -EINVAL;
	filemap_invalidate_lock(mapping_of(imp));
	imp->config = *config;
	imp->pace_from_ns = ktime_get_ns();
	imp->pace_bytes = atomic64_read(&gi->measures->count.wire_bytes);
	filemap_invalidate_unlock(mapping_of(imp));
	wake_up(&imp->work);
	return 0;
}
