// SPDX-License-Identifier: GPL-2.0
/*
 * export.c - the source's side of a file: its present pages, readable by a destination that knows the token.
 *
 * The file is registered in pieces of up to max_fast_reg_page_list_len pages, each by fast registration with a key of
 * its own; a hole inside of a piece shows the zero page, a piece of holes alone is not registered. When the guest fills
 * a hole its piece is noted, and the next EXPORT_REGIONS registers that piece again, under a new key: the caller sees
 * to it that nobody reads meanwhile. Pages are held as long as they are registered, so a punch is refused (EBUSY).
 *
 * Registration arithmetic: a registration is posted on the send queue of a connection as up to two requests, the
 * invalidation of the old key and the new one; one piece at a time, so a send queue of 4 does (one is for the drain).
 * Memory: 8 bytes a page for DMA addresses, and what the device needs for each piece.
 */
#include <crypto/algapi.h>
#include <linux/nsproxy.h>
#include <linux/pagevec.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <rdma/ib_cm.h>

#include "gyges_internal.h"

#define MAX_CONNECTIONS	20
#define SEND_DEPTH	4
#define REG_TIMEOUT	(10 * HZ)
#define PIECE_MAX	512

struct piece {
	struct ib_mr *mr;
	u64 *dma;			/* DMA address of each page, NULL: none of them is present */
	unsigned int mapped;		/* entries of dma that are in use */
	bool registered;
};

struct gyges_export {
	struct gyges_inode *gi;
	struct rdma_cm_id *listener;
	u8 token[GYGES_TOKEN_BYTES];
	pgoff_t pages;

	/* The connections: added by the listener's handler, taken off by their death; @lock is taken by both. */
	struct mutex lock;
	struct list_head conns;
	unsigned int n_conns;
	bool ending;
	struct ib_pd *pd;		/* made for the first connection */

	/* Under gi->ctl. */
	unsigned int piece_pages;
	unsigned int n_pieces;
	struct piece *piece;
	unsigned long *stale;		/* pieces that do not show the file as it is */
	struct scatterlist *sg;
};

/* ---- connections ---- */

static bool request_is_valid(const struct gyges_export *exp, const struct rdma_conn_param *param)
{
	const struct gyges_cm_request *request = param->private_data;

	/* The CM pads private data with zeros to its own length. */
	if (!request || param->private_data_len < sizeof(*request))
		return false;
	if (request->magic != cpu_to_le32(GYGES_CM_MAGIC) || request->version != cpu_to_le16(GYGES_CM_VERSION) ||
	    request->reserved)
		return false;
	if (request->role != cpu_to_le16(GYGES_ROLE_DEMAND) && request->role != cpu_to_le16(GYGES_ROLE_PREFETCH))
		return false;
	return !crypto_memneq(request->token, exp->token, sizeof(exp->token));
}

static void free_conn(struct gyges_conn *conn)
{
	rdma_disconnect(conn->id);
	ib_drain_qp(conn->id->qp);
	rdma_destroy_qp(conn->id);
	ib_free_cq(conn->cq);
	rdma_destroy_id(conn->id);
	kfree(conn);
}

static void unlist(struct gyges_export *exp, struct gyges_conn *conn)
{
	/* Not while a registration uses it. */
	mutex_lock(&exp->lock);
	list_del(&conn->node);
	exp->n_conns--;
	mutex_unlock(&exp->lock);
}

static void conn_death(struct work_struct *work)
{
	struct gyges_conn *conn = container_of(work, struct gyges_conn, death);
	struct gyges_export *exp = conn->owner;

	unlist(exp, conn);
	free_conn(conn);
	/* The end of the export waits for this work. */
	gyges_changed(exp->gi);
}

/* A connection dies once: whoever sets the mark sees to it. */
static bool begin_death(struct gyges_conn *conn)
{
	WRITE_ONCE(conn->up, false);
	return !test_and_set_bit(GYGES_CONN_DYING, &conn->flags);
}

static int handle_conn_event(struct rdma_cm_id *id, struct rdma_cm_event *event)
{
	struct gyges_conn *conn = id->context;
	struct gyges_export *exp = conn->owner;

	switch (event->event) {
	case RDMA_CM_EVENT_ESTABLISHED:
		WRITE_ONCE(conn->up, true);
		gyges_changed(exp->gi);
		return 0;
	case RDMA_CM_EVENT_TIMEWAIT_EXIT:
	case RDMA_CM_EVENT_ADDR_CHANGE:
		return 0;
	default:
		if (begin_death(conn))
			queue_work(gyges_queue, &conn->death);
		return 0;
	}
}

