/* SPDX-License-Identifier: Apache-2.0 */
/* ram.h - the RAM file inside the shim. */
#ifndef GY_RAM_H
#define GY_RAM_H

#include <stdbool.h>
#include <sys/types.h>

#include "gyges.h"

#define RAM_MAX_PIECES 16u

/* A stretch of RAM that is one file. */
struct ram_piece {
	uint64_t first;		/* its first byte within RAM */
	uint64_t bytes;
	uint64_t address;	/* of its first byte in the guest's process */
	int fd;
	uint64_t file_offset;
};

struct gy_ram {
	uint64_t bytes;
	uint64_t pages;
	/*
	 * The guest's mapping: KVM's memslots and userfaultfd use it. A missing page read here by one of our own
	 * threads would wait for itself; only vCPU threads dereference it, on purpose, after a restore (kvm_run.c).
	 * NULL where the guest is another process's.
	 */
	uint8_t *guest;
	/* The agent's mapping of all pieces: pre-copied pages are written here, pages to send are read here. */
	uint8_t *alias;
	/* The guest's process; 0: this one. */
	pid_t pid;
	uint32_t n_pieces;
	struct ram_piece piece[RAM_MAX_PIECES];	/* in order, without gaps once all are there */
};

/* Of a whole page, aligned. */
static inline bool ram_is_zero(const uint8_t *page)
{
	const uint64_t *word = (const uint64_t *)page;

	for (uint32_t i = 0; i < GY_PAGE_BYTES / 8; i += 8) {
		if (word[i] | word[i + 1] | word[i + 2] | word[i + 3] | word[i + 4] | word[i + 5] | word[i + 6] |
		    word[i + 7])
			return false;
	}
	return true;
}

/* The piece that has byte @offset of RAM. */
const struct ram_piece *ram_piece_at(const struct gy_ram *ram, uint64_t offset);

/* Where the guest's process has @page. */
uint64_t ram_address_of(const struct gy_ram *ram, uint64_t page);

/* The page at @address of the guest's process; ram->pages if none is there. */
uint64_t ram_page_at(const struct gy_ram *ram, uint64_t address);

/* Frees the pages of [offset, offset + len); both page-aligned. 0 or -errno. */
int gy_ram_punch(struct gy_ram *ram, uint64_t offset, uint64_t len);

/*
 * First byte at or after @offset that lies in an allocated page (want_data) or in a hole (!want_data),
 * at most ram->bytes. Costs one step per extent, not per page, over holes. -errno on failure.
 */
int64_t gy_ram_seek(struct gy_ram *ram, uint64_t offset, int want_data);

#endif
