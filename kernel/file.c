// SPDX-License-Identifier: GPL-2.0
/* file.c - a RAM file as its users hold it: open, mmap, ioctl, poll, seek, punch. */
#include <linux/capability.h>
#include <linux/falloc.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "gyges_internal.h"

static struct gyges_inode *inode_of(const struct file *file)
{
	return gyges_i(file_inode(file));
}

/* ---- life ---- */

static int gyges_open(struct inode *inode, struct file *file)
{
	struct gyges_inode *gi = gyges_i(inode);
	struct gyges_file *gf;

	/* Writes come by mappings alone: so every one is seen. */
	if (file->f_flags & O_DIRECT)
		return -EINVAL;
	gf = kzalloc(sizeof(*gf), GFP_KERNEL_ACCOUNT);
	if (!gf)
		return -ENOMEM;
	/* Only the first and the last are orders: nobody else who comes or goes waits for one. */
	if (!atomic_inc_not_zero(&gi->opens)) {
		int ret = gyges_begin_order(gi);

		if (ret) {
			kfree(gf);
			return ret;
		}
		atomic_inc(&gi->opens);
		gyges_end_order(gi);
	}
	file->private_data = gf;
	return 0;
}

static int gyges_release(struct inode *inode, struct file *file)
{
	struct gyges_inode *gi = gyges_i(inode);

	if (atomic_dec_and_mutex_lock(&gi->opens, &gi->ctl)) {
		gyges_export_end(gi);
		gyges_import_orphan(gi);
		gyges_dirty_stop(gi);
		mutex_unlock(&gi->ctl);
	}
	kfree(file->private_data);
	return 0;
}

static int gyges_mmap(struct file *file, struct vm_area_struct *vma)
{
	file_accessed(file);
	vma->vm_ops = &gyges_vm_ops;
	return 0;
}

static __poll_t gyges_poll(struct file *file, poll_table *table)
{
	struct gyges_inode *gi = inode_of(file);
	struct gyges_file *gf = file->private_data;

	poll_wait(file, &gi->wait, table);
	return atomic64_read(&gi->seq) != atomic64_read(&gf->seen) ? EPOLLIN | EPOLLRDNORM : 0;
}

/* ---- holes ---- */

static loff_t seek_extent(struct file *file, loff_t offset, int whence)
{
	struct gyges_inode *gi = inode_of(file);
	struct inode *inode = &gi->vfs_inode;
	loff_t size = i_size_read(inode);
	pgoff_t from = offset >> PAGE_SHIFT, end = size >> PAGE_SHIFT, found;
	loff_t at;

	if (offset < 0 || offset >= size)
		return -ENXIO;
	found = whence == SEEK_DATA ? find_next_bit(gi->present, end, from) : find_next_zero_bit(gi->present, end, from);
	if (whence == SEEK_DATA && found == end)
		return -ENXIO;
	at = max_t(loff_t, (loff_t)found << PAGE_SHIFT, offset);
	return vfs_setpos(file, min(at, size), inode->i_sb->s_maxbytes);
}

static loff_t gyges_llseek(struct file *file, loff_t offset, int whence)
{
	loff_t ret;

	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return generic_file_llseek(file, offset, whence);
	/* Against a change of size. */
	inode_lock(file_inode(file));
	ret = seek_extent(file, offset, whence);
	inode_unlock(file_inode(file));
	return ret;
}

/* A guest that gives memory back. Not while somebody else's view of the file depends on its pages. */
static int punch(struct gyges_inode *gi, loff_t offset, loff_t len)
{
	struct address_space *mapping = gi->vfs_inode.i_mapping;
	loff_t size = i_size_read(&gi->vfs_inode);

	lockdep_assert_held(&gi->ctl);
	if (gi->export || (gi->import && gi->import->phase != GYGES_PHASE_COMPLETE))
		return -EBUSY;
	if (offset >= size)
		return 0;
	len = min(len, size - offset);
	filemap_invalidate_lock(mapping);
	truncate_pagecache_range(&gi->vfs_inode, offset, offset + len - 1);
	bitmap_clear(gi->present, offset >> PAGE_SHIFT, len >> PAGE_SHIFT);
	filemap_invalidate_unlock(mapping);
	/* Its content has changed: to zeros. */
	gyges_dirty_mark(gi, offset >> PAGE_SHIFT, len >> PAGE_SHIFT);
	return 0;
}

