/* SPDX-License-Identifier: Apache-2.0 */
/* remote_thread.h - the main thread of another process, stopped for a moment, in which it makes system calls for us. */
#ifndef GY_REMOTE_THREAD_H
#define GY_REMOTE_THREAD_H

#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "err.h"

struct remote {
	pid_t pid;
	const struct gy_err *err;
	uint64_t syscall_at;	/* a `syscall` instruction of its own */
	struct user_regs_struct regs;
	uint64_t mask;		/* of blocked signals */
};

/* What is done while it is stopped, in a thread of its own; answers what remote_stopped() does, < 0 with words. */
typedef int64_t remote_visit(struct remote *remote, void *arg);

/* -errno besides what @visit answers, with the words in @err: EBUSY where a debugger has the process, ESRCH. */
int64_t remote_stopped(pid_t pid, remote_visit *visit, void *arg, const struct gy_err *err);

/* For visits: one system call. @args: its number, then up to four. Its result; -errno is its own, or has words. */
int64_t remote_syscall(struct remote *remote, const uint64_t args[5]);

/* For visits: where the process has @bytes that nobody uses for as long as it is stopped. */
uint64_t remote_scratch(const struct remote *remote, uint64_t bytes);

#endif
