/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remote_call.h - single system calls made inside another process, stock QEMU, which knows nothing of it.
 *
 * Only the process's main thread stops, for a fraction of a millisecond. Needs CAP_SYS_PTRACE over it and no other
 * tracer. x86-64 only. The process may be of any user, without privilege, and under a filter of system calls. One that was
 * started with a helper in it (preload/helper.h) is asked instead, and not stopped.
 */
#ifndef GY_REMOTE_CALL_H
#define GY_REMOTE_CALL_H

#include <stdint.h>
#include <sys/types.h>

#include "err.h"

/*
 * A userfaultfd of the address space of process @pid; it has a copy of it open as *remote_fd. -errno: EPERM where it
 * may not make one and there is no /dev/userfaultfd here that this process may open, EBUSY where a debugger has it.
 */
int remote_userfaultfd(pid_t pid, int *remote_fd, const struct gy_err *err);

/*
 * The lowest descriptor of process @pid, from @from on, that is a userfaultfd with all of @features: one that an agent
 * before this one left there. -ENOENT: it has none; -errno.
 */
int remote_find_userfaultfd(pid_t pid, uint64_t features, int from);

/* Our own copy of descriptor @fd of process @pid. -errno. */
int remote_take(pid_t pid, int fd);

/* Closes descriptor @fd of process @pid. Nothing if the process is gone. */
void remote_close(pid_t pid, int fd);

#endif
