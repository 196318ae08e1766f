// SPDX-License-Identifier: Apache-2.0
/*
 * mapper.c - another process that maps the RAM of a QEMU's guest, as the back end of a vhost-user device does, and reads
 * the pages that the guest has stamped (tests/qemu/programs/guest_stamp.c).
 *
 *     mapper list PID               a line each: OFFSET PAGE VERSION
 *     mapper read PID FILE FIRST N  reads N pages that FILE lists, in an order without a pattern, from the FIRSTth of it
 *
 * `read` prints absent=N: how many were not in this host's memory when they were touched; moved=N: pages that the guest
 * uses for something else by now; whole=N, stale=N, zero=N, torn=N of the others. The guest writes meanwhile, so a page
 * that does not fit is looked at again for a while.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

/* Of the kernel pager's guests, and the user pager's. */
#define FOLDERS { " /run/gyges/ram/", " /dev/shm/" }
#define MAX_PAGES 65536u
#define STRIDE 7919u /* a prime, and no divisor of what a guest has */
#define LOOKS 50
#define PAUSE_US 10000

struct listed {
	unsigned long offset, page, version;
};

static struct listed list[MAX_PAGES];
static uint64_t copy[PAGE_WORDS];

static _Noreturn void give_up(const char *what)
{
	perror(what);
	exit(1);
}

static bool is_ram(const char *mapping)
{
	static const char *const folders[] = FOLDERS;

	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
		if (strstr(mapping, folders[i]))
			return true;
	}
	return false;
}

/* Opens the file of process @pid that its guest's RAM is in; it has no name any more. */
static int open_ram(const char *pid)
{
	char path[512], line[512], range[64];
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%s/maps", pid);
	maps = fopen(path, "r");
	if (!maps)
		give_up(path);
	while (fgets(line, sizeof(line), maps)) {
		if (!is_ram(line) || sscanf(line, "%63s", range) != 1)
			continue;
		fclose(maps);
		snprintf(path, sizeof(path), "/proc/%s/map_files/%s", pid, range);
		return open(path, O_RDWR | O_CLOEXEC);
	}
	fprintf(stderr, "process %s maps no file that a guest's RAM may be in\n", pid);
	exit(1);
}

static uint8_t *map_ram(const char *pid, size_t *bytes)
{
	int file = open_ram(pid);
	struct stat stat;
	void *ram;

	if (file < 0 || fstat(file, &stat))
		give_up("the RAM's file");
	ram = mmap(NULL, (size_t)stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (ram == MAP_FAILED)
		give_up("mmap");
	*bytes = (size_t)stat.st_size;
	return ram;
}

static bool absent(uint8_t *page)
{
	unsigned char in_memory;

	if (mincore(page, PAGE, &in_memory))
		give_up("mincore");
	return !(in_memory & 1);
}

/* To look at what is not in memory would put it there. */
static void list_stamps(uint8_t *ram, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += PAGE) {
		const uint64_t *words = (const uint64_t *)(ram + at);

		if (!absent(ram + at) && words[0] == STAMP_MAGIC)
			printf("%lu %lu %lu\n", at, words[1], words[2]);
	}
}

static unsigned int read_list(const char *path)
{
	FILE *file = fopen(path, "r");
	unsigned int n = 0;

	if (!file)
		give_up(path);
	while (n < MAX_PAGES && fscanf(file, "%lu %lu %lu", &list[n].offset, &list[n].page, &list[n].version) == 3)
		n++;
	fclose(file);
	return n;
}

/* How the page is, at best; false: the guest has something else there. */
static bool look(const uint8_t *page, const struct listed *listed, enum damage *damage)
{
	for (int looks = LOOKS; looks > 0; looks--, usleep(PAUSE_US)) {
		struct stamp want, got;

		memcpy(copy, page, PAGE);
		want = (struct stamp){ listed->page, copy[2] };
		*damage = stamp_check(copy, want, &got);
		if (*damage == WHOLE && copy[2] < listed->version)
			*damage = STALE;
		if (*damage == TORN && copy[0] != STAMP_MAGIC)
			return false;
		if (*damage == WHOLE)
			break;
	}
	return true;
}

static void read_some(uint8_t *ram, size_t bytes, unsigned int pages, unsigned int first, unsigned int wanted)
{
	unsigned int were_absent = 0, moved = 0, found[TORN + 1] = { 0 };

	for (unsigned int n = first; n < pages && n - first < wanted; n++) {
		const struct listed *listed = &list[(unsigned long)n * STRIDE % pages];
		enum damage damage;

		if (listed->offset >= bytes)
			give_up("an offset of the list");
		were_absent += absent(ram + listed->offset);
		if (look(ram + listed->offset, listed, &damage))
			found[damage]++;
		else
			moved++;
	}
	printf("absent=%u moved=%u whole=%u stale=%u zero=%u torn=%u\n", were_absent, moved, found[WHOLE], found[STALE],
	       found[ZERO], found[TORN]);
}

int main(int argc, char **argv)
{
	uint8_t *ram;
	size_t bytes;

	if (argc < 3 || (!strcmp(argv[1], "read") && argc < 6)) {
		fprintf(stderr, "usage: mapper list PID | read PID FILE FIRST N\n");
		return 2;
	}
	ram = map_ram(argv[2], &bytes);
	if (!strcmp(argv[1], "list"))
		list_stamps(ram, bytes);
	else
		read_some(ram, bytes, read_list(argv[3]), (unsigned int)atoi(argv[4]), (unsigned int)atoi(argv[5]));
	return 0;
}
