/* SPDX-License-Identifier: Apache-2.0 */
/* uffd.h - userfaultfd over guest RAM, of this process or of another: open, read faults, resolve them. */
#ifndef GY_UFFD_H
#define GY_UFFD_H

#include <stdbool.h>
#include <stdint.h>

struct gy_ram;

struct uffd {
	int fd;
	const struct gy_ram *ram;
	/*
	 * The guest's own copy of the descriptor, in its process; -1: the guest is in this one. As long as it is open a
	 * fault waits: if the last copy went with the agent, whoever waits would read zeros.
	 */
	int remote_fd;
};

struct uffd_fault {
	uint64_t page;
	uint32_t tid;
};

/*
 * Opens a descriptor that also catches faults of the kernel (KVM), in the guest's process, and registers all of @ram
 * for MISSING.
 */
int uffd_open(struct uffd *uffd, const struct gy_ram *ram, char *err, uint32_t err_bytes);
/*
 * Goes on with the descriptor that uffd_open() made in the guest's process, which the agent that called it has not
 * outlived. -ENOENT: there is none, as uffd_unregister() came before.
 */
int uffd_take_over(struct uffd *uffd, const struct gy_ram *ram, char *err, uint32_t err_bytes);
/* The guest's copy stays open unless uffd_unregister() came before. */
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
int uffd_wake(struct uffd *uffd, uint64_t page);
/* Whoever waits, whether or not its fault was read, faults anew. */
int uffd_wake_all(struct uffd *uffd);

#endif
