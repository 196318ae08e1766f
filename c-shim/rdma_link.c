// SPDX-License-Identifier: Apache-2.0
/*
 * rdma_link.c - see rdma_link.h; kernel/link.c is the same for the kernel pager, and explains the numbers.
 *
 * Queue arithmetic: @depth READs are posted at once, each signalled: the send queue and the completion queue have room
 * for them all, so neither can overflow. Nothing is ever received. READs beyond initiator_depth wait in the send queue.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/gyges.h>

#include "clock.h"
#include "rdma_link.h"

#define ACK_TIMEOUT 18		/* 4.096 us << 18: 1.07 s */
#define RETRIES 3
#define RNR_RETRIES 7
#define READ_ATOMICS 16		/* READs that the wire carries at once */

/* ---- connecting ---- */

static int event_error(const struct rdma_cm_event *event)
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

/* A time-out says how far it came; other failures tell by themselves. */
static int step_failed(const struct gy_err *err, int ret, const char *step)
{
	return ret == -ETIMEDOUT ? gy_err_set(err, ret, "timed out with %s", step) : ret;
}

/* Waits for what a step leads to. */
static int await_event(struct rdma_link *link, uint64_t deadline_ns)
{
	struct rdma_cm_event *event;
	int ret = rdma_next_event(link->rdma, link->channel, deadline_ns, &event);

	if (ret)
		return ret;
	ret = event_error(event);
	link->rdma->rdma_ack_cm_event(event);
	return ret;
}

static int resolve(struct rdma_link *link, const struct rdma_dial *dial, const struct gy_err *err)
{
	union rdma_address address;
	int ret = rdma_address_read(dial->host, dial->port, &address);

	if (ret)
		return gy_err_set(err, ret, "\"%s\" is no numeric address", dial->host);
	ret = rdma_lib_errno(link->rdma->rdma_resolve_addr(link->id, NULL, &address.any, ms_until(dial->deadline_ns)));
	if (!ret)
		ret = await_event(link, dial->deadline_ns);
	/* The route leads through a network device that is no RDMA device. */
	if (ret == -ENODEV || (!ret && !link->id->verbs))
		return gy_err_set(err, -ENODEV, "no RDMA device of this host leads to %s", dial->host);
	if (ret)
		return step_failed(err, ret, "no answer for its address");
	ret = rdma_lib_errno(link->rdma->rdma_resolve_route(link->id, ms_until(dial->deadline_ns)));
	if (!ret)
		ret = await_event(link, dial->deadline_ns);
	return step_failed(err, ret, "no route to it");
}

static int make_buffer(struct rdma_link *link, uint64_t bytes, const struct gy_err *err)
{
	void *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (buffer == MAP_FAILED)
		return -errno;
	link->buffer = buffer;
	link->bytes = bytes;
	/* A fork must not take the pages away that the device writes to. */
	madvise(buffer, bytes, MADV_DONTFORK);
	link->mr = link->rdma->ibv_reg_mr(link->pd, buffer, bytes, IBV_ACCESS_LOCAL_WRITE);
	return link->mr ? 0 : rdma_pin_failed(err, -errno, bytes);
}

static int make_queues(struct rdma_link *link, uint32_t depth)
{
	struct ibv_qp_init_attr attr = {
		.cap = { .max_send_wr = depth, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 },
		.qp_type = IBV_QPT_RC,
		.sq_sig_all = 1,
	};

	link->completions = link->rdma->ibv_create_comp_channel(link->id->verbs);
	if (!link->completions)
		return -errno;
	if (fcntl(link->completions->fd, F_SETFL, fcntl(link->completions->fd, F_GETFL) | O_NONBLOCK))
		return -errno;
	link->cq = link->rdma->ibv_create_cq(link->id->verbs, (int)depth + 2, NULL, link->completions, 0);
	if (!link->cq)
		return -errno;
	attr.send_cq = link->cq;
	attr.recv_cq = link->cq;
	return rdma_lib_errno(link->rdma->rdma_create_qp(link->id, link->pd, &attr));
}

