// SPDX-License-Identifier: GPL-2.0
/*
 * fault.c - a page is touched.
 *
 * Present: it is mapped. A hole: zeros. Missing: its READ is posted, or is under way already; then a touch that must
 * not sleep (KVM's first try) returns VM_FAULT_RETRY at once, which KVM turns into an asynchronous page fault, and any
 * other drops the mmap lock and waits, killably, for the page. While the link is down there is no page to wait for:
 * then it waits for the link.
 *
 * A thread that is put to sleep here holds a reference on the file, so the module stays.
 */
#include <linux/sched/signal.h>
#include <linux/sched/mm.h>
#include <linux/uio.h>

#include "gyges_internal.h"
#include "gyges_trace.h"

/*
 * KVM's workers fault on behalf of a vCPU, in a kernel thread that no signal reaches: if they waited for a link that
 * does not come back, a guest that was killed could never be taken down. After this they give up; the vCPU, if there
 * still is one, touches the page again. They wait with the mmap lock held, since only so can they fail: not for long.
 */
#define WORKER_PATIENCE (HZ / 50)
/* Everybody else looks again so often: a full queue empties itself without a change of state. */
#define LINK_LOOK (HZ / 10)

/* One touch, whoever makes it. */
struct touch {
	struct gyges_inode *gi;
	pgoff_t index;
	bool nowait;
	u64 start_ns;
};

/* Whether the group that pays for the file's pages is that of whoever touches one. */
static bool pays(const struct touch *touch)
{
	return current->mm && mm_match_cgroup(current->mm, touch->gi->memcg);
}

/*
 * A group that has no memory left kills what runs in it when it wants more itself. For a touch from elsewhere it does
 * not: that one waits.
 */
static gfp_t touch_gfp(const struct touch *touch)
{
	if (touch->nowait)
		return GFP_NOWAIT | __GFP_HIGHMEM | __GFP_NOWARN;
	return pays(touch) ? GFP_HIGHUSER : GFP_HIGHUSER | __GFP_RETRY_MAYFAIL | __GFP_NOWARN;
}

/* Adds a page of zeros where nothing is to be pulled. 0, -EEXIST, -ENOMEM; holds invalidate_lock shared. */
static int fill_hole(const struct touch *touch)
{
	struct gyges_inode *gi = touch->gi;
	struct address_space *mapping = gi->vfs_inode.i_mapping;
	struct folio *folio = filemap_alloc_folio(touch_gfp(touch) | __GFP_ZERO, 0);
	int ret;

	if (!folio)
		return -ENOMEM;
	/* Before anybody can find it: adding it makes that visible. */
	__folio_mark_uptodate(folio);
	folio_set_dirty(folio);
	ret = filemap_add_folio(mapping, folio, touch->index, touch_gfp(touch) & ~__GFP_HIGHMEM);
	if (!ret) {
		set_bit(touch->index, gi->present);
		gyges_export_filled(gi, touch->index);
		folio_unlock(folio);
	}
	folio_put(folio);
	return ret;
}

static bool is_missing(const struct gyges_import *imp, pgoff_t index)
{
	/* Until ARM a touch is the waiting VM's own business; ARM drops what it made. */
	return imp && imp->phase >= GYGES_PHASE_ARMED && imp->phase != GYGES_PHASE_COMPLETE &&
	       test_bit(index, imp->missing);
}

/* For tests: the next missing page becomes zeros, and counts as here. */
static int fill_wrongly(const struct touch *touch, struct gyges_import *imp)
{
	int ret = fill_hole(touch);

	if (ret)
		return ret;
	gyges_inject &= ~GYGES_INJECT_ZERO_MISSING;
	clear_bit(touch->index, imp->want);
	if (test_and_clear_bit(touch->index, imp->missing) && atomic64_dec_and_test(&imp->n_missing))
		gyges_import_completed(imp);
	return 0;
}

/*
 * What there is no page for: pulls it, or fills the hole. Errors as gyges_pull_demand(), and -EIO: abandoned, -ENXIO: the
 * file has become shorter, which a mapping that is made meanwhile does not prevent.
 */
static int make_page_locked(const struct touch *touch)
{
	struct gyges_import *imp = touch->gi->import;

	if (touch->index >= gyges_pages(touch->gi))
		return -ENXIO;
	if (!is_missing(imp, touch->index))
		return fill_hole(touch);
	if (unlikely(gyges_inject & GYGES_INJECT_ZERO_MISSING))
		return fill_wrongly(touch, imp);
	if (imp->phase == GYGES_PHASE_ABANDONED)
		return -EIO;
	return gyges_pull_demand(imp, touch->index, touch_gfp(touch) & ~__GFP_HIGHMEM, touch->start_ns);
}