static int make_queue_pair(struct gyges_export *exp, struct gyges_conn *conn)
{
	struct ib_qp_init_attr attr = {
		.cap = {
			.max_send_wr = SEND_DEPTH,
			.max_recv_wr = 1,
			.max_send_sge = 1,
			.max_recv_sge = 1,
		},
		.qp_type = IB_QPT_RC,
		.sq_sig_type = IB_SIGNAL_ALL_WR,
	};
	struct ib_device *device = conn->id->device;

	if (exp->pd && exp->pd->device != device)
		return -ENODEV;
	if (!exp->pd) {
		struct ib_pd *pd = ib_alloc_pd(device, 0);

		if (IS_ERR(pd))
			return PTR_ERR(pd);
		exp->pd = pd;
	}
	conn->cq = ib_alloc_cq(device, conn, SEND_DEPTH + 2, 0, IB_POLL_WORKQUEUE);
	if (IS_ERR(conn->cq)) {
		int ret = PTR_ERR(conn->cq);

		conn->cq = NULL;
		return ret;
	}
	attr.send_cq = conn->cq;
	attr.recv_cq = conn->cq;
	return rdma_create_qp(conn->id, exp->pd, &attr);
}

static int accept(struct gyges_conn *conn, const struct rdma_conn_param *asked)
{
	const struct ib_device_attr *attrs = &conn->id->device->attrs;
	struct rdma_conn_param param = {
		.responder_resources = min_t(int, asked->responder_resources, attrs->max_qp_rd_atom),
		.initiator_depth = 1,
		.rnr_retry_count = 7,
	};

	return rdma_accept(conn->id, &param);
}

/*
 * A destination begins with its demand connection. One that begins anew has lost those that it had, and this end of
 * them may never notice: nothing is sent from here.
 */
static void replace_all_locked(struct gyges_export *exp)
{
	struct gyges_conn *conn;

	list_for_each_entry(conn, &exp->conns, node) {
		if (begin_death(conn))
			queue_work(gyges_queue, &conn->death);
	}
}

static int admit_locked(struct gyges_export *exp, struct rdma_cm_id *id, const struct rdma_conn_param *asked)
{
	const struct gyges_cm_request *request = asked->private_data;
	struct gyges_conn *conn;
	int ret;

	if (exp->ending || exp->n_conns >= MAX_CONNECTIONS)
		return -EUSERS;
	if (request->role == cpu_to_le16(GYGES_ROLE_DEMAND))
		replace_all_locked(exp);
	conn = kzalloc(sizeof(*conn), GFP_KERNEL);
	if (!conn)
		return -ENOMEM;
	conn->id = id;
	conn->owner = exp;
	INIT_LIST_HEAD(&conn->node);
	INIT_WORK(&conn->death, conn_death);
	id->context = conn;
	ret = make_queue_pair(exp, conn);
	if (!ret)
		ret = accept(conn, asked);
	if (ret) {
		/* The id goes with the refusal, see handle_listen_event(). */
		if (id->qp)
			rdma_destroy_qp(id);
		if (conn->cq)
			ib_free_cq(conn->cq);
		id->context = exp;
		kfree(conn);
		return ret;
	}
	list_add_tail(&conn->node, &exp->conns);
	exp->n_conns++;
	id->event_handler = handle_conn_event;
	return 0;
}

/* A refusal destroys the new id; to the listener itself it means nothing. */
static int handle_listen_event(struct rdma_cm_id *id, struct rdma_cm_event *event)
{
	struct gyges_export *exp = id->context;
	int ret;

	if (event->event != RDMA_CM_EVENT_CONNECT_REQUEST)
		return 0;
	if (!request_is_valid(exp, &event->param.conn)) {
		pr_debug("a connection was refused: it is not of Gyges, or does not know the token\n");
		ret = -EACCES;
	} else {
		mutex_lock(&exp->lock);
		ret = admit_locked(exp, id, &event->param.conn);
		mutex_unlock(&exp->lock);
	}
	if (ret)
		rdma_reject(id, NULL, 0, IB_CM_REJ_CONSUMER_DEFINED);
	return ret;
}

u32 gyges_export_connections(struct gyges_inode *gi)
{
	struct gyges_export *exp = gi->export;
	struct gyges_conn *conn;
	u32 n = 0;

	lockdep_assert_held(&gi->ctl);
	if (!exp)
		return 0;
	mutex_lock(&exp->lock);
	list_for_each_entry(conn, &exp->conns, node)
		n += READ_ONCE(conn->up);
	mutex_unlock(&exp->lock);
	return n;
}