static int connect_to(struct rdma_link *link, const struct rdma_dial *dial)
{
	struct gyges_cm_request request = {
		.magic = GYGES_CM_MAGIC,
		.version = GYGES_CM_VERSION,
		.role = dial->role,
	};
	struct rdma_conn_param param = {
		.private_data = &request,
		.private_data_len = sizeof(request),
		.initiator_depth = READ_ATOMICS,
		.responder_resources = 1,
		.retry_count = RETRIES,
		.rnr_retry_count = RNR_RETRIES,
	};
	struct ibv_device_attr device;
	uint8_t timeout = ACK_TIMEOUT;
	int ret = link->rdma->ibv_query_device(link->id->verbs, &device);

	if (ret)
		return -ret;
	if (device.max_qp_init_rd_atom < READ_ATOMICS)
		param.initiator_depth = (uint8_t)device.max_qp_init_rd_atom;
	memcpy(request.token, dial->token, sizeof(request.token));
	ret = rdma_lib_errno(link->rdma->rdma_set_option(link->id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT,
							 &timeout, sizeof(timeout)));
	if (!ret)
		ret = rdma_lib_errno(link->rdma->rdma_connect(link->id, &param));
	explicit_bzero(&request, sizeof(request));
	return ret ? ret : await_event(link, dial->deadline_ns);
}

static int watch_channels(struct rdma_link *link)
{
	struct epoll_event event = { .events = EPOLLIN };

	link->fd = epoll_create1(EPOLL_CLOEXEC);
	if (link->fd < 0)
		return -errno;
	event.data.fd = link->channel->fd;
	if (epoll_ctl(link->fd, EPOLL_CTL_ADD, link->channel->fd, &event))
		return -errno;
	event.data.fd = link->completions->fd;
	return epoll_ctl(link->fd, EPOLL_CTL_ADD, link->completions->fd, &event) ? -errno : 0;
}

static int set_up(struct rdma_link *link, const struct rdma_dial *dial, const struct gy_err *err)
{
	int ret = rdma_channel_open(link->rdma, &link->channel);

	if (ret)
		return gy_err_set(err, ret, "this host's kernel offers no RDMA connections (%s), as with modprobe rdma_ucm",
				  strerror(-ret));
	ret = rdma_lib_errno(link->rdma->rdma_create_id(link->channel, &link->id, link, RDMA_PS_TCP));
	if (!ret)
		ret = resolve(link, dial, err);
	if (ret)
		return ret;
	link->pd = link->rdma->ibv_alloc_pd(link->id->verbs);
	if (!link->pd)
		return -errno;
	ret = make_buffer(link, dial->bytes, err);
	if (!ret)
		ret = make_queues(link, dial->depth);
	if (!ret)
		ret = watch_channels(link);
	if (ret)
		return ret;
	ret = connect_to(link, dial);
	return step_failed(err, ret, dial->role == GYGES_ROLE_DEMAND ? "no answer to the first request" :
								       "an answer to the first request, none to the next");
}

int rdma_link_dial(const struct rdma_dial *dial, struct rdma_link **out, const struct gy_err *err)
{
	const struct rdma_lib *rdma = rdma_lib_open(err);
	struct rdma_link *link;
	int ret;

	if (!rdma)
		return -ENOENT;
	link = calloc(1, sizeof(*link));
	if (!link)
		return -ENOMEM;
	link->rdma = rdma;
	link->fd = -1;
	ret = set_up(link, dial, err);
	if (ret) {
		rdma_link_close(link);
		return ret;
	}
	*out = link;
	return 0;
}

