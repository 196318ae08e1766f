// SPDX-License-Identifier: GPL-2.0
/*
 * prefetch.c - the worker of an import: pre-copy rounds, then the background of post-copy.
 *
 * In post-copy it pulls around recent faults, newest first: of the nearest wanted page ahead and the nearest behind the
 * nearer, at most REACH pages away from what was taken there; a fault is worth NEAR pages. Then it sweeps from page 0
 * upwards. While a fault waits for the wire, it keeps one READ under way and no more.
 */
#include <linux/kthread.h>
#include <linux/sched/mm.h>

#include "gyges_internal.h"
#include "gyges_trace.h"

#define NEAR			128
#define REACH			32
#define DEFAULT_BATCH		8
#define DEFAULT_PRECOPY_WINDOW	256
#define DEFAULT_POSTCOPY_WINDOW	64
/* Without prefetch: what the guest does not touch for so long is fetched all the same, so that it ends. */
#define SETTLED_NS		NSEC_PER_SEC
#define IDLE			((long)HZ)

void gyges_prefetch_fault(struct gyges_import *imp, pgoff_t page, u64 now_ns)
{
	unsigned int n = atomic_fetch_inc(&imp->faults);

	/* A reader that is overtaken sees another fault: as good. */
	WRITE_ONCE(imp->fault[n % GYGES_SPOTS], page);
	WRITE_ONCE(imp->last_fault_ns, now_ns);
}

static void take_up_faults(struct gyges_import *imp)
{
	unsigned int n = atomic_read(&imp->faults);

	if (n - imp->seen > GYGES_SPOTS)
		imp->seen = n - GYGES_SPOTS;
	for (; imp->seen != n; imp->seen++) {
		pgoff_t page = READ_ONCE(imp->fault[imp->seen % GYGES_SPOTS]);

		imp->spot[imp->seen % GYGES_SPOTS] =
			(struct gyges_spot){ .lo = page, .hi = page + 1, .left = NEAR };
	}
}

/* ---- what next ---- */

struct run {
	pgoff_t first;
	unsigned int count;		/* 0: nothing is wanted */
	bool near_fault;
};

/* Wanted pages in a row, @max at most, of one region. */
static unsigned int run_length(const struct gyges_import *imp, pgoff_t first, unsigned int max)
{
	const struct gyges_region *region = gyges_region_of(imp->table, first);
	pgoff_t end;

	if (!region)
		return 0;
	end = min_t(pgoff_t, first + max, region->first_page + region->pages);
	return find_next_zero_bit(imp->want, end, first) - first;
}

/* Nearest wanted page below @lo, at most REACH away. */
static bool nearest_below(const struct gyges_import *imp, pgoff_t lo, pgoff_t *page)
{
	pgoff_t begin = lo > REACH ? lo - REACH : 0;

	while (lo > begin) {
		if (test_bit(--lo, imp->want)) {
			*page = lo;
			return true;
		}
	}
	return false;
}

static struct run near_run(struct gyges_import *imp, struct gyges_spot *spot, unsigned int max)
{
	pgoff_t end = min_t(pgoff_t, spot->hi + REACH, imp->pages);
	pgoff_t above = find_next_bit(imp->want, end, spot->hi);
	pgoff_t below;
	bool down = nearest_below(imp, spot->lo, &below);
	struct run run = { .near_fault = true };

	if (above >= end && !down) {
		spot->left = 0;
		return run;
	}
	max = min(max, spot->left);
	if (down && (above >= end || spot->lo - below <= above - spot->hi)) {
		/* Downwards, as far as the row goes. */
		run.first = below;
		while (run.first && below - run.first + 1 < max && test_bit(run.first - 1, imp->want))
			run.first--;
		run.count = run_length(imp, run.first, below - run.first + 1);
		spot->lo = run.first;
	} else {
		run.first = above;
		run.count = run_length(imp, above, max);
		spot->hi = above + max(run.count, 1U);
	}
	spot->left -= min(spot->left, max(run.count, 1U));
	return run;
}

static struct run sweep(struct gyges_import *imp, pgoff_t *cursor, unsigned int max)
{
	struct run run = { .first = find_next_bit(imp->want, imp->pages, *cursor) };

	if (run.first < imp->pages)
		run.count = run_length(imp, run.first, max);
	*cursor = min_t(pgoff_t, run.first + max(run.count, 1U), imp->pages);
	return run;
}

