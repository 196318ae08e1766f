/* SPDX-License-Identifier: Apache-2.0 */
/* ram.h - the RAM file inside the shim. */
#ifndef GY_RAM_H
#define GY_RAM_H

#include "gyges.h"

struct gy_ram {
	uint64_t bytes;
	uint64_t pages;
	/*
	 * The guest's mapping: KVM's memslots and userfaultfd use it. A missing page read here by one of our own
	 * threads would wait for itself; only vCPU threads dereference it, on purpose, after a restore (kvm_run.c).
	 */
	uint8_t *guest;
	/* The agent's mapping: pre-copied pages are written here, pages to send are read here. */
	uint8_t *alias;
	int fd;
};

/* Frees the pages of [offset, offset + len); both page-aligned. 0 or -errno. */
int gy_ram_punch(struct gy_ram *ram, uint64_t offset, uint64_t len);

/*
 * First byte at or after @offset that lies in an allocated page (want_data) or in a hole (!want_data),
 * at most ram->bytes. Costs one step per extent, not per page, over holes. -errno on failure.
 */
int64_t gy_ram_seek(struct gy_ram *ram, uint64_t offset, int want_data);

#endif
