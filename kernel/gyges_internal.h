/* SPDX-License-Identifier: GPL-2.0 */
/*
 * gyges_internal.h - what the files of the module share.
 *
 * Everything hangs from the inode of a RAM file. Lock order, outermost first:
 *
 *   gi->ctl                       ioctls that change something, one at a time; last close
 *     mmap_lock                   (held by the caller of a fault)
 *       mapping->invalidate_lock  shared: looking at phase, link and bitmaps, adding a page to the cache and posting
 *                                 its READ; exclusive: changing phase or link, taking pages out of the cache
 *         folio lock              held from the moment a page is asked for until it is here
 *           imp->failed_lock      softirq
 *
 * Nobody sleeps for a folio or for the link while holding invalidate_lock. A completion takes none of the mutexes: a
 * READ that succeeds is finished in softirq, one that fails is handed to imp->recovery, which owns no lock when it
 * waits. mmap_lock is never taken inside gi->ctl's ioctls: user memory is copied before and after.
 */
#ifndef GYGES_INTERNAL_H
#define GYGES_INTERNAL_H

#ifndef pr_fmt
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#endif

#include <linux/fs.h>
#include <linux/memcontrol.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <rdma/ib_verbs.h>
#include <rdma/rdma_cm.h>
#include <uapi/linux/gyges.h>

#include "gyges_compat.h"

#define GYGES_BATCH_MAX		16	/* pages of one READ */
#define GYGES_DEMAND_DEPTH	128	/* READs of one page on the demand queue pair */
#define GYGES_PREFETCH_DEPTH	64	/* READs on the prefetch queue pair */
#define GYGES_FAREWELL_AFTER	(2 * HZ)	/* from the last page, and from one try to the next */
#define GYGES_READ_ATOMICS	16	/* READs that the wire carries at once, by queue pair */

struct gyges_import;
struct gyges_export;

/* Counters of one file, from its creation on; softirq and any task. */
struct gyges_counters {
	atomic64_t precopy_pages;
	atomic64_t postcopy_pages;
	atomic64_t demand_faults;
	atomic64_t prefetched_pages;
	atomic64_t duplicate_pages;
	atomic64_t wire_bytes;
	atomic64_t blocktime_ns;
	atomic64_t discarded_pages;
	atomic64_t nowait_faults;
	atomic64_t nowait_slept;
	atomic64_t demand_reads;
	atomic64_t prefetch_reads;
	atomic64_t failed_reads;
	atomic64_t joined_faults;
	atomic64_t pinned_pages;
	atomic64_t registered_pieces;
	atomic64_t zero_pages;
};

struct gyges_histogram {
	atomic64_t n;
	atomic64_t sum;
	atomic64_t max;
	atomic64_t bucket[GYGES_HIST_BUCKETS];
};

struct gyges_measures {
	struct gyges_counters count;
	struct gyges_histogram fault_latency;
	struct gyges_histogram read_latency;
};

/* Pages that were written to. */
struct gyges_marks {
	struct rcu_head rcu;
	pgoff_t pages;
	unsigned long bits[];
};

struct gyges_inode {
	struct inode vfs_inode;
	struct mutex ctl;
	/* Files open on it, mappings included; the last one ends import and export. From and to 0 under ctl. */
	atomic_t opens;
	struct mem_cgroup *memcg;	/* its creator's, charged for every page */
	wait_queue_head_t wait;		/* poll, and whoever waits for the link */
	atomic64_t seq;			/* changes of state */
	/* Written with invalidate_lock held exclusively, read with it shared. */
	struct gyges_import *import;
	struct gyges_export *export;
	/* NULL: nobody tracks. Made and freed under ctl, read under RCU: I/O that ends marks when it likes. */
	struct gyges_marks __rcu *dirty;
	/*
	 * Pages whose content is here: in the cache and uptodate, told without looking at each. Of the file's size; set
	 * before the folio is unlocked, cleared under exclusive invalidate_lock when it leaves.
	 */
	unsigned long *present;
	unsigned long *exported;	/* pages that the export holds a reference on; freed with the inode */
	struct gyges_measures *measures; /* made by the first import, export or tracking, freed with the inode */
};

