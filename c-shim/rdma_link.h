/* SPDX-License-Identifier: Apache-2.0 */
/* rdma_link.h - one RDMA connection, as the destination makes it, with the memory that READs go into. */
#ifndef GY_RDMA_LINK_H
#define GY_RDMA_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "rdma_lib.h"

/* A READ takes up to so many neighbouring pages: 64 KiB, sixteen packets at the largest MTU of RoCE. */
#define RDMA_READ_PAGES 16u

struct rdma_dial {
	const char *host;	/* numeric */
	uint32_t port;
	const uint8_t *token;	/* GYGES_TOKEN_BYTES */
	uint16_t role;		/* GYGES_ROLE_* */
	uint32_t depth;		/* READs posted at once */
	uint64_t bytes;		/* of memory to read into */
	uint64_t deadline_ns;
};

/* Used by one thread. */
struct rdma_link {
	const struct rdma_lib *rdma;
	struct rdma_event_channel *channel;
	struct rdma_cm_id *id;
	struct ibv_pd *pd;
	struct ibv_comp_channel *completions;
	struct ibv_cq *cq;
	struct ibv_mr *mr;
	uint8_t *buffer;
	uint64_t bytes;
	int fd;			/* epoll over both channels: readable when rdma_link_poll() may find something */
	int error;		/* of a READ behind those that were taken last */
	bool armed;		/* the next completion will make it readable */
};

/*
 * Connects. Errors: ENOENT no libraries, ENODEV no device leads there, ECONNREFUSED nobody listens or the token is
 * wrong, ETIMEDOUT, ENETUNREACH, EHOSTUNREACH, ENOMEM.
 */
int rdma_link_dial(const struct rdma_dial *dial, struct rdma_link **out, const struct gy_err *err);
/* What was posted and has not come never will: after this nothing writes to the buffer. Takes NULL. */
void rdma_link_close(struct rdma_link *link);
/* Posts a READ of @bytes at @remote_addr to @offset of the buffer; completions come in the order of the posts. */
int rdma_link_read(struct rdma_link *link, uint64_t offset, uint32_t bytes, uint64_t remote_addr, uint32_t rkey,
		   uint64_t wr_id);
/*
 * Completions, at most @max: their wr_ids. 0: none, and the descriptor is readable as soon as there are some.
 * -EPROTO: the source refuses a READ. -ECONNRESET: the link is lost.
 */
int rdma_link_poll(struct rdma_link *link, uint64_t *wr_ids, int max);

#endif
