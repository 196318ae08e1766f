// SPDX-License-Identifier: Apache-2.0
/* kernel_module.c - loads and unloads gyges.ko, mounts its file system, and finds who uses that. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "gyges.h"

int gy_module_insert(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int ret;

	if (fd < 0)
		return -errno;
	ret = syscall(SYS_finit_module, fd, "", 0) ? -errno : 0;
	close(fd);
	return ret;
}

int gy_module_remove(const char *name)
{
	return syscall(SYS_delete_module, name, O_NONBLOCK) ? -errno : 0;
}

int gy_gygesfs_mount(const char *folder)
{
	return mount("gyges", folder, "gygesfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") ? -errno : 0;
}

int gy_gygesfs_unmount(const char *folder)
{
	return umount2(folder, UMOUNT_NOFOLLOW) ? -errno : 0;
}

/* ---- who uses it ---- */

/* Whether /proc/@pid/@name, a link, leads to @device. */
static bool leads_to(const char *pid, const char *name, dev_t device)
{
	char path[sizeof("/proc//") + 64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%.20s/%.40s", pid, name);
	return !stat(path, &st) && st.st_dev == device;
}

static bool has_open(const char *pid, dev_t device)
{
	char path[32 + sizeof("/proc//fd")], name[300];
	bool found = false;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	dir = opendir(path);
	if (!dir)
		return false;
	for (const struct dirent *entry = readdir(dir); entry && !found; entry = readdir(dir)) {
		snprintf(name, sizeof(name), "fd/%.20s", entry->d_name);
		found = entry->d_name[0] != '.' && leads_to(pid, name, device);
	}
	closedir(dir);
	return found;
}

static bool has_mapped(const char *pid, dev_t device)
{
	char path[32 + sizeof("/proc//maps")], *line = NULL;
	unsigned int major_id, minor_id;
	bool found = false;
	size_t room = 0;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%.20s/maps", pid);
	maps = fopen(path, "re");
	if (!maps)
		return false;
	/* ADDRESSES MODE OFFSET MAJOR:MINOR INODE PATH */
	while (!found && getline(&line, &room, maps) > 0)
		found = sscanf(line, "%*s %*s %*s %x:%x", &major_id, &minor_id) == 2 &&
			makedev(major_id, minor_id) == device;
	free(line);
	fclose(maps);
	return found;
}

static bool uses(const char *pid, dev_t device)
{
	return has_open(pid, device) || leads_to(pid, "cwd", device) || leads_to(pid, "root", device) ||
	       has_mapped(pid, device);
}

static void name_of(const char *pid, char *name, size_t size)
{
	char path[32 + sizeof("/proc//comm")];
	ssize_t n = -1;
	int fd;

	snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, name, size - 1);
		close(fd);
	}
	name[n > 0 ? n : 0] = '\0';
	name[strcspn(name, "\n")] = '\0';
}

int64_t gy_mount_users(const char *folder, char *text, uint64_t cap)
{
	struct stat st;
	uint64_t done = 0;
	DIR *proc;

	if (stat(folder, &st))
		return -errno;
	proc = opendir("/proc");
	if (!proc)
		return -errno;
	for (const struct dirent *entry = readdir(proc); entry; entry = readdir(proc)) {
		char line[64], name[32];
		int n;

		if (entry->d_name[0] < '1' || entry->d_name[0] > '9' || !uses(entry->d_name, st.st_dev))
			continue;
		name_of(entry->d_name, name, sizeof(name));
		n = snprintf(line, sizeof(line), "%.20s %s\n", entry->d_name, name);
		if (done + (uint64_t)n > cap)
			break;
		memcpy(text + done, line, (size_t)n);
		done += (uint64_t)n;
	}
	closedir(proc);
	return (int64_t)done;
}