static struct run background(struct gyges_import *imp, unsigned int max)
{
	struct run run;
	unsigned int i;

	take_up_faults(imp);
	for (i = 1; i <= min_t(unsigned int, imp->seen, GYGES_SPOTS); i++) {
		struct gyges_spot *spot = &imp->spot[(imp->seen - i) % GYGES_SPOTS];

		while (spot->left) {
			run = near_run(imp, spot, max);
			if (run.count)
				return run;
		}
	}
	run = sweep(imp, &imp->sweep, max);
	if (run.count)
		return run;
	/* What a lost link has handed back lies behind the sweep. */
	imp->sweep = 0;
	return sweep(imp, &imp->sweep, max);
}

/* ---- how much at once ---- */

static unsigned int batch_of(const struct gyges_import *imp)
{
	unsigned int batch = imp->config.batch_pages ?: DEFAULT_BATCH;

	return min(batch, imp->max_batch);
}

static bool is_round(const struct gyges_import *imp)
{
	return imp->phase == GYGES_PHASE_PRECOPY && imp->round_active;
}

static unsigned int window_of(const struct gyges_import *imp)
{
	if (is_round(imp))
		return imp->config.precopy_window_pages ?: DEFAULT_PRECOPY_WINDOW;
	return imp->config.postcopy_window_pages ?: DEFAULT_POSTCOPY_WINDOW;
}

/* Jiffies until the rate allows more; 0: now. */
static long pace(const struct gyges_import *imp)
{
	u64 rate = imp->config.rate_bytes_per_s, elapsed, allowed, sent;

	if (!rate)
		return 0;
	elapsed = ktime_get_ns() - imp->pace_from_ns;
	allowed = mul_u64_u64_div_u64(elapsed, rate, NSEC_PER_SEC);
	sent = atomic64_read(&imp->gi->measures->count.wire_bytes) - imp->pace_bytes +
	       ((u64)atomic_read(&imp->pages_inflight) << PAGE_SHIFT);
	if (sent <= allowed)
		return 0;
	return nsecs_to_jiffies(mul_u64_u64_div_u64(sent - allowed, NSEC_PER_SEC, rate)) + 1;
}

static bool has_room(const struct gyges_import *imp)
{
	int reads = atomic_read(&imp->prefetch_inflight);

	if (!imp->link_up || reads >= GYGES_PREFETCH_DEPTH)
		return false;
	if (!reads)
		return true;
	if (imp->phase == GYGES_PHASE_RUNNING && atomic_read(&imp->demand_inflight))
		return false;
	return atomic_read(&imp->pages_inflight) + batch_of(imp) <= window_of(imp);
}

static bool wants_background(const struct gyges_import *imp)
{
	return imp->phase == GYGES_PHASE_RUNNING &&
	       (!(imp->config.flags & GYGES_PREFETCH_OFF) ||
		ktime_get_ns() - READ_ONCE(imp->last_fault_ns) > SETTLED_NS);
}

/* ---- the worker ---- */

static struct run next_run(struct gyges_import *imp)
{
	struct run none = {};

	if (wants_background(imp))
		return background(imp, batch_of(imp));
	if (!is_round(imp) || imp->round_ended)
		return none;
	if (ktime_get_ns() < imp->round_deadline_ns) {
		struct run run = sweep(imp, &imp->cursor, batch_of(imp));

		if (run.count)
			return run;
	}
	imp->round_ended = true;
	return none;
}

/* What one step of the worker came to. */
enum step { STEP_DONE, STEP_BLOCKED, STEP_PACED, STEP_FAILED, STEP_NOTHING };

/* Asks for one run. Holds invalidate_lock shared. */
static enum step step_locked(struct gyges_import *imp)
{
	struct run run;

	if (!has_room(imp))
		return STEP_BLOCKED;
	if (pace(imp))
		return STEP_PACED;
	run = next_run(imp);
	if (!run.count)
		return STEP_NOTHING;
	trace_gyges_prefetch(imp->gi->vfs_inode.i_ino, run.first, run.count, run.near_fault);
	if (gyges_pull_run(imp, run.first, run.count) >= 0)
		return STEP_DONE;
	/* Not asked for after all, for lack of memory or of a link: from here again, later. */
	imp->sweep = min(imp->sweep, run.first);
	imp->cursor = min(imp->cursor, run.first);
	return STEP_FAILED;
}

