// SPDX-License-Identifier: GPL-2.0
/*
 * export.c - the source's side of a file: it listens for destinations that know the token, and has its pages registered
 * for them, which register.c does.
 */
#include <crypto/algapi.h>
#include <linux/nsproxy.h>
#include <linux/slab.h>
#include <rdma/ib_cm.h>

#include "gyges_export.h"

#define MAX_CONNECTIONS	20
#define SEND_DEPTH	4

struct gyges_export {
	struct gyges_inode *gi;
	struct rdma_cm_id *listener;
	u8 token[GYGES_TOKEN_BYTES];
	bool read;			/* a destination has every page */
	/* The connections: added by the listener's handler, taken off by their death; @lock is taken by both. */
	struct mutex lock;
	struct list_head conns;
	unsigned int n_conns;
	bool ending;
	struct gyges_pieces pieces;	/* under gi->ctl */
};

/* ---- connections ---- */

/* What a request asks to be; 0: it is none of ours. */
static int role_of(const struct gyges_export *exp, const struct rdma_conn_param *param)
{
	const struct gyges_cm_request *request = param->private_data;

	/* The CM pads private data with zeros to its own length. */
	if (!request || param->private_data_len < sizeof(*request))
		return 0;
	if (request->magic != cpu_to_le32(GYGES_CM_MAGIC) || request->version != cpu_to_le16(GYGES_CM_VERSION) ||
	    request->reserved)
		return 0;
	if (crypto_memneq(request->token, exp->token, sizeof(exp->token)))
		return 0;
	switch (le16_to_cpu(request->role)) {
	case GYGES_ROLE_DEMAND:
	case GYGES_ROLE_PREFETCH:
	case GYGES_ROLE_FAREWELL:
		return le16_to_cpu(request->role);
	}
	return 0;
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

	if (exp->pieces.pd && exp->pieces.pd->device != device)
		return -ENODEV;
	if (!exp->pieces.pd) {
		struct ib_pd *pd = ib_alloc_pd(device, 0);

		if (IS_ERR(pd))
			return PTR_ERR(pd);
		exp->pieces.pd = pd;
	}
	conn->cq = ib_alloc_cq(device, conn, SEND_DEPTH + 2, 0, IB_POLL_WORKQUEUE);
	if (IS_ERR(conn->cq)) {
		int ret = PTR_ERR(conn->cq);

		conn->cq = NULL;
		return ret;
	}
	attr.send_cq = conn->cq;
	attr.recv_cq = conn->cq;
	return rdma_create_qp(conn->id, exp->pieces.pd, &attr);
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

static int admit_locked(struct gyges_export *exp, struct rdma_cm_id *id, const struct rdma_conn_param *asked, int role)
{
	struct gyges_conn *conn;
	int ret;

	if (exp->ending || exp->n_conns >= MAX_CONNECTIONS)
		return -EUSERS;
	if (role == GYGES_ROLE_DEMAND)
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
	int role, ret;

	if (event->event != RDMA_CM_EVENT_CONNECT_REQUEST)
		return 0;
	role = role_of(exp, &event->param.conn);
	if (!role) {
		pr_debug("a connection was refused: it is not of Gyges, or does not know the token\n");
		ret = -EACCES;
	} else if (role == GYGES_ROLE_FAREWELL) {
		WRITE_ONCE(exp->read, true);
		gyges_changed(exp->gi);
		ret = -ESHUTDOWN;
	} else {
		mutex_lock(&exp->lock);
		ret = admit_locked(exp, id, &event->param.conn, role);
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

bool gyges_export_is_read(const struct gyges_inode *gi)
{
	lockdep_assert_held(&gi->ctl);
	return gi->export && READ_ONCE(gi->export->read);
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
	if (exp->listener)
		rdma_destroy_id(exp->listener);
	close_connections(exp);
	gyges_pieces_free(&exp->pieces);
	if (exp->pieces.pd)
		ib_dealloc_pd(exp->pieces.pd);
	kfree_sensitive(exp);
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
	mutex_init(&exp->lock);
	INIT_LIST_HEAD(&exp->conns);
	memcpy(exp->token, endpoint->token, sizeof(exp->token));
	ret = listen(exp, endpoint);
	if (!ret)
		ret = gyges_pieces_make(&exp->pieces, gi, &exp->listener->device->attrs);
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
		gyges_pieces_filled(&gi->export->pieces, page);
}

/* ---- regions ---- */

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

	for_each_set_bit(i, exp->pieces.stale, exp->pieces.n) {
		struct gyges_conn *conn;
		int ret = -ENOTCONN;

		/* The connection stays while the lock is held. */
		mutex_lock(&exp->lock);
		conn = live_conn_locked(exp);
		if (conn)
			ret = gyges_pieces_register(&exp->pieces, i, conn);
		mutex_unlock(&exp->lock);
		if (!ret)
			continue;
		if (ret < 0 || fatal_signal_pending(current)) {
			set_bit(i, exp->pieces.stale);
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
	int done;

	lockdep_assert_held(&gi->ctl);
	if (!exp)
		return -EINVAL;
	done = refresh(exp);
	if (done < 0)
		return done;
	gyges_count(gi, registered_pieces, done);
	*changed = done;
	*count = gyges_pieces_table(&exp->pieces, regions, capacity);
	return 0;
}