/* What poll() of one descriptor has seen. */
struct gyges_file {
	atomic64_t seen;
};

struct gyges_sb {
	kuid_t uid;
	kgid_t gid;
	umode_t mode;
	s64 max_bytes;			/* -1: no limit */
	spinlock_t lock;
	s64 used_bytes;			/* sizes of all files */
};

static inline struct gyges_inode *gyges_i(const struct inode *inode)
{
	return container_of(inode, struct gyges_inode, vfs_inode);
}

static inline struct gyges_sb *gyges_s(const struct super_block *sb)
{
	return sb->s_fs_info;
}

static inline pgoff_t gyges_pages(const struct gyges_inode *gi)
{
	return i_size_read(&gi->vfs_inode) >> PAGE_SHIFT;
}

/*
 * For orders and looks, one at a time. IMPORT keeps the others waiting for as long as its source may take to answer, so
 * whoever waits can be killed. 0 or -EINTR.
 */
static inline int gyges_begin_order(struct gyges_inode *gi)
{
	return mutex_lock_killable(&gi->ctl);
}

static inline void gyges_end_order(struct gyges_inode *gi)
{
	mutex_unlock(&gi->ctl);
}

/* The state has changed: who polls and who waits looks again. Any context. */
static inline void gyges_changed(struct gyges_inode *gi)
{
	atomic64_inc(&gi->seq);
	wake_up_all(&gi->wait);
}

/* For work that module unloading must wait for. */
extern struct workqueue_struct *gyges_queue;

/* ---- fs.c ---- */
extern const struct inode_operations gyges_file_iops;
int gyges_fs_init(void);
void gyges_fs_exit(void);

/* ---- file.c ---- */
extern const struct file_operations gyges_fops;
extern const struct address_space_operations gyges_aops;

/* ---- fault.c ---- */
extern const struct vm_operations_struct gyges_vm_ops;
ssize_t gyges_read_iter(struct kiocb *iocb, struct iov_iter *to);

/* ---- stats.c ---- */
int gyges_measures_make(struct gyges_inode *gi);
void gyges_hist_add(struct gyges_histogram *hist, u64 value);
void gyges_stats_fill(struct gyges_inode *gi, struct gyges_stats *stats);
#define gyges_count(gi, counter, by) atomic64_add(by, &(gi)->measures->count.counter)

/* ---- dirty.c ---- */
static inline bool gyges_is_tracking(const struct gyges_inode *gi)
{
	return rcu_access_pointer(gi->dirty);
}

int gyges_dirty_start(struct gyges_inode *gi);
void gyges_dirty_stop(struct gyges_inode *gi);
/* Sets in @bits what was written since the last round. The pages in it. */
s64 gyges_dirty_round(struct gyges_inode *gi, unsigned long *bits);
void gyges_dirty_mark(struct gyges_inode *gi, pgoff_t first, pgoff_t count);
bool gyges_dirty_folio(struct address_space *mapping, struct folio *folio);

/* ---- link.c: one connection ---- */
struct gyges_conn {
	struct rdma_cm_id *id;
	struct ib_cq *cq;
	void *owner;
	bool up;
	/* The destination's. */
	int error;			/* of the last CM event; -EINPROGRESS: none yet */
	struct completion event;
	/* The source's. */
	unsigned long flags;
	struct list_head node;
	struct work_struct death;
};

#define GYGES_CONN_DYING 0

struct gyges_dial {
	struct sockaddr_storage addr;
	const u8 *token;
	int role;
	int depth;			/* READs posted and not yet completed */
	int sges;
	unsigned long deadline;		/* jiffies */
	struct net *net;
};