/* ---- life ---- */

static int listen(struct gyges_export *exp, struct gyges_endpoint *endpoint)
{
	struct sockaddr_storage addr;
	struct rdma_cm_id *id;
	int ret;

	ret = gyges_addr_read(endpoint, &addr);
	if (ret)
		return ret;
	id = rdma_create_id(current->nsproxy->net_ns, handle_listen_event, exp, RDMA_PS_TCP, IB_QPT_RC);
	if (IS_ERR(id))
		return PTR_ERR(id);
	ret = rdma_bind_addr(id, (struct sockaddr *)&addr);
	/* Bound to a device's address; any address would be bound to none, and its rkeys belong to one. */
	if (!ret && !id->device)
		ret = -ENODEV;
	if (!ret)
		ret = rdma_listen(id, MAX_CONNECTIONS);
	if (ret) {
		rdma_destroy_id(id);
		return ret;
	}
	memcpy(endpoint->addr, &id->route.addr.src_addr, GYGES_ADDR_BYTES);
	exp->listener = id;
	return 0;
}

static void unmap_piece(struct gyges_export *exp, unsigned int index)
{
	struct piece *piece = &exp->piece[index];
	pgoff_t first = (pgoff_t)index * exp->piece_pages;
	unsigned int i;

	for (i = 0; i < piece->mapped; i++) {
		struct folio *folio;

		ib_dma_unmap_page(exp->pd->device, piece->dma[i], PAGE_SIZE, DMA_TO_DEVICE);
		if (!test_and_clear_bit(first + i, exp->gi->exported))
			continue;
		/* Held since it was mapped, so it is still the same. */
		folio = gyges_get_folio(exp->gi->vfs_inode.i_mapping, first + i);
		if (WARN_ON_ONCE(!folio))
			continue;
		folio_put(folio);
		folio_put(folio);
	}
	kvfree(piece->dma);
}

static void close_connections(struct gyges_export *exp)
{
	struct gyges_conn *conn, *next;
	LIST_HEAD(ours);

	mutex_lock(&exp->lock);
	exp->ending = true;
	list_for_each_entry_safe(conn, next, &exp->conns, node) {
		if (begin_death(conn)) {
			list_move(&conn->node, &ours);
			exp->n_conns--;
		}
	}
	mutex_unlock(&exp->lock);
	list_for_each_entry_safe(conn, next, &ours, node)
		free_conn(conn);
	/* And those that were dying already. */
	flush_workqueue(gyges_queue);
}

static void free_export(struct gyges_export *exp)
{
	unsigned int i;

	if (exp->listener)
		rdma_destroy_id(exp->listener);
	close_connections(exp);
	for (i = 0; exp->piece && i < exp->n_pieces; i++) {
		if (exp->piece[i].mr)
			ib_dereg_mr(exp->piece[i].mr);
		unmap_piece(exp, i);
	}
	if (exp->pd)
		ib_dealloc_pd(exp->pd);
	kvfree(exp->piece);
	kvfree(exp->sg);
	bitmap_free(exp->stale);
	kfree_sensitive(exp);
}