void rdma_link_close(struct rdma_link *link)
{
	if (!link)
		return;
	if (link->id && link->id->qp) {
		link->rdma->rdma_disconnect(link->id);
		link->rdma->rdma_destroy_qp(link->id);
	}
	if (link->cq)
		link->rdma->ibv_destroy_cq(link->cq);
	if (link->completions)
		link->rdma->ibv_destroy_comp_channel(link->completions);
	if (link->mr)
		link->rdma->ibv_dereg_mr(link->mr);
	if (link->buffer)
		munmap(link->buffer, link->bytes);
	if (link->pd)
		link->rdma->ibv_dealloc_pd(link->pd);
	if (link->fd >= 0)
		close(link->fd);
	if (link->id)
		link->rdma->rdma_destroy_id(link->id);
	if (link->channel)
		link->rdma->rdma_destroy_event_channel(link->channel);
	free(link);
}

/* ---- reading ---- */

int rdma_link_read(struct rdma_link *link, uint64_t offset, uint32_t bytes, uint64_t remote_addr, uint32_t rkey,
		   uint64_t wr_id)
{
	struct ibv_sge sge = {
		.addr = (uintptr_t)link->buffer + offset,
		.length = bytes,
		.lkey = link->mr->lkey,
	};
	struct ibv_send_wr wr = {
		.wr_id = wr_id,
		.sg_list = &sge,
		.num_sge = 1,
		.opcode = IBV_WR_RDMA_READ,
		.send_flags = IBV_SEND_SIGNALED,
		.wr.rdma = { .remote_addr = remote_addr, .rkey = rkey },
	};
	struct ibv_send_wr *bad;

	return -ibv_post_send(link->id->qp, &wr, &bad);
}

/* The READs behind one that failed are flushed, which says nothing of why. */
static int status_error(enum ibv_wc_status status)
{
	switch (status) {
	case IBV_WC_REM_ACCESS_ERR:
	case IBV_WC_REM_INV_REQ_ERR:
	case IBV_WC_REM_OP_ERR:
		return -EPROTO;
	default:
		return -ECONNRESET;
	}
}

static int take_completions(struct rdma_link *link, uint64_t *wr_ids, int max)
{
	struct ibv_wc wc[RDMA_READ_PAGES];
	int n;

	if (link->error)
		return link->error;
	n = ibv_poll_cq(link->cq, max < (int)RDMA_READ_PAGES ? max : (int)RDMA_READ_PAGES, wc);
	if (n < 0)
		return -ECONNRESET;
	for (int i = 0; i < n; i++) {
		if (wc[i].status != IBV_WC_SUCCESS) {
			link->error = status_error(wc[i].status);
			return i ? i : link->error;
		}
		wr_ids[i] = wc[i].wr_id;
	}
	return n;
}

/* Words of the connection manager: every one of them after the connection was made is its end. */
static int take_cm_events(struct rdma_link *link)
{
	struct rdma_cm_event *event;
	int ret = 0;

	while (!rdma_next_event(link->rdma, link->channel, 0, &event)) {
		if (event->event != RDMA_CM_EVENT_TIMEWAIT_EXIT && event->event != RDMA_CM_EVENT_ADDR_CHANGE)
			ret = -ECONNRESET;
		link->rdma->rdma_ack_cm_event(event);
	}
	return ret;
}

/* What the descriptors have to tell; a notice of completions disarms. */
static int take_notices(struct rdma_link *link)
{
	struct epoll_event ready[2];
	int n = epoll_wait(link->fd, ready, 2, 0);
	int ret = 0;

	for (int i = 0; i < n; i++) {
		struct ibv_cq *cq;
		void *context;

		if (ready[i].data.fd == link->channel->fd) {
			ret = take_cm_events(link);
		} else if (!link->rdma->ibv_get_cq_event(link->completions, &cq, &context)) {
			link->rdma->ibv_ack_cq_events(cq, 1);
			link->armed = false;
		}
	}
	return ret;
}

int rdma_link_poll(struct rdma_link *link, uint64_t *wr_ids, int max)
{
	int n = take_completions(link, wr_ids, max);

	if (n)
		return n;
	n = take_notices(link);
	if (n || link->armed)
		return n;
	if (ibv_req_notify_cq(link->cq, 0))
		return -ECONNRESET;
	link->armed = true;
	/* One that came before it was armed makes no notice. */
	return take_completions(link, wr_ids, max);
}
