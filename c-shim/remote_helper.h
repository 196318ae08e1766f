/* SPDX-License-Identifier: Apache-2.0 */
/* remote_helper.h - userfaultfds of another process by what was preloaded into it, see preload/helper.h. */
#ifndef GY_REMOTE_HELPER_H
#define GY_REMOTE_HELPER_H

#include <sys/types.h>

#include "preload/helper.h"

/*
 * Orders the helper of process @pid. What it answers, and where that is a descriptor our copy of it in *copy. -errno:
 * ENOENT where the process has no helper, ETIMEDOUT, or the helper's own.
 */
int remote_helper(pid_t pid, enum helper_order order, int fd, int *copy);

#endif