static int make_pieces(struct gyges_export *exp)
{
	const struct ib_device_attr *attrs = &exp->listener->device->attrs;

	if (!attrs->max_fast_reg_page_list_len || !(attrs->device_cap_flags & IB_DEVICE_MEM_MGT_EXTENSIONS))
		return -EOPNOTSUPP;
	exp->piece_pages = min_t(u32, attrs->max_fast_reg_page_list_len, PIECE_MAX);
	exp->n_pieces = DIV_ROUND_UP(exp->pages, exp->piece_pages);
	exp->piece = kvcalloc(exp->n_pieces, sizeof(*exp->piece), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	exp->sg = kvcalloc(exp->piece_pages, sizeof(*exp->sg), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	exp->stale = bitmap_alloc(exp->n_pieces, GFP_KERNEL_ACCOUNT);
	if (!exp->piece || !exp->sg || !exp->stale)
		return -ENOMEM;
	bitmap_fill(exp->stale, exp->n_pieces);
	return 0;
}

static int check_file(struct gyges_inode *gi)
{
	if (!gyges_pages(gi))
		return -EINVAL;
	/* A file that is still being imported does not have its pages to give. */
	if (gi->export || (gi->import && gi->import->phase != GYGES_PHASE_COMPLETE))
		return -EBUSY;
	if (gi->exported)
		return 0;
	gi->exported = kvcalloc(BITS_TO_LONGS(gyges_pages(gi)), sizeof(long), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	return gi->exported ? 0 : -ENOMEM;
}

static void attach(struct gyges_inode *gi, struct gyges_export *exp)
{
	filemap_invalidate_lock(gi->vfs_inode.i_mapping);
	WRITE_ONCE(gi->export, exp);
	filemap_invalidate_unlock(gi->vfs_inode.i_mapping);
	gyges_changed(gi);
}

int gyges_export_listen(struct gyges_inode *gi, struct gyges_endpoint *endpoint)
{
	struct gyges_export *exp;
	int ret;

	lockdep_assert_held(&gi->ctl);
	ret = check_file(gi);
	if (!ret)
		ret = gyges_measures_make(gi);
	if (ret)
		return ret;
	exp = kzalloc(sizeof(*exp), GFP_KERNEL_ACCOUNT);
	if (!exp)
		return -ENOMEM;
	exp->gi = gi;
	exp->pages = gyges_pages(gi);
	mutex_init(&exp->lock);
	INIT_LIST_HEAD(&exp->conns);
	memcpy(exp->token, endpoint->token, sizeof(exp->token));
	ret = listen(exp, endpoint);
	if (!ret)
		ret = make_pieces(exp);
	if (ret) {
		free_export(exp);
		return ret;
	}
	attach(gi, exp);
	return 0;
}

void gyges_export_end(struct gyges_inode *gi)
{
	struct gyges_export *exp = gi->export;

	lockdep_assert_held(&gi->ctl);
	if (!exp)
		return;
	attach(gi, NULL);
	free_export(exp);
}

void gyges_export_filled(struct gyges_inode *gi, pgoff_t page)
{
	if (gi->export)
		set_bit(page / gi->export->piece_pages, gi->export->stale);
}

/* ---- registration ---- */

struct wait_cqe {
	struct ib_cqe cqe;
	struct completion done;
	enum ib_wc_status status;
};

static void reg_done(struct ib_cq *cq, struct ib_wc *wc)
{
	struct wait_cqe *wait = container_of(wc->wr_cqe, struct wait_cqe, cqe);

	wait->status = wc->status;
	complete(&wait->done);
}

/* An invalidation that fails is followed by a registration that does: one report is enough. */
static void inv_done(struct ib_cq *cq, struct ib_wc *wc)
{
}

static struct ib_cqe inv_cqe = { .done = inv_done };

/* The page of entry @i as it is now, mapped; the reference on a present one stays as long as it is. 0 or -EIO. */
static int map_page(struct gyges_export *exp, struct piece *piece, unsigned int i, pgoff_t index)
{
	struct ib_device *device = exp->pd->device;
	struct folio *folio = gyges_get_folio(exp->gi->vfs_inode.i_mapping, index);
	struct page *page = folio ? folio_page(folio, 0) : ZERO_PAGE(0);
	u64 dma;

	/* A hole was mapped as the zero page before, and still is one. */
	if (!folio && i < piece->mapped)
		return 0;
	dma = ib_dma_map_page(device, page, 0, PAGE_SIZE, DMA_TO_DEVICE);
	if (ib_dma_mapping_error(device, dma)) {
		if (folio)
			folio_put(folio);
		return -EIO;
	}
	if (i < piece->mapped)
		ib_dma_unmap_page(device, piece->dma[i], PAGE_SIZE, DMA_TO_DEVICE);
	else
		piece->mapped = i + 1;
	piece->dma[i] = dma;
	if (folio)
		set_bit(index, exp->gi->exported);
	return 0;
}

static bool has_pages(struct gyges_export *exp, pgoff_t first, unsigned int n)
{
	struct folio_batch batch;
	bool found;

	folio_batch_init(&batch);
	found = filemap_get_folios(exp->gi->vfs_inode.i_mapping, &first, first + n - 1, &batch);
	folio_batch_release(&batch);
	return found;
}

/* Pages mapped, 0 for a piece of holes, or -errno. */
static int map_piece(struct gyges_export *exp, unsigned int index)
{
	struct piece *piece = &exp->piece[index];
	pgoff_t first = (pgoff_t)index * exp->piece_pages;
	unsigned int i, n = min_t(pgoff_t, exp->piece_pages, exp->pages - first);
	int ret;

	if (!has_pages(exp, first, n))
		return 0;
	if (!piece->dma)
		piece->dma = kvcalloc(n, sizeof(u64), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!piece->dma)
		return -ENOMEM;
	sg_init_table(exp->sg, n);
	for (i = 0; i < n; i++) {
		ret = test_bit(first + i, exp->gi->exported) ? 0 : map_page(exp, piece, i, first + i);
		if (ret)
			return ret;
		sg_dma_address(&exp->sg[i]) = piece->dma[i];
		sg_dma_len(&exp->sg[i]) = PAGE_SIZE;
	}
	return n;
}

static int post_registration(struct piece *piece, struct gyges_conn *conn)
{
	struct wait_cqe wait = { .cqe = { .done = reg_done } };
	struct ib_reg_wr reg = {
		.wr = { .opcode = IB_WR_REG_MR, .wr_cqe = &wait.cqe },
		.mr = piece->mr,
		.access = IB_ACCESS_REMOTE_READ,
	};
	struct ib_send_wr invalidate = {
		.opcode = IB_WR_LOCAL_INV,
		.wr_cqe = &inv_cqe,
		.next = &reg.wr,
		.ex.invalidate_rkey = piece->mr->rkey,
	};
	int ret;

	init_completion(&wait.done);
	/* A key is never used for two sets of pages. */
	ib_update_fast_reg_key(piece->mr, ib_inc_rkey(piece->mr->rkey));
	reg.key = piece->mr->rkey;
	ret = ib_post_send(conn->id->qp, piece->registered ? &invalidate : &reg.wr, NULL);
	if (ret)
		return ret;
	/* It completes, in error at the worst: the queue pair is drained before it goes. */
	wait_for_completion(&wait.done);
	return wait.status == IB_WC_SUCCESS ? 0 : -EIO;
}

static int register_piece(struct gyges_export *exp, unsigned int index, struct gyges_conn *conn)
{
	struct piece *piece = &exp->piece[index];
	int n, ret;

	/* Before the look at its pages: what is filled after it marks the piece again. */
	clear_bit(index, exp->stale);
	smp_mb__after_atomic();
	n = map_piece(exp, index);
	if (n <= 0)
		return n;
	if (!piece->mr) {
		struct ib_mr *mr = ib_alloc_mr(exp->pd, IB_MR_TYPE_MEM_REG, exp->piece_pages);

		if (IS_ERR(mr))
			return PTR_ERR(mr);
		piece->mr = mr;
	}
	ret = ib_map_mr_sg(piece->mr, exp->sg, n, NULL, PAGE_SIZE);
	if (ret != n)
		return ret < 0 ? ret : -EIO;
	ret = post_registration(piece, conn);
	piece->registered = !ret;
	return ret ? ret : 1;
}

static struct gyges_conn *live_conn_locked(struct gyges_export *exp)
{
	struct gyges_conn *conn;

	list_for_each_entry(conn, &exp->conns, node) {
		if (READ_ONCE(conn->up))
			return conn;
	}
	return NULL;
}

/* Pieces registered anew, or -errno. */
static int refresh(struct gyges_export *exp)
{
	unsigned int i;
	int done = 0;

	for_each_set_bit(i, exp->stale, exp->n_pieces) {
		struct gyges_conn *conn;
		int ret = -ENOTCONN;

		/* The connection stays while the lock is held. */
		mutex_lock(&exp->lock);
		conn = live_conn_locked(exp);
		if (conn)
			ret = register_piece(exp, i, conn);
		mutex_unlock(&exp->lock);
		if (!ret)
			continue;
		if (ret < 0 || fatal_signal_pending(current)) {
			set_bit(i, exp->stale);
			return ret < 0 ? ret : -EINTR;
		}
		done++;
		cond_resched();
	}
	return done;
}

int gyges_export_regions(struct gyges_inode *gi, struct gyges_region *regions, u32 capacity, u32 *count, u32 *changed)
{
	struct gyges_export *exp = gi->export;
	unsigned int i;
	int done;

	lockdep_assert_held(&gi->ctl);
	if (!exp)
		return -EINVAL;
	done = refresh(exp);
	if (done < 0)
		return done;
	gyges_count(gi, registered_pieces, done);
	*changed = done;
	*count = 0;
	for (i = 0; i < exp->n_pieces; i++) {
		const struct piece *piece = &exp->piece[i];

		if (!piece->registered)
			continue;
		if (*count < capacity)
			regions[*count] = (struct gyges_region){
				.first_page = (u64)i * exp->piece_pages,
				.remote_addr = piece->mr->iova,
				.pages = piece->mapped,
				.rkey = piece->mr->rkey,
			};
		(*count)++;
	}
	return 0;
}
