/* SPDX-License-Identifier: Apache-2.0 */
/*
 * page_proto.h - what crosses a page connection.
 *
 * The destination pulls: it sends requests, the source answers each with one or more replies that cover the
 * request's pages in order, each page once. Requests are answered in the order they came; several may be under
 * way. All numbers little-endian. Demand, prefetch and pre-copy use the same messages.
 *
 *   destination                              source
 *      request {tag 7, pages 100..116}  ->
 *                                       <-   reply {tag 7, pages 100..104, raw, 16384 bytes} + bytes
 *                                       <-   reply {tag 7, pages 104..116, zero, 0 bytes}
 */
#ifndef GY_PAGE_PROTO_H
#define GY_PAGE_PROTO_H

#include <assert.h>
#include <stdint.h>

#define PAGE_REQUEST_MAGIC 0x51525947u	/* "GYRQ" */
#define PAGE_REPLY_MAGIC 0x50525947u	/* "GYRP" */

/* 256 KiB a request: enough to keep a 100 Gbit/s link busy with a few under way, small enough to interrupt. */
#define PAGE_REQUEST_MAX 64u

enum page_encoding { PAGE_RAW = 1, PAGE_ZERO = 2 };

struct page_request {
	uint32_t magic;
	uint32_t tag;
	uint64_t first_page;
	uint32_t count;		/* 1..PAGE_REQUEST_MAX */
	uint32_t region;	/* 0 */
	uint64_t reserved;	/* 0 */
};

struct page_reply {
	uint32_t magic;
	uint32_t tag;
	uint64_t first_page;
	uint32_t count;
	uint32_t encoding;	/* enum page_encoding */
	uint32_t bytes;		/* that follow: count * 4096 for raw, 0 for zero */
	uint32_t reserved;	/* 0 */
};

static_assert(sizeof(struct page_request) == 32, "wire format");
static_assert(sizeof(struct page_reply) == 32, "wire format");

#endif