/* Ends what is over: a round, or the import. */
static void finish(struct gyges_import *imp)
{
	struct address_space *mapping = imp->gi->vfs_inode.i_mapping;
	bool completed = false, ended = false;

	filemap_invalidate_lock(mapping);
	/* Without a link nothing more comes of it. */
	if (is_round(imp) && (imp->round_ended || !imp->link_up) && !atomic_read(&imp->prefetch_inflight)) {
		WRITE_ONCE(imp->round_active, false);
		imp->rounds_done++;
		ended = true;
	}
	if (imp->phase == GYGES_PHASE_RUNNING && !atomic64_read(&imp->n_missing)) {
		WRITE_ONCE(imp->phase, GYGES_PHASE_COMPLETE);
		completed = true;
	}
	filemap_invalidate_unlock(mapping);
	if (ended || completed) {
		trace_gyges_state(imp->gi->vfs_inode.i_ino, imp->phase, imp->link_up, imp->link_error);
		gyges_changed(imp->gi);
	}
	if (completed) {
		imp->farewell_at = jiffies + GYGES_FAREWELL_AFTER;
		queue_work(gyges_queue, &imp->recovery);
	}
}

/* Without locks: a hint. */
static bool is_over(const struct gyges_import *imp)
{
	if (READ_ONCE(imp->phase) == GYGES_PHASE_RUNNING)
		return !atomic64_read(&imp->n_missing);
	return is_round(imp) && (READ_ONCE(imp->round_ended) || !READ_ONCE(imp->link_up)) &&
	       !atomic_read(&imp->prefetch_inflight);
}

static bool has_work(const struct gyges_import *imp)
{
	return is_over(imp) || ((is_round(imp) || READ_ONCE(imp->phase) == GYGES_PHASE_RUNNING) && has_room(imp));
}

static bool has_round(const struct gyges_import *imp)
{
	return is_round(imp) && !READ_ONCE(imp->round_ended);
}

static void rest(struct gyges_import *imp, enum step step)
{
	bool running = READ_ONCE(imp->phase) == GYGES_PHASE_RUNNING;

	switch (step) {
	case STEP_DONE:
		cond_resched();
		break;
	case STEP_BLOCKED:
		/* A round must end at its deadline also when no completion says so. */
		wait_event_idle_timeout(imp->work, kthread_should_stop() || has_work(imp), is_round(imp) ? 1 : IDLE);
		break;
	case STEP_PACED:
		schedule_timeout_idle(clamp(pace(imp), 1L, HZ / 10L));
		break;
	case STEP_FAILED:
		/* Looking for memory where there is none takes time from those who could give some back. */
		schedule_timeout_idle(HZ / 10);
		break;
	case STEP_NOTHING:
		/* All is asked for, or the guest fetches for itself: a look now and then. */
		wait_event_idle_timeout(imp->work, kthread_should_stop() || is_over(imp) || has_round(imp),
					running ? HZ / 50 : IDLE);
		break;
	}
}

static int worker(void *arg)
{
	struct gyges_import *imp = arg;
	struct address_space *mapping = imp->gi->vfs_inode.i_mapping;
	struct mem_cgroup *old = set_active_memcg(imp->gi->memcg);
	enum step step;

	while (!kthread_should_stop()) {
		filemap_invalidate_lock_shared(mapping);
		step = step_locked(imp);
		filemap_invalidate_unlock_shared(mapping);
		if (is_over(imp))
			finish(imp);
		else
			rest(imp, step);
		if (READ_ONCE(imp->phase) == GYGES_PHASE_COMPLETE)
			gyges_import_farewell(imp);
	}
	set_active_memcg(old);
	return 0;
}

int gyges_prefetch_start(struct gyges_import *imp)
{
	struct task_struct *task = kthread_run(worker, imp, "gyges/%lu", imp->gi->vfs_inode.i_ino);

	if (IS_ERR(task))
		return PTR_ERR(task);
	imp->worker = task;
	return 0;
}

void gyges_prefetch_stop(struct gyges_import *imp)
{
	if (!imp->worker)
		return;
	kthread_stop(imp->worker);
	imp->worker = NULL;
}
