/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma_lib.h - libibverbs and librdmacm, opened when they are first needed.
 *
 * What is called here by name is found at run time, so that a host without the libraries can do all that needs none.
 * ibv_post_send(), ibv_poll_cq() and ibv_req_notify_cq() are inline in the header and go through the device's own table.
 */
#ifndef GY_RDMA_LIB_H
#define GY_RDMA_LIB_H

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>
#include <stdint.h>

#include "err.h"

/* These are macros around the functions of the same name, for callers that link with the library. */
#undef ibv_reg_mr
#undef ibv_get_device_list

#define RDMA_LIB_VERBS(X) \
	X(ibv_get_device_list) X(ibv_free_device_list) X(ibv_alloc_pd) X(ibv_dealloc_pd) X(ibv_reg_mr) \
	X(ibv_dereg_mr) X(ibv_create_comp_channel) X(ibv_destroy_comp_channel) X(ibv_create_cq) X(ibv_destroy_cq) \
	X(ibv_get_cq_event) X(ibv_ack_cq_events) X(ibv_query_device)
#define RDMA_LIB_CM(X) \
	X(rdma_create_event_channel) X(rdma_destroy_event_channel) X(rdma_create_id) X(rdma_destroy_id) \
	X(rdma_bind_addr) X(rdma_listen) X(rdma_resolve_addr) X(rdma_resolve_route) X(rdma_create_qp) \
	X(rdma_destroy_qp) X(rdma_connect) X(rdma_accept) X(rdma_reject) X(rdma_disconnect) X(rdma_get_cm_event) \
	X(rdma_ack_cm_event) X(rdma_set_option) X(rdma_get_src_port)

#define RDMA_LIB_MEMBER(name) __typeof__(name) *name;
struct rdma_lib {
	RDMA_LIB_VERBS(RDMA_LIB_MEMBER)
	RDMA_LIB_CM(RDMA_LIB_MEMBER)
};
#undef RDMA_LIB_MEMBER

/* The libraries, opened once; NULL with the words in @err where they cannot be. Any thread. */
const struct rdma_lib *rdma_lib_open(const struct gy_err *err);

/* 0, or -errno of an rdma_*() call that has just failed: they return -1 and set errno. */
int rdma_lib_errno(int result);

/* ---- what both ends of a connection need ---- */

union rdma_address {
	struct sockaddr any;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

/* @host is numeric. -EINVAL. */
int rdma_address_read(const char *host, uint32_t port, union rdma_address *address);
/*
 * Waits until @channel has an event or @deadline_ns has passed, and takes it: 0, -ETIMEDOUT or -errno. The channel does
 * not block, see rdma_channel_open().
 */
int rdma_next_event(const struct rdma_lib *lib, struct rdma_event_channel *channel, uint64_t deadline_ns,
		    struct rdma_cm_event **event);
/* A channel whose descriptor does not block. */
int rdma_channel_open(const struct rdma_lib *lib, struct rdma_event_channel **out);
/* Says why memory could not be registered. Returns @error. */
int rdma_pin_failed(const struct gy_err *err, int error, uint64_t bytes);
/* Whether this process may pin @bytes more; 0, or -ENOMEM with the words. */
int rdma_may_pin(uint64_t bytes, const struct gy_err *err);

#endif
