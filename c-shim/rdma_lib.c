// SPDX-License-Identifier: Apache-2.0
/* rdma_lib.c - see rdma_lib.h. */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "gyges.h"
#include "rdma_lib.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct rdma_lib lib;
static bool opened;

/* The library stays for good: what it has made may live as long as the process. */
static void *open_library(const char *name, const struct gy_err *err)
{
	void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);

	if (!library)
		gy_err_set(err, 0, "%s cannot be opened (%s)", name, dlerror());
	return library;
}

static void *find(void *library, const char *name, const struct gy_err *err)
{
	void *symbol = dlsym(library, name);

	if (!symbol)
		gy_err_set(err, 0, "the RDMA libraries are too old, they have no %s()", name);
	return symbol;
}

static bool open_all(const struct gy_err *err)
{
	void *verbs = open_library("libibverbs.so.1", err);
	void *cm = verbs ? open_library("librdmacm.so.1", err) : NULL;

	if (!cm)
		return false;
#define FIND_IN(library, name) \
	lib.name = (__typeof__(lib.name))find(library, #name, err); \
	if (!lib.name) \
		return false;
#define FIND_VERB(name) FIND_IN(verbs, name)
#define FIND_CM(name) FIND_IN(cm, name)
	RDMA_LIB_VERBS(FIND_VERB)
	RDMA_LIB_CM(FIND_CM)
	return true;
}

const struct rdma_lib *rdma_lib_open(const struct gy_err *err)
{
	bool ok;

	pthread_mutex_lock(&lock);
	if (!opened)
		opened = open_all(err);
	ok = opened;
	pthread_mutex_unlock(&lock);
	return ok ? &lib : NULL;
}

int gy_rdma_usable(char *err, uint32_t err_bytes)
{
	struct gy_err words = { err, err_bytes };
	const struct rdma_lib *rdma = rdma_lib_open(&words);
	struct ibv_device **devices;
	int n = 0;

	if (!rdma)
		return -ENOENT;
	devices = rdma->ibv_get_device_list(&n);
	if (devices)
		rdma->ibv_free_device_list(devices);
	if (!devices || !n)
		return gy_err_set(&words, -ENODEV, "this host has no RDMA device");
	return 0;
}

int rdma_lib_errno(int result)
{
	return result ? -errno : 0;
}

int rdma_address_read(const char *host, uint32_t port, union rdma_address *address)
{
	memset(address, 0, sizeof(*address));
	if (port > UINT16_MAX)
		return -EINVAL;
	if (inet_pton(AF_INET, host, &address->in.sin_addr) == 1) {
		address->in.sin_family = AF_INET;
		address->in.sin_port = htons((uint16_t)port);
		return 0;
	}
	if (inet_pton(AF_INET6, host, &address->in6.sin6_addr) != 1)
		return -EINVAL;
	address->in6.sin6_family = AF_INET6;
	address->in6.sin6_port = htons((uint16_t)port);
	return 0;
}

int rdma_channel_open(const struct rdma_lib *rdma, struct rdma_event_channel **out)
{
	struct rdma_event_channel *channel = rdma->rdma_create_event_channel();
	int flags;

	if (!channel)
		return -errno;
	flags = fcntl(channel->fd, F_GETFL);
	if (flags < 0 || fcntl(channel->fd, F_SETFL, flags | O_NONBLOCK)) {
		int ret = -errno;

		rdma->rdma_destroy_event_channel(channel);
		return ret;
	}
	*out = channel;
	return 0;
}

int rdma_next_event(const struct rdma_lib *rdma, struct rdma_event_channel *channel, uint64_t deadline_ns,
		    struct rdma_cm_event **event)
{
	struct pollfd p = { .fd = channel->fd, .events = POLLIN };
	int n;

	for (;;) {
		if (!rdma->rdma_get_cm_event(channel, event))
			return 0;
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		n = poll(&p, 1, ms_until(deadline_ns));
		if (n < 0 && errno != EINTR)
			return -errno;
		if (!n)
			return -ETIMEDOUT;
	}
}

/* CAP_IPC_LOCK: no limit. Asked of the kernel, because a container may have taken it from root. */
static bool may_lock_all(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	return !syscall(SYS_capget, &head, data) && data[0].effective & (1u << CAP_IPC_LOCK);
}

int rdma_pin_failed(const struct gy_err *err, int error, uint64_t bytes)
{
	struct rlimit limit = { 0 };

	if (error == -ENOMEM && !may_lock_all() && !getrlimit(RLIMIT_MEMLOCK, &limit) && limit.rlim_cur != RLIM_INFINITY)
		return gy_err_set(err, error, "%llu KiB cannot be pinned for RDMA: the locked-memory limit is %llu KiB",
				  (unsigned long long)bytes >> 10, (unsigned long long)limit.rlim_cur >> 10);
	return gy_err_set(err, error, "%llu KiB cannot be registered for RDMA: %s",
			  (unsigned long long)bytes >> 10, strerror(-error));
}

int rdma_may_pin(uint64_t bytes, const struct gy_err *err)
{
	struct rlimit limit;

	if (may_lock_all() || getrlimit(RLIMIT_MEMLOCK, &limit) || limit.rlim_cur == RLIM_INFINITY ||
	    limit.rlim_cur >= bytes)
		return 0;
	return rdma_pin_failed(err, -ENOMEM, bytes);
}
