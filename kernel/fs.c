// SPDX-License-Identifier: GPL-2.0
/*
 * fs.c - gygesfs: a flat directory of RAM files.
 *
 * A file's size is charged to the mount when it is set, not when pages are touched: a guest that was given its RAM
 * never dies of a full mount. The pages themselves are charged to the memory cgroup of who made the file.
 */
#include <linux/ctype.h>
#include <linux/fs_context.h>
#include <linux/fs_parser.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/statfs.h>
#include <linux/overflow.h>

#include "gyges_internal.h"

static struct kmem_cache *gyges_inode_cache;

/* ---- size of files ---- */

static int charge_size(struct gyges_sb *sbi, s64 from, s64 to)
{
	s64 limit = sbi->max_bytes >= 0 ? sbi->max_bytes : S64_MAX;
	int ret = 0;

	spin_lock(&sbi->lock);
	if (to > from && to - from > limit - sbi->used_bytes)
		ret = -ENOSPC;
	else
		sbi->used_bytes += to - from;
	spin_unlock(&sbi->lock);
	return ret;
}

static bool is_idle(struct gyges_inode *gi)
{
	struct gyges_import *imp = gi->import;

	lockdep_assert_held(&gi->ctl);
	if (imp && imp->phase != GYGES_PHASE_COMPLETE && imp->phase != GYGES_PHASE_ABANDONED)
		return false;
	return !gi->export && !gyges_is_tracking(gi) && !mapping_mapped(gi->vfs_inode.i_mapping);
}

/* Gives an idle file another size, and bitmaps of that size. */
static int set_size_locked(struct gyges_inode *gi, loff_t size)
{
	pgoff_t pages = size >> PAGE_SHIFT, kept = min(pages, gyges_pages(gi));
	struct inode *inode = &gi->vfs_inode;
	unsigned long *present;

	present = kvcalloc(BITS_TO_LONGS(pages), sizeof(long), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!present)
		return -ENOMEM;
	gyges_import_free(gi);
	kvfree(gi->exported);
	gi->exported = NULL;
	filemap_invalidate_lock(inode->i_mapping);
	truncate_setsize(inode, size);
	if (kept)
		bitmap_copy_clear_tail(present, gi->present, kept);
	swap(gi->present, present);
	filemap_invalidate_unlock(inode->i_mapping);
	kvfree(present);
	return 0;
}

static int set_size(struct gyges_inode *gi, loff_t size)
{
	struct gyges_sb *sbi = gyges_s(gi->vfs_inode.i_sb);
	loff_t old = i_size_read(&gi->vfs_inode);
	int ret;

	if (!IS_ALIGNED(size, PAGE_SIZE))
		return -EINVAL;
	ret = gyges_begin_order(gi);
	if (ret)
		return ret;
	ret = is_idle(gi) ? 0 : -EBUSY;
	if (!ret)
		ret = charge_size(sbi, old, size);
	if (!ret) {
		ret = set_size_locked(gi, size);
		if (ret)
			charge_size(sbi, size, old);
	}
	gyges_end_order(gi);
	return ret;
}

static int gyges_setattr(gyges_idmap *idmap, struct dentry *dentry, struct iattr *attr)
{
	struct inode *inode = d_inode(dentry);
	int ret;

	ret = setattr_prepare(idmap, dentry, attr);
	if (ret)
		return ret;
	if (attr->ia_valid & ATTR_SIZE && attr->ia_size != i_size_read(inode)) {
		ret = set_size(gyges_i(inode), attr->ia_size);
		if (ret)
			return ret;
	}
	setattr_copy(idmap, inode, attr);
	return 0;
}

static int gyges_getattr(gyges_idmap *idmap, const struct path *path, struct kstat *stat, u32 mask,
			 unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);

	gyges_fillattr(idmap, mask, inode, stat);
	stat->blocks = (u64)inode->i_mapping->nrpages << (PAGE_SHIFT - 9);
	return 0;
}

const struct inode_operations gyges_file_iops = {
	.setattr = gyges_setattr,
	.getattr = gyges_getattr,
};

/* ---- inodes ---- */

static void init_once(void *arg)
{
	struct gyges_inode *gi = arg;

	inode_init_once(&gi->vfs_inode);
}

static struct inode *gyges_alloc_inode(struct super_block *sb)
{
	struct gyges_inode *gi = alloc_inode_sb(sb, gyges_inode_cache, GFP_KERNEL);

	if (!gi)
		return NULL;
	mutex_init(&gi->ctl);
	init_waitqueue_head(&gi->wait);
	atomic64_set(&gi->seq, 1);
	atomic_set(&gi->opens, 0);
	gi->memcg = NULL;
	gi->import = NULL;
	gi->export = NULL;
	RCU_INIT_POINTER(gi->dirty, NULL);
	gi->present = NULL;
	gi->exported = NULL;
	gi->measures = NULL;
	return &gi->vfs_inode;
}

static void gyges_free_inode(struct inode *inode)
{
	kmem_cache_free(gyges_inode_cache, gyges_i(inode));
}

