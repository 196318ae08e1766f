// SPDX-License-Identifier: GPL-2.0
/*
 * link.c - one RDMA connection, as the destination makes it: a reliable queue pair for READs.
 *
 * Queue arithmetic: @depth READs are posted at once, each signalled; one more entry is for the marker by which
 * ib_drain_qp() knows that all have completed. Nothing is ever received: one entry, as some devices want.
 *   send queue        depth + 1
 *   receive queue     1 (+ 1 for the drain of it)
 *   completion queue  depth + 3
 * READs beyond initiator_depth wait in the send queue, in order, which is why demand has a queue pair of its own.
 *
 * A dead link becomes an error after (retries + 1) * ack timeout, some four seconds; a shorter loss does not.
 */
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/slab.h>

#include "gyges_internal.h"

#define ACK_TIMEOUT	18		/* 4.096 us << 18: 1.07 s */
#define RETRIES		3
#define RNR_RETRIES	7		/* the source never runs out of receives: none are needed */

int gyges_addr_read(const struct gyges_endpoint *endpoint, struct sockaddr_storage *addr)
{
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)addr;

	BUILD_BUG_ON(sizeof(struct sockaddr_in6) != GYGES_ADDR_BYTES);
	memset(addr, 0, sizeof(*addr));
	memcpy(addr, endpoint->addr, GYGES_ADDR_BYTES);
	if (addr->ss_family == AF_INET6)
		return ipv6_addr_v4mapped(&in6->sin6_addr) ? -EAFNOSUPPORT : 0;
	return addr->ss_family == AF_INET ? 0 : -EAFNOSUPPORT;
}

int gyges_cm_error(const struct rdma_cm_event *event)
{
	switch (event->event) {
	case RDMA_CM_EVENT_ADDR_RESOLVED:
	case RDMA_CM_EVENT_ROUTE_RESOLVED:
	case RDMA_CM_EVENT_ESTABLISHED:
		return 0;
	case RDMA_CM_EVENT_ADDR_ERROR:
		return event->status == -ETIMEDOUT ? -ETIMEDOUT : -ENODEV;
	case RDMA_CM_EVENT_ROUTE_ERROR:
	case RDMA_CM_EVENT_UNREACHABLE:
		return event->status == -ETIMEDOUT ? -ETIMEDOUT : -ENETUNREACH;
	case RDMA_CM_EVENT_REJECTED:
		return -ECONNREFUSED;
	case RDMA_CM_EVENT_DISCONNECTED:
		return -ECONNRESET;
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		return -ENODEV;
	default:
		return -EPROTO;
	}
}

/* What the owner is told by; set by gyges_conn_dial() before the first event. */
struct dialled {
	struct gyges_conn conn;
	void (*lost)(void *owner);
};

/* Events of one connection come one at a time. */
static int handle_event(struct rdma_cm_id *id, struct rdma_cm_event *event)
{
	struct dialled *dialled = id->context;
	struct gyges_conn *conn = &dialled->conn;
	int error = gyges_cm_error(event);

	switch (event->event) {
	case RDMA_CM_EVENT_TIMEWAIT_EXIT:
	case RDMA_CM_EVENT_ADDR_CHANGE:
		return 0;
	case RDMA_CM_EVENT_ESTABLISHED:
		/* No READ at a time: each would wait in the send queue for ever, where no timeout finds it. */
		if (!event->param.conn.initiator_depth)
			error = -EPROTO;
		break;
	default:
		break;
	}
	WRITE_ONCE(conn->error, error);
	/* From here on, not only once whoever waits has seen it: what is lost meanwhile is told too. */
	if (event->event == RDMA_CM_EVENT_ESTABLISHED)
		WRITE_ONCE(conn->up, !error);
	else if (error && READ_ONCE(conn->up))
		dialled->lost(conn->owner);
	complete(&conn->event);
	return 0;
}

static unsigned long left_until(unsigned long deadline)
{
	return max((long)(deadline - jiffies), 1L);
}

/* Waits for the event that a step leads to. */
static int await_event(struct gyges_conn *conn, const struct gyges_dial *dial)
{
	long ret = wait_for_completion_killable_timeout(&conn->event, left_until(dial->deadline));

	if (ret < 0)
		return -EINTR;
	return ret ? READ_ONCE(conn->error) : -ETIMEDOUT;
}

