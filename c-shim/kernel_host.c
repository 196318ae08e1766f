// SPDX-License-Identifier: Apache-2.0
/* kernel_host.c - whether this host has what the kernel pager needs. */
#include <dirent.h>
#include <errno.h>
#include <linux/gyges.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "gyges.h"

int gy_kernel_at(const char *folder)
{
	struct statfs fs;

	if (statfs(folder, &fs))
		return -errno;
	if (fs.f_type != GYGES_MAGIC)
		return -ENOTTY;
	return access(folder, W_OK | X_OK) ? -errno : 0;
}

int gy_rdma_devices(void)
{
	DIR *dir = opendir("/sys/class/infiniband");
	int n = 0;

	if (!dir)
		return 0;
	for (const struct dirent *entry = readdir(dir); entry; entry = readdir(dir))
		n += entry->d_name[0] != '.';
	closedir(dir);
	return n;
}
