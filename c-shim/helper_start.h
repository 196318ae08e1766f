/* SPDX-License-Identifier: Apache-2.0 */
/* helper_start.h - what a program needs to be started with the helper of preload/helper.h in it. */
#ifndef GY_HELPER_START_H
#define GY_HELPER_START_H

#include <stdbool.h>

/*
 * Whether this process may not trace others, or it is not sure that it may: it lacks CAP_SYS_PTRACE, kernel.yama.ptrace_scope
 * is 3, or it is under a filter of system calls, as containers are.
 */
bool helper_is_wanted(void);

/* The library in memory, for HELPER_IMAGE_FD, above all descriptors that a program is given. -errno. */
int helper_image(void);

/* Our environment, and in it what has the library loaded and tells it of socket @path. NULL: no memory. free() it. */
char **helper_environment(const char *path);

#endif