static int make_queue_pair(struct gyges_conn *conn, const struct gyges_dial *dial, struct ib_pd *pd)
{
	struct ib_device *device = conn->id->device;
	struct ib_qp_init_attr attr = {
		.cap = {
			.max_send_wr = dial->depth + 1,
			.max_recv_wr = 1,
			.max_send_sge = dial->sges,
			.max_recv_sge = 1,
		},
		.qp_type = IB_QPT_RC,
		.sq_sig_type = IB_SIGNAL_ALL_WR,
	};
	int ret;

	conn->cq = ib_alloc_cq(device, conn, dial->depth + 3, 0, IB_POLL_SOFTIRQ);
	if (IS_ERR(conn->cq)) {
		ret = PTR_ERR(conn->cq);
		conn->cq = NULL;
		return ret;
	}
	attr.send_cq = conn->cq;
	attr.recv_cq = conn->cq;
	return rdma_create_qp(conn->id, pd, &attr);
}

static int connect(struct gyges_conn *conn, const struct gyges_dial *dial)
{
	struct gyges_cm_request request = {
		.magic = cpu_to_le32(GYGES_CM_MAGIC),
		.version = cpu_to_le16(GYGES_CM_VERSION),
		.role = cpu_to_le16(dial->role),
	};
	struct rdma_conn_param param = {
		.private_data = &request,
		.private_data_len = sizeof(request),
		.initiator_depth = min(conn->id->device->attrs.max_qp_init_rd_atom, GYGES_READ_ATOMICS),
		.responder_resources = 1,
		.retry_count = RETRIES,
		.rnr_retry_count = RNR_RETRIES,
	};
	int ret;

	memcpy(request.token, dial->token, sizeof(request.token));
	ret = rdma_set_ack_timeout(conn->id, ACK_TIMEOUT);
	if (!ret)
		ret = rdma_connect(conn->id, &param);
	memzero_explicit(&request, sizeof(request));
	return ret ? ret : await_event(conn, dial);
}

static int resolve(struct gyges_conn *conn, const struct gyges_dial *dial)
{
	int left_ms = jiffies_to_msecs(left_until(dial->deadline));
	int ret;

	ret = rdma_resolve_addr(conn->id, NULL, (struct sockaddr *)&dial->addr, left_ms);
	if (!ret)
		ret = await_event(conn, dial);
	/* A network device that is no RDMA device is found by the address, and refused there. */
	if (ret)
		return ret;
	ret = rdma_resolve_route(conn->id, left_ms);
	return ret ? ret : await_event(conn, dial);
}

static int dial_with(struct gyges_conn *conn, const struct gyges_dial *dial, struct ib_pd **pd)
{
	struct ib_pd *made = NULL;
	int ret;

	ret = resolve(conn, dial);
	if (ret)
		return ret;
	if (*pd && (*pd)->device != conn->id->device)
		return -ENODEV;
	if (!*pd) {
		made = ib_alloc_pd(conn->id->device, 0);
		if (IS_ERR(made))
			return PTR_ERR(made);
		*pd = made;
	}
	ret = make_queue_pair(conn, dial, *pd);
	/* Whoever asked frees the domain with the rest of its link, connected or not. */
	return ret ? ret : connect(conn, dial);
}

int gyges_conn_dial(const struct gyges_dial *dial, struct ib_pd **pd, void (*lost)(void *owner), void *owner,
		    struct gyges_conn **out)
{
	struct dialled *dialled = kzalloc(sizeof(*dialled), GFP_KERNEL);
	struct gyges_conn *conn;
	struct rdma_cm_id *id;
	int ret;

	if (!dialled)
		return -ENOMEM;
	conn = &dialled->conn;
	conn->owner = owner;
	conn->error = -EINPROGRESS;
	init_completion(&conn->event);
	dialled->lost = lost;
	id = rdma_create_id(dial->net, handle_event, dialled, RDMA_PS_TCP, IB_QPT_RC);
	if (IS_ERR(id)) {
		kfree(dialled);
		return PTR_ERR(id);
	}
	conn->id = id;
	ret = dial_with(conn, dial, pd);
	if (ret) {
		gyges_conn_close(conn);
		return ret;
	}
	*out = conn;
	return 0;
}

void gyges_conn_close(struct gyges_conn *conn)
{
	if (!conn)
		return;
	WRITE_ONCE(conn->up, false);
	if (conn->id->qp) {
		rdma_disconnect(conn->id);
		/* Also where it was never connected: everything that was posted completes, in error. */
		ib_drain_qp(conn->id->qp);
		rdma_destroy_qp(conn->id);
	}
	if (conn->cq)
		ib_free_cq(conn->cq);
	/* Waits for a handler that runs. */
	rdma_destroy_id(conn->id);
	kfree(container_of(conn, struct dialled, conn));
}
