/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma_source.h - the user pager's source over RDMA: it listens, and lets who knows the token read the RAM file.
 *
 * After a connection is made nothing is done here: the destination reads by itself, and begins anew when it likes. One
 * thread answers the connection manager. The RAM file is registered whole, once, remote-read only, by the first
 * rdma_source_region(); registering pins every page and so fills every hole: whoever wants to know which pages are zero
 * has to look before, and to note what is written from then on.
 */
#ifndef GY_RDMA_SOURCE_H
#define GY_RDMA_SOURCE_H

#include <linux/gyges.h>

#include "err.h"
#include "events.h"
#include "ram.h"

struct rdma_source;

/*
 * Listens at the numeric address @host, which must be an RDMA device's. A connection that was up and ends raises
 * GY_EVENT_LINK_LOST in @events, a destination's farewell GY_EVENT_COMPLETE. @token: GYGES_TOKEN_BYTES, copied.
 * Errors: ENOENT no libraries, ENODEV not an RDMA device's address, EADDRINUSE, EADDRNOTAVAIL, EINVAL no address.
 */
int rdma_source_open(struct gy_ram *ram, struct events *events, const char *host, uint32_t port, const uint8_t *token,
		     struct rdma_source **out, const struct gy_err *err);
/* Ends all connections and the registration; takes NULL. */
void rdma_source_close(struct rdma_source *source);
uint32_t rdma_source_port(const struct rdma_source *source);
/* Registers if need be, which takes long for much RAM. One thread. */
int rdma_source_region(struct rdma_source *source, struct gyges_region *region, const struct gy_err *err);
/* See gy_source_broken(). */
int rdma_source_broken(const struct rdma_source *source);

#endif
