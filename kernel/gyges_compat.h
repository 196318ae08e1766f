/* SPDX-License-Identifier: GPL-2.0 */
/* gyges_compat.h - all that differs between the kernels that Gyges is built for: Debian's 6.1 and 6.12. */
#ifndef GYGES_COMPAT_H
#define GYGES_COMPAT_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/version.h>

/* 6.3: file operations are told of the mount's id map instead of its user namespace. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
#define gyges_idmap struct mnt_idmap
#define GYGES_NO_IDMAP (&nop_mnt_idmap)
#else
#define gyges_idmap struct user_namespace
#define GYGES_NO_IDMAP (&init_user_ns)
#endif

/* 6.4: a fault may hold the lock of its VMA alone. */
static inline void gyges_release_fault_lock(struct vm_fault *vmf)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	release_fault_lock(vmf);
#else
	mmap_read_unlock(vmf->vma->vm_mm);
#endif
}

/* 6.4: no folio is an error pointer, not NULL. Returns the folio with a reference, or NULL. */
static inline struct folio *gyges_get_folio(struct address_space *mapping, pgoff_t index)
{
	struct folio *folio = filemap_get_folio(mapping, index);

	return IS_ERR_OR_NULL(folio) ? NULL : folio;
}

/* 6.8: takes a folio. Unmaps a locked folio from everywhere and takes it out of the page cache. */
static inline void gyges_remove_folio(struct address_space *mapping, struct folio *folio)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	generic_error_remove_folio(mapping, folio);
#else
	generic_error_remove_page(mapping, &folio->page);
#endif
}

/* 6.6: exported as an inline function. Page tables that map a folio of one page. */
static inline int gyges_mapcount(struct folio *folio)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
	return folio_mapcount(folio);
#else
	return page_mapcount(folio_page(folio, 0));
#endif
}

/* 6.6: times of an inode are set by functions. */
static inline void gyges_init_times(struct inode *inode)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)
	simple_inode_init_ts(inode);
#else
	inode->i_atime = inode->i_mtime = inode->i_ctime = current_time(inode);
#endif
}

/* 6.6: attributes are asked for with a mask. */
static inline void gyges_fillattr(gyges_idmap *idmap, u32 mask, struct inode *inode, struct kstat *stat)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
	generic_fillattr(idmap, mask, inode, stat);
#else
	generic_fillattr(idmap, inode, stat);
#endif
}

#endif