int gyges_addr_read(const struct gyges_endpoint *endpoint, struct sockaddr_storage *addr);
/*
 * Connects. @pd: NULL where there is none yet, made then. 0 or -errno: ECONNREFUSED (rejected, nobody listens),
 * ENETUNREACH, ETIMEDOUT, ENODEV (no RDMA device that way, or another than @pd's), ECONNRESET (the source hung up at
 * once), EPROTO (it allows no READs), EINTR. @lost is called for what happens to the connection from then on, also
 * before this returns: whoever relies on several must look at their errors once @lost would find them.
 */
int gyges_conn_dial(const struct gyges_dial *dial, struct ib_pd **pd, void (*lost)(void *owner), void *owner,
		    struct gyges_conn **out);
/* After this nothing completes any more. Process context, no locks. */
void gyges_conn_close(struct gyges_conn *conn);
/* CM events to errors, for both ends. */
int gyges_cm_error(const struct rdma_cm_event *event);

/* ---- import.c ---- */
struct gyges_table {
	u32 count;
	struct gyges_region region[];
};

#define GYGES_SPOTS 8

struct gyges_spot {
	pgoff_t lo;			/* first page taken around this fault */
	pgoff_t hi;			/* behind the last one */
	unsigned int left;		/* pages that it is still worth */
};

struct gyges_import {
	struct gyges_inode *gi;
	pgoff_t pages;
	/* Under invalidate_lock, see gyges_inode. */
	u32 phase;
	bool link_up;
	struct gyges_table *table;
	struct gyges_conn *demand;
	struct gyges_conn *prefetch;
	struct ib_pd *pd;

	/*
	 * missing: its content is at the source, or on its way. want: missing, and nobody has asked for it; a hint for
	 * the worker, the page cache decides who asks. received: READ put it here and nothing has changed it since;
	 * meaningful until ARM.
	 */
	unsigned long *missing;
	unsigned long *want;
	unsigned long *received;
	atomic64_t n_missing;
	bool overwrite;

	atomic_t demand_inflight;
	atomic_t prefetch_inflight;	/* READs */
	atomic_t pages_inflight;	/* of prefetch READs */
	spinlock_t failed_lock;
	struct list_head failed;	/* READs whose pages must be asked for again */
	struct work_struct recovery;
	unsigned int max_batch;		/* pages of one READ that the device takes */
	int link_error;
	u64 links_lost;

	/* Where the source was reached last, for a farewell. Under gi->ctl until COMPLETE, the worker's from then on. */
	struct gyges_endpoint endpoint;
	struct net *net;
	unsigned int farewells;		/* tries that are left */
	unsigned long farewell_at;	/* jiffies */

	struct task_struct *worker;
	wait_queue_head_t work;
	struct gyges_prefetch config;
	u64 pace_from_ns;
	s64 pace_bytes;
	/* Round: set up under invalidate_lock, ended by the worker. */
	bool round_active;
	bool round_ended;
	u64 round_deadline_ns;
	pgoff_t cursor;
	u64 rounds_done;

	/* Recent faults, written by faults, read by the worker. */
	pgoff_t fault[GYGES_SPOTS];
	atomic_t faults;
	u64 last_fault_ns;
	unsigned int seen;
	struct gyges_spot spot[GYGES_SPOTS];
	pgoff_t sweep;
};

int gyges_import_connect(struct gyges_inode *gi, const struct gyges_endpoint *endpoint);
/* Takes @table over on success. */
int gyges_import_regions(struct gyges_inode *gi, struct gyges_table *table);
int gyges_import_round(struct gyges_inode *gi, const unsigned long *set, u32 deadline_ms);
int gyges_import_end_round(struct gyges_inode *gi);
int gyges_import_discard(struct gyges_inode *gi, const unsigned long *set);
int gyges_import_arm(struct gyges_inode *gi);
int gyges_import_run(struct gyges_inode *gi);
int gyges_import_drop(struct gyges_inode *gi);
int gyges_import_abandon(struct gyges_inode *gi);
int gyges_import_end(struct gyges_inode *gi);
int gyges_import_configure(struct gyges_inode *gi, const struct gyges_prefetch *config);
/* The file's last user is gone. Missing pages stay missing: whoever opens it again gets SIGBUS, not zeros. */
void gyges_import_orphan(struct gyges_inode *gi);
void gyges_import_free(struct gyges_inode *gi);
/* Something is wrong with the link: @error is kept, recovery runs. Any context. */
void gyges_import_fail(struct gyges_import *imp, int error);
/* The worker's, once the import is complete: tells the source so, unless somebody ENDs the import soon. */
void gyges_import_farewell(struct gyges_import *imp);
/* The last page is here. Any context. */
void gyges_import_completed(struct gyges_import *imp);