static long gyges_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct gyges_inode *gi = inode_of(file);
	long ret;

	if (mode != (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE))
		return -EOPNOTSUPP;
	if (!IS_ALIGNED(offset | len, PAGE_SIZE))
		return -EINVAL;
	ret = gyges_begin_order(gi);
	if (ret)
		return ret;
	ret = punch(gi, offset, len);
	gyges_end_order(gi);
	return ret;
}

/* ---- what ioctls take ---- */

static bool all_zero(const void *data, size_t bytes)
{
	return !memchr_inv(data, 0, bytes);
}

/* Room for the words of a bitmap over the file. */
static unsigned long *bitmap_room(const struct gyges_inode *gi, const struct gyges_bitmap *arg)
{
	if (arg->flags || arg->reserved || arg->words != DIV_ROUND_UP(gyges_pages(gi), 64) || !arg->words)
		return ERR_PTR(-EINVAL);
	return kvcalloc(arg->words, sizeof(u64), GFP_KERNEL_ACCOUNT | __GFP_NOWARN) ?: ERR_PTR(-ENOMEM);
}

static unsigned long *bitmap_take(const struct gyges_inode *gi, const struct gyges_bitmap *arg)
{
	pgoff_t pages = gyges_pages(gi);
	unsigned long *bits = bitmap_room(gi, arg);

	BUILD_BUG_ON(BITS_PER_LONG != 64);
	if (IS_ERR(bits))
		return bits;
	if (copy_from_user(bits, u64_to_user_ptr(arg->words_ptr), arg->words * sizeof(u64))) {
		kvfree(bits);
		return ERR_PTR(-EFAULT);
	}
	if (find_next_bit(bits, arg->words * 64, pages) < arg->words * 64) {
		kvfree(bits);
		return ERR_PTR(-EINVAL);
	}
	return bits;
}

/* ---- looking ---- */

static long ioc_version(void __user *arg)
{
	struct gyges_version version = { .abi = GYGES_ABI_VERSION, .page_bytes = PAGE_SIZE };

	return copy_to_user(arg, &version, sizeof(version)) ? -EFAULT : 0;
}

static void fill_import_state(const struct gyges_import *imp, struct gyges_state *state)
{
	state->phase = READ_ONCE(imp->phase);
	if (READ_ONCE(imp->link_up))
		state->flags |= GYGES_LINK_UP;
	if (READ_ONCE(imp->round_active))
		state->flags |= GYGES_ROUND_ACTIVE;
	state->rounds_done = READ_ONCE(imp->rounds_done);
	state->missing_pages = atomic64_read(&imp->n_missing);
	state->links_lost = READ_ONCE(imp->links_lost);
	state->link_error = READ_ONCE(imp->link_error);
}

static long ioc_state(struct file *file, void __user *arg)
{
	struct gyges_inode *gi = inode_of(file);
	struct gyges_file *gf = file->private_data;
	struct gyges_state state = { .seq = atomic64_read(&gi->seq) };
	int ret = gyges_begin_order(gi);

	if (ret)
		return ret;
	if (gi->import)
		fill_import_state(gi->import, &state);
	if (gi->export)
		state.flags |= GYGES_EXPORTING;
	if (gyges_export_is_read(gi))
		state.flags |= GYGES_EXPORT_READ;
	if (gyges_is_tracking(gi))
		state.flags |= GYGES_TRACKING;
	state.connections = gyges_export_connections(gi);
	gyges_end_order(gi);
	if (copy_to_user(arg, &state, sizeof(state)))
		return -EFAULT;
	atomic64_set(&gf->seen, state.seq);
	return 0;
}