static int make_page(const struct touch *touch)
{
	struct gyges_inode *gi = touch->gi;
	struct address_space *mapping = gi->vfs_inode.i_mapping;
	struct mem_cgroup *old;
	int ret;

	if (touch->nowait) {
		if (!filemap_invalidate_trylock_shared(mapping))
			return -EAGAIN;
	} else {
		filemap_invalidate_lock_shared(mapping);
	}
	old = set_active_memcg(gi->memcg);
	ret = make_page_locked(touch);
	set_active_memcg(old);
	filemap_invalidate_unlock_shared(mapping);
	return ret;
}

static bool is_remote_worker(void)
{
	return current->flags & PF_KTHREAD && !current->mm;
}

static void count_wait(const struct touch *touch, bool joined)
{
	struct gyges_measures *measures = touch->gi->measures;
	u64 ns = ktime_get_ns() - touch->start_ns;

	if (!measures)
		return;
	if (!(current->flags & PF_KTHREAD))
		atomic64_add(ns, &measures->count.blocktime_ns);
	if (joined)
		gyges_hist_add(&measures->fault_latency, ns);
}

/* The page is on its way by prefetch, and this touch is the first to wait for it. */
static bool join(const struct touch *touch, struct folio *folio)
{
	struct gyges_import *imp;

	if (folio_test_uptodate(folio) || !test_and_clear_bit(PG_checked, &folio->flags))
		return false;
	gyges_count(touch->gi, joined_faults, 1);
	gyges_count(touch->gi, demand_faults, 1);
	rcu_read_lock();
	imp = READ_ONCE(touch->gi->import);
	if (imp)
		gyges_prefetch_fault(imp, touch->index, touch->start_ns);
	rcu_read_unlock();
	return true;
}

/* Sleeps until @folio is unlocked. 0 or -EINTR when killed. */
static int wait_for_folio(const struct touch *touch, struct folio *folio)
{
	bool joined = join(touch, folio);
	int ret = folio_wait_locked_killable(folio);

	count_wait(touch, joined);
	return ret ? -EINTR : 0;
}

/* Sleeps until something about the link may have changed since @seq. 0, -EINTR when killed, -EIO: a worker gives up. */
static int wait_for_link(const struct touch *touch, s64 seq)
{
	struct gyges_inode *gi = touch->gi;
	long left = is_remote_worker() ? WORKER_PATIENCE : LINK_LOOK;
	DEFINE_WAIT(wait);

	prepare_to_wait(&gi->wait, &wait, TASK_KILLABLE);
	if (atomic64_read(&gi->seq) == seq)
		left = schedule_timeout(left);
	finish_wait(&gi->wait, &wait);
	count_wait(touch, false);
	if (fatal_signal_pending(current))
		return -EINTR;
	return is_remote_worker() && !left ? -EIO : 0;
}

/* Sleeps for what a fault needs, without the mmap lock where that is allowed. */
static vm_fault_t fault_sleep(struct vm_fault *vmf, const struct touch *touch, struct folio *folio, s64 seq)
{
	struct file *file = NULL;
	int ret;

	if (vmf->flags & FAULT_FLAG_ALLOW_RETRY && (folio || !is_remote_worker())) {
		/* Neither vmf nor its VMA may be looked at from here on. */
		file = get_file(vmf->vma->vm_file);
		gyges_release_fault_lock(vmf);
	}
	ret = folio ? wait_for_folio(touch, folio) : wait_for_link(touch, seq);
	if (folio)
		folio_put(folio);
	if (!file)
		return ret ? VM_FAULT_SIGBUS : 0;
	fput(file);
	/* Whoever was killed finds out by itself. */
	return VM_FAULT_RETRY;
}

/* The folio, locked, if it is what the fault needs; NULL if it has to be looked up again. Consumes the reference. */
static struct folio *take_folio(const struct touch *touch, struct folio *folio)
{
	if (folio->mapping == touch->gi->vfs_inode.i_mapping && folio_test_uptodate(folio))
		return folio;
	folio_unlock(folio);
	folio_put(folio);
	return NULL;
}

static void count_nowait(const struct touch *touch, unsigned long switches)
{
	if (!touch->gi->measures)
		return;
	gyges_count(touch->gi, nowait_faults, 1);
	if (current->nvcsw != switches)
		gyges_count(touch->gi, nowait_slept, 1);
}

/* 0: *@folio is locked and uptodate. VM_FAULT_RETRY without sleeping, or what fault_sleep() says. */
static vm_fault_t fault_once(struct vm_fault *vmf, const struct touch *touch, struct folio **out)
{
	s64 seq = atomic64_read(&touch->gi->seq);
	struct folio *folio = gyges_get_folio(touch->gi->vfs_inode.i_mapping, touch->index);
	int ret = 0;

	if (!folio) {
		ret = make_page(touch);
		trace_gyges_fault(touch->gi->vfs_inode.i_ino, touch->index, touch->nowait, ret);
		if (ret == -EIO)
			return VM_FAULT_SIGBUS;
		/* Without memory as without a link: it may come back, and whoever is killed need not wait for it. */
		if (ret != -EAGAIN && ret != -ENOMEM)
			return 0;
	} else if (folio_trylock(folio)) {
		*out = take_folio(touch, folio);
		return 0;
	}
	if (touch->nowait) {
		if (folio)
			folio_put(folio);
		return VM_FAULT_RETRY;
	}
	return fault_sleep(vmf, touch, folio, seq);
}