/* Nobody has it open or mapped: import and export ended with its last close, which left at most their remains. */
static void gyges_evict_inode(struct inode *inode)
{
	struct gyges_inode *gi = gyges_i(inode);

	mutex_lock(&gi->ctl);
	gyges_import_free(gi);
	gyges_dirty_stop(gi);
	mutex_unlock(&gi->ctl);
	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	if (S_ISREG(inode->i_mode))
		charge_size(gyges_s(inode->i_sb), i_size_read(inode), 0);
	kvfree(gi->present);
	kvfree(gi->exported);
	kvfree(gi->measures);
	mem_cgroup_put(gi->memcg);
}

static struct inode *make_inode(struct super_block *sb, struct inode *dir, umode_t mode);

static int gyges_create(gyges_idmap *idmap, struct inode *dir, struct dentry *dentry, umode_t mode, bool excl)
{
	struct inode *inode = make_inode(dir->i_sb, dir, (mode & ~S_IFMT) | S_IFREG);

	if (!inode)
		return -ENOMEM;
	d_instantiate(dentry, inode);
	/* Pinned until it is unlinked: there is nothing to read it from again. */
	dget(dentry);
	return 0;
}

static const struct inode_operations gyges_dir_iops = {
	.create = gyges_create,
	.lookup = simple_lookup,
	.link = simple_link,
	.unlink = simple_unlink,
};

static void init_file(struct gyges_inode *gi)
{
	struct inode *inode = &gi->vfs_inode;

	inode->i_op = &gyges_file_iops;
	inode->i_fop = &gyges_fops;
	inode->i_mapping->a_ops = &gyges_aops;
	mapping_set_gfp_mask(inode->i_mapping, GFP_HIGHUSER);
	mapping_set_unevictable(inode->i_mapping);
	gi->memcg = get_mem_cgroup_from_mm(current->mm);
}

static struct inode *make_inode(struct super_block *sb, struct inode *dir, umode_t mode)
{
	struct inode *inode = new_inode(sb);

	if (!inode)
		return NULL;
	inode->i_ino = get_next_ino();
	inode_init_owner(GYGES_NO_IDMAP, inode, dir, mode);
	gyges_init_times(inode);
	if (S_ISDIR(mode)) {
		inode->i_op = &gyges_dir_iops;
		inode->i_fop = &simple_dir_operations;
		inc_nlink(inode);
	} else {
		init_file(gyges_i(inode));
	}
	return inode;
}

/* ---- mounts ---- */

static int gyges_statfs(struct dentry *dentry, struct kstatfs *buf)
{
	struct gyges_sb *sbi = gyges_s(dentry->d_sb);

	buf->f_type = GYGES_MAGIC;
	buf->f_bsize = PAGE_SIZE;
	buf->f_namelen = NAME_MAX;
	spin_lock(&sbi->lock);
	if (sbi->max_bytes >= 0) {
		buf->f_blocks = sbi->max_bytes >> PAGE_SHIFT;
		buf->f_bfree = (sbi->max_bytes - sbi->used_bytes) >> PAGE_SHIFT;
		buf->f_bavail = buf->f_bfree;
	}
	spin_unlock(&sbi->lock);
	return 0;
}

static int gyges_show_options(struct seq_file *m, struct dentry *root)
{
	struct gyges_sb *sbi = gyges_s(root->d_sb);

	seq_printf(m, ",uid=%u,gid=%u,mode=%o", from_kuid_munged(&init_user_ns, sbi->uid),
		   from_kgid_munged(&init_user_ns, sbi->gid), sbi->mode);
	if (sbi->max_bytes >= 0)
		seq_printf(m, ",size=%lld", sbi->max_bytes);
	return 0;
}

static const struct super_operations gyges_sops = {
	.alloc_inode = gyges_alloc_inode,
	.free_inode = gyges_free_inode,
	.evict_inode = gyges_evict_inode,
	.statfs = gyges_statfs,
	.show_options = gyges_show_options,
	.drop_inode = generic_delete_inode,
};

enum { OPT_UID, OPT_GID, OPT_MODE, OPT_SIZE };

static const struct fs_parameter_spec gyges_parameters[] = {
	fsparam_u32("uid", OPT_UID),
	fsparam_u32("gid", OPT_GID),
	fsparam_u32oct("mode", OPT_MODE),
	fsparam_string("size", OPT_SIZE),
	{}
};

/* Digits, and K, M, G, T, P or E; *@text is what follows. memparse() would let 16E be 0. False: more than 64 bits. */
static bool read_bytes(const char **text, u64 *bytes)
{
	static const char units[] = "KMGTPE";
	const char *unit;

	for (*bytes = 0; isdigit(**text); (*text)++) {
		if (check_mul_overflow(*bytes, 10ULL, bytes) ||
		    check_add_overflow(*bytes, (u64)(**text - '0'), bytes))
			return false;
	}
	unit = **text ? strchr(units, toupper(**text)) : NULL;
	if (!unit)
		return true;
	(*text)++;
	return !check_shl_overflow(*bytes, 10 * (unit - units + 1), bytes);
}

