/* SPDX-License-Identifier: Apache-2.0 */
/* detach.h - processes that are nobody's children: they outlive us, and nobody here need wait for them. */
#ifndef GY_DETACH_H
#define GY_DETACH_H

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * Runs @work in a process in a session of its own, which ends with it. As after any fork() in a process with threads, it
 * may make system calls and little else. 0 or -errno.
 */
static inline int gy_detach(void (*work)(void *), void *arg)
{
	pid_t child = fork();

	if (!child) {
		setsid();
		if (!fork())
			work(arg);
		_exit(0);
	}
	if (child < 0)
		return -errno;
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	return 0;
}

#endif
