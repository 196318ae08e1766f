// SPDX-License-Identifier: GPL-2.0
/*
 * dirty.c - which pages were written since the last round.
 *
 * A bit is set before a page becomes writable, in page_mkwrite, and again whenever somebody marks the folio dirty. A
 * round takes the bit, write-protects the page, and gives the bit back if anybody still holds the page: direct I/O
 * writes without a page table, after the round as well as before it. So no round needs a guest whose I/O has stopped.
 *
 * Whoever marks holds no lock of the file's: direct I/O may end after its memory was unmapped, when tracking stops and
 * the file gets another size. So the marks are freed after a grace period, and know how many they are.
 */
#include <linux/pagevec.h>
#include <linux/rmap.h>
#include <linux/slab.h>

#include "gyges_internal.h"
#include "gyges_trace.h"

void gyges_dirty_mark(struct gyges_inode *gi, pgoff_t first, pgoff_t count)
{
	struct gyges_marks *marks;

	rcu_read_lock();
	marks = rcu_dereference(gi->dirty);
	for (; marks && count && first < marks->pages; count--)
		set_bit(first++, marks->bits);
	rcu_read_unlock();
}

/* NULL: nobody tracks. */
static struct gyges_marks *marks_of(const struct gyges_inode *gi)
{
	return rcu_dereference_protected(gi->dirty, lockdep_is_held(&gi->ctl));
}

/* Called for everything that was written without a page table, when it is let go, and for PTEs that were dirty. */
bool gyges_dirty_folio(struct address_space *mapping, struct folio *folio)
{
	gyges_dirty_mark(gyges_i(mapping->host), folio->index, 1);
	return noop_dirty_folio(mapping, folio);
}

/*
 * Whether anybody but the page cache, page tables, the export and this caller holds the locked folio. No new PTE
 * appears under the folio lock, but some may go while we count: what cannot be counted is held.
 */
static bool is_held(const struct gyges_inode *gi, struct folio *folio)
{
	bool exported = gi->exported && test_bit(folio->index, gi->exported);
	int before = gyges_mapcount(folio);
	int refs = folio_ref_count(folio);

	if (gyges_mapcount(folio) != before)
		return true;
	return refs > before + 2 + exported;
}

/* Write-protects one page. Whether it must stay dirty, because it can be written all the same. */
static bool protect(struct gyges_inode *gi, struct gyges_marks *marks, struct folio *folio)
{
	bool held;

	if (!(gyges_inject & GYGES_INJECT_SKIP_MKCLEAN))
		folio_mkclean(folio);
	/* In this order: a reference taken through a PTE is visible once that PTE is gone. */
	held = is_held(gi, folio) && !(gyges_inject & GYGES_INJECT_FORGET_PINNED);
	if (held)
		set_bit(folio->index, marks->bits);
	return held;
}

/* Takes the mark of one page and protects it. Whether it has to stay dirty. */
static bool clean_page(struct gyges_inode *gi, struct gyges_marks *marks, pgoff_t page)
{
	struct folio *folio = gyges_get_folio(gi->vfs_inode.i_mapping, page);
	bool held = false;

	if (!folio) {
		clear_bit(page, marks->bits);
		return false;
	}
	/* page_mkwrite holds this lock from the mark until the PTE is writable. */
	folio_lock(folio);
	clear_bit(page, marks->bits);
	if (folio->mapping == gi->vfs_inode.i_mapping)
		held = protect(gi, marks, folio);
	folio_unlock(folio);
	folio_put(folio);
	return held;
}

s64 gyges_dirty_round(struct gyges_inode *gi, unsigned long *bits)
{
	struct gyges_marks *marks = marks_of(gi);
	u64 start = ktime_get_ns();
	s64 n = 0, held = 0;
	pgoff_t page;

	if (!marks)
		return -EINVAL;
	for_each_set_bit(page, marks->bits, marks->pages) {
		__set_bit(page, bits);
		held += clean_page(gi, marks, page);
		n++;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	gyges_count(gi, pinned_pages, held);
	trace_gyges_dirty_round(gi->vfs_inode.i_ino, n, held, ktime_get_ns() - start);
	return n;
}

/* Everything that is writable now must fault before its next write is seen. */
static void protect_all(struct gyges_inode *gi, struct gyges_marks *marks)
{
	struct folio_batch batch;
	pgoff_t next = 0;
	unsigned int i;

	folio_batch_init(&batch);
	while (filemap_get_folios(gi->vfs_inode.i_mapping, &next, marks->pages - 1, &batch)) {
		for (i = 0; i < folio_batch_count(&batch); i++) {
			struct folio *folio = batch.folios[i];

			folio_lock(folio);
			if (folio->mapping == gi->vfs_inode.i_mapping)
				protect(gi, marks, folio);
			folio_unlock(folio);
		}
		folio_batch_release(&batch);
		cond_resched();
	}
}

int gyges_dirty_start(struct gyges_inode *gi)
{
	pgoff_t pages = gyges_pages(gi);
	struct gyges_marks *marks;
	int ret;

	if (marks_of(gi))
		return -EALREADY;
	if (!pages)
		return -EINVAL;
	ret = gyges_measures_make(gi);
	if (ret)
		return ret;
	marks = kvzalloc(struct_size(marks, bits, BITS_TO_LONGS(pages)), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!marks)
		return -ENOMEM;
	marks->pages = pages;
	/* From here on writes leave marks; then what is writable already is protected. */
	rcu_assign_pointer(gi->dirty, marks);
	protect_all(gi, marks);
	gyges_changed(gi);
	return 0;
}

void gyges_dirty_stop(struct gyges_inode *gi)
{
	struct gyges_marks *marks = marks_of(gi);

	if (!marks)
		return;
	RCU_INIT_POINTER(gi->dirty, NULL);
	kvfree_rcu(marks, rcu);
	gyges_changed(gi);
}