/* As hugetlbfs reads it: a number with K, M, G, or a share of the host's memory with %. -EINVAL for anything else. */
static int parse_size(struct fs_context *fc, const char *text, s64 *bytes)
{
	const char *end = text;
	bool fits;
	u64 size;

	if (!isdigit(*text))
		return invalf(fc, "gygesfs: size=%s is no size", text);
	fits = read_bytes(&end, &size);
	if (fits && *end == '%') {
		if (size > 100)
			return invalf(fc, "gygesfs: size=%s is more than all memory", text);
		size = ((u64)totalram_pages() << PAGE_SHIFT) / 100 * size;
		end++;
	}
	if (!fits || size > MAX_LFS_FILESIZE)
		return invalf(fc, "gygesfs: size=%s is more than %llu bytes", text, (u64)MAX_LFS_FILESIZE);
	if (*end)
		return invalf(fc, "gygesfs: size=%s is no size", text);
	*bytes = round_down(size, PAGE_SIZE);
	return 0;
}

static int gyges_parse_param(struct fs_context *fc, struct fs_parameter *param)
{
	struct gyges_sb *sbi = fc->s_fs_info;
	struct fs_parse_result result;
	int opt = fs_parse(fc, gyges_parameters, param, &result);

	if (opt < 0)
		return opt;
	switch (opt) {
	case OPT_UID:
		sbi->uid = make_kuid(current_user_ns(), result.uint_32);
		return uid_valid(sbi->uid) ? 0 : invalf(fc, "gygesfs: no such uid %u", result.uint_32);
	case OPT_GID:
		sbi->gid = make_kgid(current_user_ns(), result.uint_32);
		return gid_valid(sbi->gid) ? 0 : invalf(fc, "gygesfs: no such gid %u", result.uint_32);
	case OPT_MODE:
		sbi->mode = result.uint_32 & 07777;
		return 0;
	case OPT_SIZE:
		return parse_size(fc, param->string, &sbi->max_bytes);
	}
	return -EINVAL;
}

static int gyges_fill_super(struct super_block *sb, struct fs_context *fc)
{
	struct gyges_sb *sbi = gyges_s(sb);
	struct inode *root;

	sb->s_maxbytes = MAX_LFS_FILESIZE;
	sb->s_blocksize = PAGE_SIZE;
	sb->s_blocksize_bits = PAGE_SHIFT;
	sb->s_magic = GYGES_MAGIC;
	sb->s_op = &gyges_sops;
	sb->s_time_gran = 1;
	root = make_inode(sb, NULL, S_IFDIR | sbi->mode);
	if (!root)
		return -ENOMEM;
	root->i_uid = sbi->uid;
	root->i_gid = sbi->gid;
	sb->s_root = d_make_root(root);
	return sb->s_root ? 0 : -ENOMEM;
}

static int gyges_get_tree(struct fs_context *fc)
{
	return get_tree_nodev(fc, gyges_fill_super);
}

static void gyges_free_fc(struct fs_context *fc)
{
	kfree(fc->s_fs_info);
}

static const struct fs_context_operations gyges_context_ops = {
	.parse_param = gyges_parse_param,
	.get_tree = gyges_get_tree,
	.free = gyges_free_fc,
};

static int gyges_init_fs_context(struct fs_context *fc)
{
	struct gyges_sb *sbi = kzalloc(sizeof(*sbi), GFP_KERNEL);

	if (!sbi)
		return -ENOMEM;
	spin_lock_init(&sbi->lock);
	sbi->uid = current_fsuid();
	sbi->gid = current_fsgid();
	sbi->mode = 0700;
	sbi->max_bytes = -1;
	fc->s_fs_info = sbi;
	fc->ops = &gyges_context_ops;
	return 0;
}

static void gyges_kill_sb(struct super_block *sb)
{
	struct gyges_sb *sbi = gyges_s(sb);

	kill_litter_super(sb);
	kfree(sbi);
}

static struct file_system_type gyges_fs_type = {
	.owner = THIS_MODULE,
	.name = "gygesfs",
	.init_fs_context = gyges_init_fs_context,
	.parameters = gyges_parameters,
	.kill_sb = gyges_kill_sb,
};

int gyges_fs_init(void)
{
	int ret;

	gyges_inode_cache = kmem_cache_create("gyges_inode", sizeof(struct gyges_inode), 0,
					      SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT, init_once);
	if (!gyges_inode_cache)
		return -ENOMEM;
	ret = register_filesystem(&gyges_fs_type);
	if (ret)
		kmem_cache_destroy(gyges_inode_cache);
	return ret;
}

void gyges_fs_exit(void)
{
	unregister_filesystem(&gyges_fs_type);
	/* Inodes are freed after a grace period. */
	rcu_barrier();
	kmem_cache_destroy(gyges_inode_cache);
}
