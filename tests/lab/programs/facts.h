/* SPDX-License-Identifier: Apache-2.0 */
/*
 * facts.h - for programs that say what comes of what they do, one fact a line: NAME=OUTCOME. What may end a process by a
 * signal is done in a child.
 */
#ifndef FACTS_H
#define FACTS_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define MIB (1l << 20)

static const char *folder;
/* The file that most is done with, and its mapping. */
static int fd __attribute__((unused)) = -1;
static char *map __attribute__((unused));

static inline void fact(const char *name, const char *format, ...)
{
	va_list list;

	printf("%s=", name);
	va_start(list, format);
	vprintf(format, list);
	va_end(list);
	putchar('\n');
	fflush(stdout);
}

static inline void outcome(const char *name, long ret)
{
	fact(name, "%s", ret < 0 ? strerrorname_np(errno) : "ok");
}

static _Noreturn void give_up(const char *what)
{
	fact("broken", "%s: %s", what, strerrorname_np(errno));
	exit(1);
}

static inline char *path_of(const char *name)
{
	char *path;

	if (asprintf(&path, "%s/%s", folder, name) < 0)
		give_up("asprintf");
	return path;
}

static inline char *map_file(int file, long bytes, int flags)
{
	char *at = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, flags, file, 0);

	if (at == MAP_FAILED)
		give_up("mmap");
	return at;
}

/* Pages that fd has. */
static inline long blocks(void)
{
	struct stat st;

	if (fstat(fd, &st))
		give_up("fstat");
	return st.st_blocks / 8;
}

/* What a page is full of: 'a', '0' for zeros, '?' for a mixture. */
static inline char content(const char *page)
{
	for (int i = 1; i < PAGE; i++) {
		if (page[i] != page[0])
			return '?';
	}
	return page[0] ? page[0] : '0';
}

/* Runs @run in a child; what ended it: "ok", the name of a signal, or its exit code. */
static inline const char *ended(void (*run)(void))
{
	static char words[16];
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		run();
		exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		give_up("fork");
	if (WIFSIGNALED(status))
		return sigabbrev_np(WTERMSIG(status));
	snprintf(words, sizeof(words), "%d", WEXITSTATUS(status));
	return WEXITSTATUS(status) ? words : "ok";
}

struct check {
	const char *name;
	void (*run)(void);
};

/* Each in a child, and how it ended. */
static inline void run_checks(const struct check *checks, size_t n)
{
	for (size_t i = 0; i < n; i++)
		fact(checks[i].name, "%s", ended(checks[i].run));
}

#endif