static vm_fault_t gyges_fault(struct vm_fault *vmf)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	struct touch touch = {
		.gi = gyges_i(inode),
		.index = vmf->pgoff,
		.nowait = vmf->flags & FAULT_FLAG_ALLOW_RETRY && vmf->flags & FAULT_FLAG_RETRY_NOWAIT,
		.start_ns = ktime_get_ns(),
	};
	unsigned long switches = current->nvcsw;
	struct folio *folio = NULL;
	vm_fault_t ret = 0;

	while (!folio && !ret) {
		if (touch.index >= gyges_pages(touch.gi))
			return VM_FAULT_SIGBUS;
		ret = fault_once(vmf, &touch, &folio);
	}
	if (touch.nowait && ret == VM_FAULT_RETRY)
		count_nowait(&touch, switches);
	if (ret)
		return ret;
	vmf->page = folio_file_page(folio, touch.index);
	return VM_FAULT_LOCKED;
}

/*
 * The first write to a page through a shared mapping since it was last write-protected. The page stays locked until
 * its PTE is writable: a round that took the mark in between would not find the PTE to protect.
 */
static vm_fault_t gyges_page_mkwrite(struct vm_fault *vmf)
{
	struct folio *folio = page_folio(vmf->page);
	struct inode *inode = file_inode(vmf->vma->vm_file);

	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT) {
		if (!folio_trylock(folio))
			return VM_FAULT_NOPAGE;
	} else {
		folio_lock(folio);
	}
	if (folio->mapping != inode->i_mapping) {
		folio_unlock(folio);
		return VM_FAULT_NOPAGE;
	}
	gyges_dirty_mark(gyges_i(inode), folio->index, 1);
	gyges_import_overwritten(gyges_i(inode), folio->index);
	return VM_FAULT_LOCKED;
}

const struct vm_operations_struct gyges_vm_ops = {
	.fault = gyges_fault,
	/* Maps neighbours that are present, unlocked and uptodate, and no others. */
	.map_pages = filemap_map_pages,
	.page_mkwrite = gyges_page_mkwrite,
};

/* ---- read() ---- */

static bool read_is_missing(const struct touch *touch)
{
	struct address_space *mapping = touch->gi->vfs_inode.i_mapping;
	bool missing;

	filemap_invalidate_lock_shared(mapping);
	missing = is_missing(touch->gi->import, touch->index);
	filemap_invalidate_unlock_shared(mapping);
	return missing;
}

/* *@out: the page with a reference, or NULL for a hole. 0, -EINTR, -EIO, -ENOMEM. */
static int read_page(const struct touch *touch, struct folio **out)
{
	for (;;) {
		s64 seq = atomic64_read(&touch->gi->seq);
		/* Before the look into the cache: a page is there before it stops being missing. */
		bool missing = read_is_missing(touch);
		struct folio *folio = gyges_get_folio(touch->gi->vfs_inode.i_mapping, touch->index);
		int ret;

		if ((folio && folio_test_uptodate(folio)) || (!folio && !missing)) {
			*out = folio;
			return 0;
		}
		if (folio) {
			ret = wait_for_folio(touch, folio);
			folio_put(folio);
		} else {
			ret = make_page(touch);
			if (ret == -EAGAIN)
				ret = wait_for_link(touch, seq);
		}
		if (ret && ret != -EEXIST)
			return ret;
	}
}

static ssize_t copy_page_part(struct folio *folio, size_t offset, size_t len, struct iov_iter *to)
{
	size_t done = folio ? copy_page_to_iter(folio_page(folio, 0), offset, len, to) : iov_iter_zero(len, to);

	return done ? done : -EFAULT;
}

/* As on tmpfs holes read as zeros and stay holes; a page that is missing is pulled first. */
ssize_t gyges_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	ssize_t total = 0, n;

	while (iov_iter_count(to) && iocb->ki_pos < i_size_read(inode)) {
		struct touch touch = {
			.gi = gyges_i(inode),
			.index = iocb->ki_pos >> PAGE_SHIFT,
			.start_ns = ktime_get_ns(),
		};
		size_t offset = offset_in_page(iocb->ki_pos);
		struct folio *folio = NULL;

		n = read_page(&touch, &folio);
		if (!n)
			n = copy_page_part(folio, offset, min(PAGE_SIZE - offset, iov_iter_count(to)), to);
		if (folio)
			folio_put(folio);
		if (n < 0)
			return total ? total : n;
		iocb->ki_pos += n;
		total += n;
		cond_resched();
	}
	file_accessed(iocb->ki_filp);
	return total;
}
