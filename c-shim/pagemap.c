// SPDX-License-Identifier: Apache-2.0
/* pagemap.c - see pagemap.h. */
#include "pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "gyges.h"

#define SCAN_ORDER _IOWR('f', 16, struct scan_arg)

int pagemap_open(pid_t pid, const char *name, int flags, const struct gy_err *err)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, flags | O_CLOEXEC);
	return fd < 0 ? gy_err_set(err, -errno, "cannot open %s: %s", path, strerror(errno)) : fd;
}

int pagemap_read(int pagemap, uint64_t address, uint64_t pages, uint64_t *words)
{
	uint8_t *buf = (uint8_t *)words;
	uint64_t done = 0, bytes = pages * sizeof(*words);

	while (done < bytes) {
		ssize_t n = pread(pagemap, buf + done, bytes - done,
				  (off_t)(address / GY_PAGE_BYTES * sizeof(*words) + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ESRCH;
		done += (uint64_t)n;
	}
	return 0;
}

int pagemap_scan(int pagemap, struct scan_arg *arg)
{
	int n;

	arg->size = sizeof(*arg);
	do {
		n = ioctl(pagemap, SCAN_ORDER, arg);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}
