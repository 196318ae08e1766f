// SPDX-License-Identifier: Apache-2.0
/*
 * rdma_source.c - see rdma_source.h; kernel/export.c and register.c are the same for the kernel pager.
 *
 * Nothing is ever posted on a connection's queue pair, so each has queues of one entry and all share one completion
 * queue that nobody reads.
 */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include "clock.h"
#include "hold.h"
#include "rdma_lib.h"
#include "rdma_source.h"
#include "thread.h"

#define MAX_CONNECTIONS 20
#define RNR_RETRIES 7	/* as in kernel/export.c: no receive is ever needed */

struct connection {
	struct rdma_cm_id *id;
	bool up;
};

struct rdma_source {
	const struct rdma_lib *rdma;
	struct gy_ram *ram;
	struct events *events;
	uint8_t token[GYGES_TOKEN_BYTES];
	struct rdma_event_channel *channel;
	struct rdma_cm_id *listener;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_mr *mr;
	struct hold hold;	/* of what mr has pinned */
	pthread_t thread;
	int wake_fd;
	_Atomic(bool) stop;
	pthread_mutex_t lock;	/* connections */
	struct connection conn[MAX_CONNECTIONS];
};

/* ---- connections ---- */

/* What a request asks to be; 0: it is none of ours. Its private data is padded with zeros to the CM's own length. */
static int role_of(const struct rdma_source *source, const struct rdma_conn_param *param)
{
	struct gyges_cm_request request;

	if (!param->private_data || param->private_data_len < sizeof(request))
		return 0;
	memcpy(&request, param->private_data, sizeof(request));
	if (request.magic != GYGES_CM_MAGIC || request.version != GYGES_CM_VERSION || request.reserved)
		return 0;
	if (request.role < GYGES_ROLE_DEMAND || request.role > GYGES_ROLE_FAREWELL)
		return 0;
	return CRYPTO_memcmp(request.token, source->token, sizeof(source->token)) ? 0 : request.role;
}

static int make_queue_pair(struct rdma_source *source, struct rdma_cm_id *id)
{
	struct ibv_qp_init_attr attr = {
		.send_cq = source->cq,
		.recv_cq = source->cq,
		.cap = { .max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 },
		.qp_type = IBV_QPT_RC,
	};

	return rdma_lib_errno(source->rdma->rdma_create_qp(id, source->pd, &attr));
}

static void free_connection(struct rdma_source *source, struct connection *conn)
{
	source->rdma->rdma_disconnect(conn->id);
	source->rdma->rdma_destroy_qp(conn->id);
	/* Waits for events of it that are not acknowledged: none, see serve(). */
	source->rdma->rdma_destroy_id(conn->id);
	*conn = (struct connection){ 0 };
}

static void free_all_locked(struct rdma_source *source)
{
	for (uint32_t i = 0; i < MAX_CONNECTIONS; i++) {
		if (source->conn[i].id)
			free_connection(source, &source->conn[i]);
	}
}

/*
 * A destination begins with its demand connection. One that begins anew has lost those that it had, and this end of
 * them may never notice: nothing is sent from here.
 */
static int admit_locked(struct rdma_source *source, struct rdma_cm_id *id, int role)
{
	struct rdma_conn_param param = {
		/* As many as the destination asked for and the device has. */
		.responder_resources = RDMA_MAX_RESP_RES,
		.initiator_depth = 1,
		.rnr_retry_count = RNR_RETRIES,
	};
	struct connection *conn = NULL;
	int ret;

	if (role == GYGES_ROLE_DEMAND)
		free_all_locked(source);
	for (uint32_t i = 0; i < MAX_CONNECTIONS && !conn; i++) {
		if (!source->conn[i].id)
			conn = &source->conn[i];
	}
	if (!conn)
		return -EUSERS;
	ret = make_queue_pair(source, id);
	if (ret)
		return ret;
	ret = rdma_lib_errno(source->rdma->rdma_accept(id, &param));
	if (ret) {
		source->rdma->rdma_destroy_qp(id);
		return ret;
	}
	*conn = (struct connection){ .id = id };
	return 0;
}

