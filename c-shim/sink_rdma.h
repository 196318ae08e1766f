/* SPDX-License-Identifier: Apache-2.0 */
/* sink_rdma.h - a sink's links over RDMA, see sink.h. */
#ifndef GY_SINK_RDMA_H
#define GY_SINK_RDMA_H

#include "err.h"
#include "sink.h"

struct rdma_link;

/* Owns @rdma, on success; its buffer has sink_rdma_bytes(). NULL: no memory. */
struct sink_link *sink_rdma_link(struct rdma_link *rdma, bool demand);
uint64_t sink_rdma_bytes(bool demand);
/* READs that may be posted at once: a request may lie in several regions. */
uint32_t sink_rdma_depth(bool demand);

#endif