static long ioc_stats(struct gyges_inode *gi, void __user *arg)
{
	struct gyges_stats *stats = kvmalloc(sizeof(*stats), GFP_KERNEL);
	long ret;

	if (!stats)
		return -ENOMEM;
	ret = gyges_begin_order(gi);
	if (!ret) {
		gyges_stats_fill(gi, stats);
		gyges_end_order(gi);
		ret = copy_to_user(arg, stats, sizeof(*stats)) ? -EFAULT : 0;
	}
	kvfree(stats);
	return ret;
}

static s64 present(struct gyges_inode *gi, unsigned long *bits)
{
	pgoff_t pages = gyges_pages(gi);

	lockdep_assert_held(&gi->ctl);
	bitmap_copy(bits, gi->present, pages);
	return bitmap_weight(bits, pages);
}

/* What fills a bitmap for its caller. */
typedef s64 bitmap_fn(struct gyges_inode *gi, unsigned long *bits);

/* Marks again what a round took. Not if the file has another size by now: it began anew then. */
static void give_back(struct gyges_inode *gi, const unsigned long *bits, u64 words)
{
	pgoff_t page, pages;

	mutex_lock(&gi->ctl);
	pages = gyges_pages(gi);
	if (words == DIV_ROUND_UP(pages, 64))
		for_each_set_bit(page, bits, pages)
			gyges_dirty_mark(gi, page, 1);
	mutex_unlock(&gi->ctl);
}

static long ioc_bitmap(struct gyges_inode *gi, struct gyges_bitmap __user *arg, bitmap_fn *fill)
{
	struct gyges_bitmap bitmap;
	unsigned long *bits;
	s64 n;

	if (copy_from_user(&bitmap, arg, sizeof(bitmap)))
		return -EFAULT;
	n = gyges_begin_order(gi);
	if (n)
		return n;
	bits = bitmap_room(gi, &bitmap);
	n = IS_ERR(bits) ? PTR_ERR(bits) : fill(gi, bits);
	gyges_end_order(gi);
	if (IS_ERR(bits))
		return n;
	bitmap.pages = n;
	if (n >= 0)
		n = copy_to_user(u64_to_user_ptr(bitmap.words_ptr), bits, bitmap.words * sizeof(u64)) ||
		    copy_to_user(arg, &bitmap, sizeof(bitmap)) ? -EFAULT : 0;
	/* A round that its caller never saw must not be the last that knows of these pages. */
	if (n < 0 && fill == gyges_dirty_round && !(gyges_inject & GYGES_INJECT_KEEP_ROUND))
		give_back(gi, bits, bitmap.words);
	kvfree(bits);
	return n;
}

/* ---- export and import ---- */

static long ioc_endpoint(struct gyges_inode *gi, struct gyges_endpoint __user *arg, bool import)
{
	struct gyges_endpoint endpoint;
	long ret;

	if (!capable(CAP_NET_ADMIN))
		return -EPERM;
	if (copy_from_user(&endpoint, arg, sizeof(endpoint)))
		return -EFAULT;
	if (endpoint.flags & ~(import ? GYGES_IMPORT_OVERWRITE : 0) || endpoint.reserved[0] || endpoint.reserved[1] ||
	    endpoint.reserved[2] || !endpoint.timeout_ms != !import || endpoint.timeout_ms > 600000)
		return -EINVAL;
	ret = gyges_begin_order(gi);
	if (!ret) {
		ret = import ? gyges_import_connect(gi, &endpoint) : gyges_export_listen(gi, &endpoint);
		gyges_end_order(gi);
	}
	memzero_explicit(endpoint.token, sizeof(endpoint.token));
	if (!ret && !import && copy_to_user(arg->addr, endpoint.addr, sizeof(endpoint.addr)))
		return -EFAULT;
	return ret;
}

static long regions_read_header(struct gyges_regions *regions, const void __user *arg)
{
	if (copy_from_user(regions, arg, sizeof(*regions)))
		return -EFAULT;
	return regions->flags || regions->reserved ? -EINVAL : 0;
}

