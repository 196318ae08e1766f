// SPDX-License-Identifier: Apache-2.0
/* helper_start.c - see helper_start.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "helper_start.h"
#include "preload/helper.h"
#include "proc_status.h"

#define CAP_SYS_PTRACE_BIT (1ull << 19)
/* Above those that a program finds open. */
#define IMAGE_FD_MIN 16
#define WORDS_BYTES 512
#define NAME_OF(variable) variable, sizeof(variable) - 1

extern const uint8_t gy_helper_library[], gy_helper_library_end[];

static int yama_scope(void)
{
	FILE *setting = fopen("/proc/sys/kernel/yama/ptrace_scope", "re");
	int scope = 0;

	if (setting && fscanf(setting, "%d", &scope) != 1)
		scope = 0;
	if (setting)
		fclose(setting);
	return scope;
}

bool helper_is_wanted(void)
{
	unsigned long long capabilities = 0;
	int filtered = 0;

	proc_status(getpid(), "CapEff: %llx", &capabilities);
	proc_status(getpid(), "Seccomp: %d", &filtered);
	return !(capabilities & CAP_SYS_PTRACE_BIT) || filtered || yama_scope() > 2;
}

static int fill(int fd)
{
	const size_t bytes = (size_t)(gy_helper_library_end - gy_helper_library);

	return write(fd, gy_helper_library, bytes) == (ssize_t)bytes ? 0 : -EIO;
}

int helper_image(void)
{
	int made = memfd_create(HELPER_IMAGE_NAME, MFD_CLOEXEC);
	int fd = made < 0 ? -1 : fcntl(made, F_DUPFD_CLOEXEC, IMAGE_FD_MIN), ret;

	if (fd < 0) {
		ret = -errno;
		if (made >= 0)
			close(made);
		return ret;
	}
	close(made);
	ret = fill(fd);
	if (!ret)
		return fd;
	close(fd);
	return ret;
}

char **helper_environment(const char *path)
{
	const char *others = getenv("LD_PRELOAD");
	size_t n = 0, kept = 0, room;
	char **list, *words;

	while (environ[n])
		n++;
	room = WORDS_BYTES + (others ? strlen(others) : 0);
	list = malloc((n + 3) * sizeof(*list) + room);
	if (!list)
		return NULL;
	words = (char *)(list + n + 3);
	for (size_t i = 0; i < n; i++)
		if (strncmp(environ[i], NAME_OF("LD_PRELOAD=")) && strncmp(environ[i], NAME_OF(HELPER_VARIABLE "=")))
			list[kept++] = environ[i];
	list[kept++] = words;
	words += 1 + snprintf(words, room, "LD_PRELOAD=/proc/self/fd/%d%s%s", HELPER_IMAGE_FD, others ? ":" : "",
			      others ? others : "");
	list[kept++] = words;
	snprintf(words, WORDS_BYTES / 2, HELPER_VARIABLE "=%s", path);
	list[kept] = NULL;
	return list;
}