/* ---- page_sets.c: under exclusive invalidate_lock and with nothing under way, but for what is said ---- */
/* Every page of @set is in the table, as one outside could never come. Under gi->ctl alone. */
bool gyges_is_covered(const struct gyges_import *imp, const unsigned long *set);
/* These pages are at the source alone. */
void gyges_want(struct gyges_import *imp, const unsigned long *set);
/* Takes out of the cache what was not received, or the pages of @set; how many. */
s64 gyges_drop_unvouched_locked(struct gyges_import *imp);
s64 gyges_drop_set_locked(struct gyges_import *imp, const unsigned long *set);
/* A received page was written to here, before ARM: no longer what the source vouches for. Without locks. */
void gyges_import_overwritten(struct gyges_inode *gi, pgoff_t page);

/* ---- pull.c: one READ ---- */
int gyges_pull_init(void);
void gyges_pull_exit(void);
/*
 * A touch of a missing page: adds it to the cache, locked, and posts its READ. Holds invalidate_lock shared.
 * 0: under way, -EEXIST: somebody was quicker, -EAGAIN: not now (link down, queue full, no memory and @gfp must not
 * wait), -ENOMEM.
 */
int gyges_pull_demand(struct gyges_import *imp, pgoff_t index, gfp_t gfp, u64 seen_ns);
/* The worker's: @count pages from @first, of one region. Pages asked for, 0: all were there already, or -errno. */
int gyges_pull_run(struct gyges_import *imp, pgoff_t first, unsigned int count);
/* Gives up the pages of failed READs, so that they are asked for anew. Process context, no locks. */
void gyges_pull_requeue(struct gyges_import *imp);
const struct gyges_region *gyges_region_of(const struct gyges_table *table, pgoff_t page);

/* ---- prefetch.c ---- */
int gyges_prefetch_start(struct gyges_import *imp);
void gyges_prefetch_stop(struct gyges_import *imp);
void gyges_prefetch_fault(struct gyges_import *imp, pgoff_t page, u64 now_ns);

/* ---- export.c, register.c ---- */
int gyges_export_listen(struct gyges_inode *gi, struct gyges_endpoint *endpoint);
/* Registers what is not yet; writes at most @capacity entries. 0 or -errno. */
int gyges_export_regions(struct gyges_inode *gi, struct gyges_region *regions, u32 capacity, u32 *count, u32 *changed);
void gyges_export_end(struct gyges_inode *gi);
/* A hole was filled: its piece must be registered again. Holds invalidate_lock shared. */
void gyges_export_filled(struct gyges_inode *gi, pgoff_t page);
u32 gyges_export_connections(struct gyges_inode *gi);
bool gyges_export_is_read(const struct gyges_inode *gi);

/* Rules that a test breaks on purpose, by module parameter; 0 in real life. */
#define GYGES_INJECT_FORGET_PINNED	1u	/* rounds do not keep pages dirty that somebody holds */
#define GYGES_INJECT_SKIP_MKCLEAN	2u	/* rounds do not write-protect */
#define GYGES_INJECT_ZERO_MISSING	4u	/* the next missing page that is touched becomes zeros */
#define GYGES_INJECT_KEEP_ROUND		8u	/* a round that its caller did not get is not given back */
#define GYGES_INJECT_LEAK		16u	/* the end of an import forgets a bitmap */
extern unsigned int gyges_inject;

#endif
