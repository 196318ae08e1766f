/* SPDX-License-Identifier: Apache-2.0 */
/* uffd.h - userfaultfd over one mapping: open, read faults, resolve them. */
#ifndef GY_UFFD_H
#define GY_UFFD_H

#include <stdbool.h>
#include <stdint.h>

struct uffd {
	int fd;
	uint8_t *base;
	uint64_t bytes;
};

struct uffd_fault {
	uint64_t page;
	uint32_t tid;
};

/* Opens a descriptor that also catches faults of the kernel (KVM), and registers [base, base + bytes) for MISSING. */
int uffd_open(struct uffd *uffd, uint8_t *base, uint64_t bytes, char *err, uint32_t err_bytes);
void uffd_close(struct uffd *uffd);
/* Makes the range ordinary memory again and wakes every waiter. */
int uffd_unregister(struct uffd *uffd);
/* Faults now waiting, at most @max; 0 if there are none. */
int uffd_read(struct uffd *uffd, struct uffd_fault *faults, uint32_t max);
/*
 * Installs pages and wakes who waits for them. A page that is already there is left alone, woken, and counted in
 * *existed. -ESRCH: the guest's process is gone.
 */
int uffd_copy(struct uffd *uffd, uint64_t page, uint32_t count, const uint8_t *data, uint64_t *existed);
int uffd_zero(struct uffd *uffd, uint64_t page);
int uffd_wake(struct uffd *uffd, uint64_t page, uint64_t count);

#endif
