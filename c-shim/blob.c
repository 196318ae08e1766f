// SPDX-License-Identifier: Apache-2.0
/* blob.c - the container of saved state. */
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

#include "blob.h"

static bool digest(const void *data, uint64_t bytes, uint8_t *out)
{
	return EVP_Digest(data, bytes, out, NULL, EVP_sha256(), NULL) == 1;
}

void gy_blob_warm_up(void)
{
	uint8_t out[GY_BLOB_DIGEST_BYTES];

	digest("", 0, out);
}

/* ---- writing ---- */

void gy_blob_begin(struct gy_blob_writer *writer, void *buf, uint64_t cap)
{
	*writer = (struct gy_blob_writer){ .base = buf, .cap = cap, .used = sizeof(struct gy_blob_head) };
	writer->full = cap < sizeof(struct gy_blob_head);
}

void gy_blob_put(struct gy_blob_writer *writer, uint32_t type, uint32_t owner, const void *data, uint64_t bytes)
{
	struct gy_blob_section section = { .type = type, .owner = owner, .bytes = bytes };
	uint64_t padded = gy_blob_section_bytes(bytes);
	uint8_t *at;

	if (writer->full || padded > writer->cap - writer->used) {
		writer->full = true;
		return;
	}
	at = writer->base + writer->used;
	memset(at, 0, padded);
	memcpy(at, &section, sizeof(section));
	memcpy(at + sizeof(section), data, bytes);
	writer->used += padded;
	writer->sections++;
}

int64_t gy_blob_seal(struct gy_blob_writer *writer)
{
	struct gy_blob_head head = {
		.magic = GY_BLOB_MAGIC,
		.version = GY_BLOB_VERSION,
		.sections = writer->sections,
		.total_bytes = writer->used + GY_BLOB_DIGEST_BYTES,
	};

	if (writer->full || writer->cap - writer->used < GY_BLOB_DIGEST_BYTES)
		return -ENOSPC;
	memcpy(writer->base, &head, sizeof(head));
	if (!digest(writer->base, writer->used, writer->base + writer->used))
		return -EIO;
	return (int64_t)head.total_bytes;
}

/* ---- reading ---- */

static int check_digest(const uint8_t *base, uint64_t len, const struct gy_err *err)
{
	uint8_t expected[GY_BLOB_DIGEST_BYTES];

	if (!digest(base, len - GY_BLOB_DIGEST_BYTES, expected))
		return gy_err_set(err, -EIO, "Cannot check the state: SHA-256 is not to be had");
	if (memcmp(expected, base + len - GY_BLOB_DIGEST_BYTES, sizeof(expected)))
		return gy_err_set(err, -EBADMSG,
				  "Cannot load a damaged state: its digest begins %02x%02x%02x%02x, must be %02x%02x%02x%02x",
				  base[len - 32], base[len - 31], base[len - 30], base[len - 29], expected[0],
				  expected[1], expected[2], expected[3]);
	return 0;
}

/* Every section lies inside, and they fill the blob. A peer with the right digest may still have written nonsense. */
static int check_sections(const struct gy_blob *blob, uint32_t sections, const struct gy_err *err)
{
	uint64_t at = sizeof(struct gy_blob_head);
	struct gy_blob_section section;

	for (uint32_t i = 0; i < sections; i++) {
		if (blob->bytes - at < sizeof(section))
			return gy_err_set(err, -EBADMSG, "Cannot load a state of %u sections: it ends in section %u",
					  sections, i);
		memcpy(&section, blob->base + at, sizeof(section));
		if (section.bytes > blob->bytes || gy_blob_section_bytes(section.bytes) > blob->bytes - at)
			return gy_err_set(err, -EBADMSG,
					  "Cannot load a state: section %u has %llu bytes, only %llu are left", i,
					  (unsigned long long)section.bytes,
					  (unsigned long long)(blob->bytes - at - sizeof(section)));
		at += gy_blob_section_bytes(section.bytes);
	}
	if (at != blob->bytes)
		return gy_err_set(err, -EBADMSG, "Cannot load a state: %llu bytes follow its last section",
				  (unsigned long long)(blob->bytes - at));
	return 0;
}

int gy_blob_open(struct gy_blob *blob, const void *buf, uint64_t len, const struct gy_err *err)
{
	struct gy_blob_head head;
	int ret;

	if (len < sizeof(head) + GY_BLOB_DIGEST_BYTES)
		return gy_err_set(err, -EBADMSG, "Cannot load a state of %llu bytes: must be at least %zu",
				  (unsigned long long)len, sizeof(head) + GY_BLOB_DIGEST_BYTES);
	memcpy(&head, buf, sizeof(head));
	if (head.magic != GY_BLOB_MAGIC)
		return gy_err_set(err, -EBADMSG, "Cannot load a state that begins %#llx: must be %#llx",
				  (unsigned long long)head.magic, GY_BLOB_MAGIC);
	ret = check_digest(buf, len, err);
	if (ret)
		return ret;
	if (head.version != GY_BLOB_VERSION)
		return gy_err_set(err, -EPROTO, "Cannot load a state of version %u: must be %u", head.version,
				  GY_BLOB_VERSION);
	if (head.total_bytes != len)
		return gy_err_set(err, -EBADMSG, "Cannot load a state of %llu bytes: its head says %llu",
				  (unsigned long long)len, (unsigned long long)head.total_bytes);
	*blob = (struct gy_blob){ .base = buf, .bytes = len - GY_BLOB_DIGEST_BYTES };
	return check_sections(blob, head.sections, err);
}

const void *gy_blob_find(const struct gy_blob *blob, uint32_t type, uint32_t owner, uint64_t *bytes)
{
	uint64_t at = sizeof(struct gy_blob_head);
	struct gy_blob_section section;

	while (at < blob->bytes) {
		memcpy(&section, blob->base + at, sizeof(section));
		if (section.type == type && section.owner == owner) {
			*bytes = section.bytes;
			return blob->base + at + sizeof(section);
		}
		at += gy_blob_section_bytes(section.bytes);
	}
	return NULL;
}

int gy_blob_get(const struct gy_blob *blob, uint32_t type, uint32_t owner, void *data, uint64_t bytes,
		const struct gy_err *err)
{
	uint64_t have = 0;
	const void *from = gy_blob_find(blob, type, owner, &have);

	if (!from)
		return gy_err_set(err, -EBADMSG, "Cannot load a state without section %u of owner %d", type,
				  (int)owner);
	if (have != bytes)
		return gy_err_set(err, -EBADMSG,
				  "Cannot load a state: section %u of owner %d has %llu bytes, must be %llu", type,
				  (int)owner, (unsigned long long)have, (unsigned long long)bytes);
	memcpy(data, from, bytes);
	return 0;
}