static long ioc_export_regions(struct gyges_inode *gi, struct gyges_regions __user *arg)
{
	struct gyges_regions regions;
	struct gyges_region *list;
	u32 capacity;
	long ret;

	ret = regions_read_header(&regions, arg);
	if (ret)
		return ret;
	/* A piece has at least one page. */
	capacity = min_t(u64, regions.capacity, gyges_pages(gi));
	list = kvcalloc(capacity ?: 1, sizeof(*list), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!list)
		return -ENOMEM;
	ret = gyges_begin_order(gi);
	if (!ret) {
		ret = gyges_export_regions(gi, list, capacity, &regions.count, &regions.changed);
		gyges_end_order(gi);
	}
	if (!ret && (copy_to_user(u64_to_user_ptr(regions.regions_ptr), list,
				  min(capacity, regions.count) * sizeof(*list)) ||
		     copy_to_user(arg, &regions, sizeof(regions))))
		ret = -EFAULT;
	kvfree(list);
	return ret;
}

static long ioc_import_regions(struct gyges_inode *gi, const void __user *arg)
{
	struct gyges_regions regions;
	struct gyges_table *table;
	long ret;

	ret = regions_read_header(&regions, arg);
	if (ret)
		return ret;
	if (regions.count || regions.changed || regions.capacity > gyges_pages(gi))
		return -EINVAL;
	table = kvzalloc(struct_size(table, region, regions.capacity), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!table)
		return -ENOMEM;
	table->count = regions.capacity;
	ret = -EFAULT;
	if (!copy_from_user(table->region, u64_to_user_ptr(regions.regions_ptr),
			    table->count * sizeof(table->region[0]))) {
		ret = gyges_begin_order(gi);
		if (!ret) {
			ret = gyges_import_regions(gi, table);
			gyges_end_order(gi);
		}
	}
	if (ret)
		kvfree(table);
	return ret;
}

/* ROUND and DISCARD: a set of pages in, the pages that are missing out. */
static long ioc_want(struct gyges_inode *gi, struct gyges_bitmap *bitmap, const u32 *deadline_ms)
{
	unsigned long *set;
	long ret;

	ret = gyges_begin_order(gi);
	if (ret)
		return ret;
	set = bitmap_take(gi, bitmap);
	if (IS_ERR(set)) {
		ret = PTR_ERR(set);
	} else {
		ret = deadline_ms ? gyges_import_round(gi, set, *deadline_ms) : gyges_import_discard(gi, set);
		if (!ret)
			bitmap->pages = atomic64_read(&gi->import->n_missing);
		kvfree(set);
	}
	gyges_end_order(gi);
	return ret;
}

static long ioc_round(struct gyges_inode *gi, struct gyges_round __user *arg)
{
	struct gyges_round round;
	long ret;

	if (copy_from_user(&round, arg, sizeof(round)))
		return -EFAULT;
	if (!all_zero(round.reserved, sizeof(round.reserved)))
		return -EINVAL;
	ret = ioc_want(gi, &round.set, &round.deadline_ms);
	return !ret && copy_to_user(arg, &round, sizeof(round)) ? -EFAULT : ret;
}

static long ioc_discard(struct gyges_inode *gi, struct gyges_bitmap __user *arg)
{
	struct gyges_bitmap bitmap;
	long ret;

	if (copy_from_user(&bitmap, arg, sizeof(bitmap)))
		return -EFAULT;
	ret = ioc_want(gi, &bitmap, NULL);
	return !ret && copy_to_user(arg, &bitmap, sizeof(bitmap)) ? -EFAULT : ret;
}

static long ioc_prefetch(struct gyges_inode *gi, const void __user *arg)
{
	struct gyges_prefetch config;
	long ret;

	if (copy_from_user(&config, arg, sizeof(config)))
		return -EFAULT;
	if (config.flags & ~GYGES_PREFETCH_OFF || config.reserved || config.batch_pages > GYGES_BATCH_MAX)
		return -EINVAL;
	ret = gyges_begin_order(gi);
	if (ret)
		return ret;
	ret = gyges_import_configure(gi, &config);
	gyges_end_order(gi);
	return ret;
}