static void on_request(struct rdma_source *source, struct rdma_cm_id *id, int role)
{
	int ret = -EACCES;

	if (role == GYGES_ROLE_FAREWELL) {
		events_raise(source->events, GY_EVENT_COMPLETE);
	} else if (role && id->verbs == source->listener->verbs) {
		pthread_mutex_lock(&source->lock);
		ret = admit_locked(source, id, role);
		pthread_mutex_unlock(&source->lock);
	}
	if (!ret)
		return;
	source->rdma->rdma_reject(id, NULL, 0);
	source->rdma->rdma_destroy_id(id);
}

static void on_change(struct rdma_source *source, struct rdma_cm_id *id, bool up)
{
	bool lost = false;

	pthread_mutex_lock(&source->lock);
	for (uint32_t i = 0; i < MAX_CONNECTIONS; i++) {
		struct connection *conn = &source->conn[i];

		if (conn->id != id)
			continue;
		if (up) {
			conn->up = true;
		} else {
			lost = conn->up;
			free_connection(source, conn);
		}
	}
	pthread_mutex_unlock(&source->lock);
	if (lost)
		events_raise(source->events, GY_EVENT_LINK_LOST);
}

/* Acknowledged before it is acted upon: an id with an event that is not cannot be destroyed. */
static void handle_event(struct rdma_source *source, struct rdma_cm_event *event)
{
	enum rdma_cm_event_type type = event->event;
	struct rdma_cm_id *id = event->id;
	int role = type == RDMA_CM_EVENT_CONNECT_REQUEST ? role_of(source, &event->param.conn) : 0;

	source->rdma->rdma_ack_cm_event(event);
	switch (type) {
	case RDMA_CM_EVENT_CONNECT_REQUEST:
		on_request(source, id, role);
		break;
	case RDMA_CM_EVENT_ESTABLISHED:
		on_change(source, id, true);
		break;
	case RDMA_CM_EVENT_TIMEWAIT_EXIT:
	case RDMA_CM_EVENT_ADDR_CHANGE:
		break;
	default:
		on_change(source, id, false);
		break;
	}
}

static void *serve(void *arg)
{
	struct rdma_source *source = arg;
	struct pollfd p[2] = {
		{ .fd = source->channel->fd, .events = POLLIN },
		{ .fd = source->wake_fd, .events = POLLIN },
	};

	while (!atomic_load(&source->stop)) {
		struct rdma_cm_event *event;

		poll(p, 2, -1);
		/* The lock keeps an event's id from being destroyed between the look and the answer. */
		while (!rdma_next_event(source->rdma, source->channel, 0, &event))
			handle_event(source, event);
	}
	return NULL;
}

/* ---- memory ---- */

static int pin(struct rdma_source *source, const struct gy_err *err)
{
	const struct gy_ram *ram = source->ram;
	struct ibv_mr *mr = source->rdma->ibv_reg_mr(source->pd, ram->alias, ram->bytes, IBV_ACCESS_REMOTE_READ);
	int ret;

	if (!mr)
		return rdma_pin_failed(err, -errno, ram->bytes);
	ret = hold_begin(&source->hold, ram->alias, ram->bytes, err);
	if (ret) {
		source->rdma->ibv_dereg_mr(mr);
		return ret;
	}
	source->mr = mr;
	return 0;
}

int rdma_source_broken(const struct rdma_source *source)
{
	return source->mr ? hold_broken(&source->hold) : 0;
}

int rdma_source_region(struct rdma_source *source, struct gyges_region *region, const struct gy_err *err)
{
	int ret = source->mr ? 0 : pin(source, err);

	if (ret)
		return ret;
	*region = (struct gyges_region){
		.remote_addr = (uintptr_t)source->mr->addr,
		.pages = (uint32_t)source->ram->pages,
		.rkey = source->mr->rkey,
	};
	return 0;
}

/* ---- life ---- */

