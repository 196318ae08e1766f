/* SPDX-License-Identifier: Apache-2.0 */
/* thread.h - starting the shim's own threads inside somebody else's process. */
#ifndef GY_THREAD_H
#define GY_THREAD_H

#include <pthread.h>
#include <sched.h>
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

/*
 * A vCPU waits for what this thread does: it runs as soon as it is woken, not when the prefetch threads' time slice
 * is up, which is milliseconds away. It sleeps far more than it runs. Without the privilege it stays as it is.
 */
static inline void thread_make_urgent(pthread_t thread)
{
	struct sched_param param = { .sched_priority = 1 };

	pthread_setschedparam(thread, SCHED_FIFO, &param);
}

#endif