static int stop_tracking(struct gyges_inode *gi)
{
	if (!gyges_is_tracking(gi))
		return -EINVAL;
	gyges_dirty_stop(gi);
	return 0;
}

static int end_export(struct gyges_inode *gi)
{
	if (!gi->export)
		return -EINVAL;
	gyges_export_end(gi);
	return 0;
}

/* Those that take nothing. */
static long ioc_order(struct gyges_inode *gi, int (*order)(struct gyges_inode *gi))
{
	long ret;

	ret = gyges_begin_order(gi);
	if (ret)
		return ret;
	ret = order(gi);
	gyges_end_order(gi);
	return ret;
}

static long ioc_change(struct gyges_inode *gi, unsigned int cmd, void __user *arg)
{
	switch (cmd) {
	case GYGES_IOC_PRESENT:
		return ioc_bitmap(gi, arg, present);
	case GYGES_IOC_DIRTY_START:
		return ioc_order(gi, gyges_dirty_start);
	case GYGES_IOC_DIRTY_ROUND:
		return ioc_bitmap(gi, arg, gyges_dirty_round);
	case GYGES_IOC_DIRTY_STOP:
		return ioc_order(gi, stop_tracking);
	case GYGES_IOC_EXPORT:
		return ioc_endpoint(gi, arg, false);
	case GYGES_IOC_EXPORT_REGIONS:
		return ioc_export_regions(gi, arg);
	case GYGES_IOC_EXPORT_END:
		return ioc_order(gi, end_export);
	case GYGES_IOC_IMPORT:
		return ioc_endpoint(gi, arg, true);
	case GYGES_IOC_IMPORT_REGIONS:
		return ioc_import_regions(gi, arg);
	case GYGES_IOC_IMPORT_ROUND:
		return ioc_round(gi, arg);
	case GYGES_IOC_IMPORT_END_ROUND:
		return ioc_order(gi, gyges_import_end_round);
	case GYGES_IOC_IMPORT_DISCARD:
		return ioc_discard(gi, arg);
	case GYGES_IOC_IMPORT_ARM:
		return ioc_order(gi, gyges_import_arm);
	case GYGES_IOC_IMPORT_RUN:
		return ioc_order(gi, gyges_import_run);
	case GYGES_IOC_IMPORT_DROP:
		return ioc_order(gi, gyges_import_drop);
	case GYGES_IOC_IMPORT_ABANDON:
		return ioc_order(gi, gyges_import_abandon);
	case GYGES_IOC_IMPORT_END:
		return ioc_order(gi, gyges_import_end);
	case GYGES_IOC_PREFETCH:
		return ioc_prefetch(gi, arg);
	}
	return -ENOTTY;
}

static long gyges_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct gyges_inode *gi = inode_of(file);
	void __user *user = (void __user *)arg;

	switch (cmd) {
	case GYGES_IOC_VERSION:
		return ioc_version(user);
	case GYGES_IOC_STATE:
		return ioc_state(file, user);
	case GYGES_IOC_STATS:
		return ioc_stats(gi, user);
	}
	if (_IOC_TYPE(cmd) != 'g')
		return -ENOTTY;
	return file->f_mode & FMODE_WRITE ? ioc_change(gi, cmd, user) : -EBADF;
}

const struct file_operations gyges_fops = {
	.owner = THIS_MODULE,
	.open = gyges_open,
	.release = gyges_release,
	.mmap = gyges_mmap,
	.read_iter = gyges_read_iter,
	.llseek = gyges_llseek,
	.fallocate = gyges_fallocate,
	.fsync = noop_fsync,
	.poll = gyges_poll,
	.unlocked_ioctl = gyges_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

const struct address_space_operations gyges_aops = {
	.dirty_folio = gyges_dirty_folio,
};
