// SPDX-License-Identifier: GPL-2.0
/*
 * page_sets.c - which pages of an import are here, which are to come, and which must go again.
 */
#include <linux/pagevec.h>
#include <linux/rcupdate.h>

#include "gyges_internal.h"

bool gyges_is_covered(const struct gyges_import *imp, const unsigned long *set)
{
	const struct gyges_table *table = imp->table;
	pgoff_t from = 0;
	u32 i;

	for (i = 0; table && i < table->count; i++) {
		pgoff_t first = table->region[i].first_page;

		if (first > from && find_next_bit(set, first, from) < first)
			return false;
		from = first + table->region[i].pages;
	}
	return find_next_bit(set, imp->pages, from) >= imp->pages;
}

void gyges_want(struct gyges_import *imp, const unsigned long *set)
{
	size_t i, longs = BITS_TO_LONGS(imp->pages);
	s64 more = 0;

	for (i = 0; i < longs; i++) {
		if (!set[i])
			continue;
		/* Atomic, as the waiting VM may write to some page, see gyges_import_overwritten(). */
		more += hweight_long(set[i] & ~(unsigned long)atomic_long_fetch_or(set[i],
								(atomic_long_t *)&imp->missing[i]));
		atomic_long_or(set[i], (atomic_long_t *)&imp->want[i]);
		atomic_long_andnot(set[i], (atomic_long_t *)&imp->received[i]);
	}
	atomic64_add(more, &imp->n_missing);
}

/* Takes out of the cache what @keep does not have. Exclusive invalidate_lock; nothing is under way. */
static s64 drop_pages_locked(struct gyges_import *imp, const unsigned long *keep)
{
	struct address_space *mapping = imp->gi->vfs_inode.i_mapping;
	struct folio_batch batch;
	pgoff_t next = 0;
	s64 dropped = 0;
	unsigned int i;

	folio_batch_init(&batch);
	while (filemap_get_folios(mapping, &next, imp->pages - 1, &batch)) {
		for (i = 0; i < folio_batch_count(&batch); i++) {
			struct folio *folio = batch.folios[i];

			if (test_bit(folio->index, keep))
				continue;
			folio_lock(folio);
			if (folio->mapping == mapping) {
				clear_bit(folio->index, imp->gi->present);
				gyges_remove_folio(mapping, folio);
				dropped++;
			}
			folio_unlock(folio);
		}
		folio_batch_release(&batch);
		cond_resched();
	}
	return dropped;
}

/* Looking at every page of a large guest takes long; counting them does not. */
s64 gyges_drop_unvouched_locked(struct gyges_import *imp)
{
	if (imp->gi->vfs_inode.i_mapping->nrpages == bitmap_weight(imp->received, imp->pages))
		return 0;
	return drop_pages_locked(imp, imp->received);
}

/* Looks at the pages of @set only: it is small against the file when it matters. */
s64 gyges_drop_set_locked(struct gyges_import *imp, const unsigned long *set)
{
	struct address_space *mapping = imp->gi->vfs_inode.i_mapping;
	pgoff_t page;
	s64 dropped = 0;

	if (!mapping->nrpages)
		return 0;
	for_each_set_bit(page, set, imp->pages) {
		struct folio *folio = gyges_get_folio(mapping, page);

		if (!folio)
			continue;
		folio_lock(folio);
		if (folio->mapping == mapping) {
			clear_bit(page, imp->gi->present);
			gyges_remove_folio(mapping, folio);
			dropped++;
		}
		folio_unlock(folio);
		folio_put(folio);
		cond_resched();
	}
	return dropped;
}

void gyges_import_overwritten(struct gyges_inode *gi, pgoff_t page)
{
	struct gyges_import *imp;

	rcu_read_lock();
	imp = READ_ONCE(gi->import);
	if (imp && READ_ONCE(imp->phase) == GYGES_PHASE_PRECOPY && test_and_clear_bit(page, imp->received)) {
		if (!test_and_set_bit(page, imp->missing))
			atomic64_inc(&imp->n_missing);
		set_bit(page, imp->want);
	}
	rcu_read_unlock();
}
