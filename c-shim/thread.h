/* SPDX-License-Identifier: Apache-2.0 */
/* thread.h - starting the shim's own threads inside somebody else's process. */
#ifndef GY_THREAD_H
#define GY_THREAD_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREAD_URGENT_NICE (-20)
#define THREAD_URGENT_SLICE_NS 100000u	/* the shortest that there is */

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

/* struct sched_attr, which <linux/sched/types.h> has beside a struct that <sched.h> has as well. */
struct thread_attr {
	uint32_t size;
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime_ns;
	uint64_t deadline_ns;
	uint64_t period_ns;
};

/*
 * A vCPU waits for what the calling thread does: it runs as soon as it is woken, not when the prefetch threads' time
 * slice is up, which is milliseconds away. It sleeps far more than it runs. By a short slice (Linux 6.12 or later) and, with
 * the privilege, its weight; not by a real-time policy, which wakes it on the CPU that it last ran on instead of the one
 * that has woken it, and for a vCPU that costs more than the work. What is refused stays as it is.
 */
static inline void thread_be_urgent(void)
{
	struct thread_attr attr = {
		.size = sizeof(attr),
		.policy = SCHED_OTHER,
		.nice = THREAD_URGENT_NICE,
		.runtime_ns = THREAD_URGENT_SLICE_NS,
	};

	if (!syscall(SYS_sched_setattr, 0, &attr, 0))
		return;
	attr.nice = getpriority(PRIO_PROCESS, 0);
	syscall(SYS_sched_setattr, 0, &attr, 0);
}

#endif
