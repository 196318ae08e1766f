/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blob.h - the container of saved state: a head, sections, and a digest over everything before it.
 *
 * Magic, version and the place of the digest are the same in every version, so that a damaged blob and one of
 * another version can be told apart. Sections are padded to 8 bytes; numbers are little-endian, as on x86.
 */
#ifndef GY_BLOB_H
#define GY_BLOB_H

#include <stdbool.h>

#include "err.h"

#define GY_BLOB_MAGIC 0x6574617473677967ull
#define GY_BLOB_VERSION 1u
#define GY_BLOB_DIGEST_BYTES 32u
/* Owner of a section that belongs to the machine and to no vCPU. */
#define GY_BLOB_MACHINE UINT32_MAX

struct gy_blob_head {
	uint64_t magic;
	uint32_t version;
	uint32_t sections;
	uint64_t total_bytes;		/* digest included */
};

struct gy_blob_section {
	uint32_t type;
	uint32_t owner;			/* vCPU, or GY_BLOB_MACHINE */
	uint64_t bytes;			/* without padding */
};

static inline uint64_t gy_blob_section_bytes(uint64_t bytes)
{
	return sizeof(struct gy_blob_section) + (bytes + 7) / 8 * 8;
}

struct gy_blob_writer {
	uint8_t *base;
	uint64_t cap;
	uint64_t used;
	uint32_t sections;
	bool full;			/* something did not fit */
};

/* The first digest of a process loads OpenSSL's algorithms: a millisecond that no downtime should pay. */
void gy_blob_warm_up(void);

void gy_blob_begin(struct gy_blob_writer *writer, void *buf, uint64_t cap);
void gy_blob_put(struct gy_blob_writer *writer, uint32_t type, uint32_t owner, const void *data, uint64_t bytes);
/* Writes head and digest. Bytes in all, or -ENOSPC. */
int64_t gy_blob_seal(struct gy_blob_writer *writer);

/* A blob that gy_blob_open() has found whole; borrowed, not copied, and aligned to nothing. */
struct gy_blob {
	const uint8_t *base;
	uint64_t bytes;			/* without the digest */
};

/* -EBADMSG: not a blob, or damaged; -EPROTO: a whole one of another version. */
int gy_blob_open(struct gy_blob *blob, const void *buf, uint64_t len, const struct gy_err *err);
/* The section's data, and its length; NULL if there is none. */
const void *gy_blob_find(const struct gy_blob *blob, uint32_t type, uint32_t owner, uint64_t *bytes);
/* Copies a section of exactly @bytes. -EBADMSG if it is not there or has another length. */
int gy_blob_get(const struct gy_blob *blob, uint32_t type, uint32_t owner, void *data, uint64_t bytes,
		const struct gy_err *err);

#endif