static int listen_at(struct rdma_source *source, const char *host, uint32_t port, const struct gy_err *err)
{
	union rdma_address address;
	int ret = rdma_address_read(host, port, &address);

	if (ret)
		return gy_err_set(err, ret, "\"%s\" is no numeric address", host);
	ret = rdma_channel_open(source->rdma, &source->channel);
	if (ret)
		return gy_err_set(err, ret, "this host's kernel offers no RDMA connections (%s), as with modprobe rdma_ucm",
				  strerror(-ret));
	ret = rdma_lib_errno(source->rdma->rdma_create_id(source->channel, &source->listener, NULL, RDMA_PS_TCP));
	if (ret)
		return ret;
	ret = rdma_lib_errno(source->rdma->rdma_bind_addr(source->listener, &address.any));
	if (ret)
		return gy_err_set(err, ret, "%s port %u cannot be listened on for RDMA: %s", host, port, strerror(-ret));
	/* Bound to an address that is of no device, or of all: keys belong to one. */
	if (!source->listener->verbs)
		return gy_err_set(err, -ENODEV, "%s is not the address of an RDMA device", host);
	return rdma_lib_errno(source->rdma->rdma_listen(source->listener, MAX_CONNECTIONS));
}

static int make_resources(struct rdma_source *source, const struct gy_err *err)
{
	int ret;

	source->pd = source->rdma->ibv_alloc_pd(source->listener->verbs);
	if (!source->pd)
		return gy_err_set(err, -ENOMEM, "the RDMA device gives no protection domain");
	source->cq = source->rdma->ibv_create_cq(source->listener->verbs, 2 * MAX_CONNECTIONS, NULL, NULL, 0);
	if (!source->cq)
		return gy_err_set(err, -ENOMEM, "the RDMA device gives no completion queue");
	source->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (source->wake_fd < 0)
		return -errno;
	ret = thread_start(&source->thread, "gy-rdma-listen", serve, source);
	if (ret) {
		close(source->wake_fd);
		source->wake_fd = -1;
	}
	return ret;
}

int rdma_source_open(struct gy_ram *ram, struct events *events, const char *host, uint32_t port, const uint8_t *token,
		     struct rdma_source **out, const struct gy_err *err)
{
	const struct rdma_lib *rdma = rdma_lib_open(err);
	struct rdma_source *source;
	int ret;

	if (!rdma)
		return -ENOENT;
	/* struct gyges_region counts pages in 32 bits. */
	if (ram->pages > UINT32_MAX)
		return gy_err_set(err, -EFBIG, "RAM of 16 TiB or more cannot be moved by RDMA");
	source = calloc(1, sizeof(*source));
	if (!source)
		return -ENOMEM;
	source->rdma = rdma;
	source->ram = ram;
	source->events = events;
	source->wake_fd = -1;
	memcpy(source->token, token, sizeof(source->token));
	pthread_mutex_init(&source->lock, NULL);
	ret = listen_at(source, host, port, err);
	if (!ret)
		ret = make_resources(source, err);
	if (ret) {
		rdma_source_close(source);
		return ret;
	}
	*out = source;
	return 0;
}

static void stop_thread(struct rdma_source *source)
{
	uint64_t one = 1;
	ssize_t n;

	if (source->wake_fd < 0)
		return;
	atomic_store(&source->stop, true);
	n = write(source->wake_fd, &one, sizeof(one));
	(void)n;
	pthread_join(source->thread, NULL);
	close(source->wake_fd);
}

void rdma_source_close(struct rdma_source *source)
{
	if (!source)
		return;
	stop_thread(source);
	pthread_mutex_lock(&source->lock);
	free_all_locked(source);
	pthread_mutex_unlock(&source->lock);
	if (source->mr) {
		hold_end(&source->hold);
		source->rdma->ibv_dereg_mr(source->mr);
	}
	if (source->cq)
		source->rdma->ibv_destroy_cq(source->cq);
	if (source->pd)
		source->rdma->ibv_dealloc_pd(source->pd);
	if (source->listener)
		source->rdma->rdma_destroy_id(source->listener);
	if (source->channel)
		source->rdma->rdma_destroy_event_channel(source->channel);
	pthread_mutex_destroy(&source->lock);
	OPENSSL_cleanse(source->token, sizeof(source->token));
	free(source);
}

uint32_t rdma_source_port(const struct rdma_source *source)
{
	return be16toh(source->rdma->rdma_get_src_port(source->listener));
}
