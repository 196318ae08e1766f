/* SPDX-License-Identifier: Apache-2.0 */
/* thread.h - starting the shim's own threads inside somebody else's process. */
#ifndef GY_THREAD_H
#define GY_THREAD_H

#include <pthread.h>
#include <signal.h>

/* Starts a named thread that takes no signals: the process's handlers belong to Deno. 0 or -errno. */
static inline int thread_start(pthread_t *thread, const char *name, void *(*fn)(void *), void *arg)
{
	sigset_t all, before;
	int ret;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	ret = -pthread_create(thread, NULL, fn, arg);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!ret)
		pthread_setname_np(*thread, name);
	return ret;
}

#endif
