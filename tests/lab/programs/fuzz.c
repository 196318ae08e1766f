/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz.c - orders to gygesfs that nobody would give: commands near ours, structs with wrong values, wrong pointers, from
 * several threads, on files in several states, while another process touches, punches, truncates and closes them.
 *
 *     fuzz FOLDER ADDRESS SEED COUNT       ADDRESS: this host's, of an RDMA device
 *
 * Ends by saying how many orders were given and how many were obeyed. Whether the kernel minds is for its log to say.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/gyges.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILES 4u
#define THREADS 4u
#define PAGE 4096u
#define BUFFER (16u * PAGE)

static const char *folder, *address;
static const unsigned int file_pages[FILES] = { 1, 64, 100, 512 };
static int fds[FILES * 2];			/* for writing, then for reading only */
static _Atomic(unsigned short) last_port;
static _Atomic(unsigned long) given, obeyed;
static unsigned long per_thread;

static const unsigned long commands[] = {
	GYGES_IOC_VERSION, GYGES_IOC_STATE, GYGES_IOC_STATS, GYGES_IOC_PRESENT, GYGES_IOC_DIRTY_START,
	GYGES_IOC_DIRTY_ROUND, GYGES_IOC_DIRTY_STOP, GYGES_IOC_EXPORT_REGIONS, GYGES_IOC_EXPORT_END,
	GYGES_IOC_IMPORT_REGIONS, GYGES_IOC_IMPORT_ROUND, GYGES_IOC_IMPORT_END_ROUND, GYGES_IOC_IMPORT_DISCARD,
	GYGES_IOC_IMPORT_ARM, GYGES_IOC_IMPORT_RUN, GYGES_IOC_IMPORT_DROP, GYGES_IOC_IMPORT_END, GYGES_IOC_PREFETCH,
	GYGES_IOC_IMPORT_ABANDON,
};

static unsigned long next_random(unsigned long *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static unsigned long below(unsigned long *seed, unsigned long limit)
{
	return next_random(seed) % limit;
}

static void open_file(unsigned int i)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/fuzz-%u", folder, i);
	fds[i] = open(path, O_RDWR | O_CREAT, 0600);
	if (fds[i] < 0 || ftruncate(fds[i], (off_t)file_pages[i] * PAGE)) {
		perror(path);
		exit(1);
	}
	fds[FILES + i] = open(path, O_RDONLY);
}

static void *odd_pointer(unsigned long *seed, unsigned char *buffer)
{
	switch (below(seed, 12)) {
	case 0: return NULL;
	case 1: return (void *)0xffffffff81000000ul;
	case 2: return buffer + BUFFER - 8;		/* the page behind it is not there */
	case 3: return (void *)next_random(seed);
	default: return buffer + PAGE;
	}
}

static unsigned long odd_number(unsigned long *seed, unsigned long right)
{
	switch (below(seed, 8)) {
	case 0: return 0;
	case 1: return right + 1;
	case 2: return next_random(seed);
	case 3: return ~0ul >> below(seed, 64);
	default: return right;
	}
}

/* What an order takes, mostly right. All structs but the endpoint begin with what this fills. */
static void fill(unsigned long *seed, unsigned char *buffer, unsigned int file)
{
	struct gyges_round *round = (void *)buffer;
	struct gyges_regions *regions = (void *)buffer;
	struct gyges_region *table = (void *)(buffer + 8 * PAGE);
	unsigned long *bits = (void *)(buffer + PAGE);
	unsigned int pages = file_pages[file], step = 1 + (unsigned int)below(seed, 64);

	memset(buffer, 0, PAGE);
	for (unsigned int i = 0; i < 64; i++)
		bits[i] = 0;
	for (unsigned int i = below(seed, pages); i < pages; i += 1 + below(seed, 9))
		bits[i / 64] |= 1ul << i % 64;
	if (below(seed, 2)) {
		round->set.words_ptr = (unsigned long)odd_pointer(seed, buffer);
		round->set.words = odd_number(seed, (pages + 63) / 64);
		round->deadline_ms = (unsigned int)below(seed, 20);
	} else {
		for (unsigned int i = 0; i < 8; i++)
			table[i] = (struct gyges_region){
				.first_page = odd_number(seed, i * step),
				.remote_addr = next_random(seed),
				.pages = (unsigned int)odd_number(seed, step),
				.rkey = (unsigned int)next_random(seed),
			};
		regions->regions_ptr = (unsigned long)(below(seed, 8) ? (void *)table : odd_pointer(seed, buffer));
		regions->capacity = (unsigned int)odd_number(seed, 1 + below(seed, 8));
	}
	if (!below(seed, 6))
		buffer[below(seed, 64)] ^= 1u << below(seed, 8);
}

static void endpoint(unsigned long *seed, struct gyges_endpoint *end, bool import)
{
	struct sockaddr_in in = { .sin_family = AF_INET };

	memset(end, 0, sizeof(*end));
	inet_pton(AF_INET, below(seed, 5) ? address : "127.0.0.1", &in.sin_addr);
	if (import)
		in.sin_port = htons(below(seed, 4) ? atomic_load(&last_port) : (unsigned short)next_random(seed));
	memcpy(end->addr, &in, sizeof(in));
	end->timeout_ms = import ? 1 + (unsigned int)below(seed, 200) : 0;
	end->flags = import ? GYGES_IMPORT_OVERWRITE : 0;
	if (!below(seed, 8))
		((unsigned char *)end)[below(seed, sizeof(*end))] ^= 1u << below(seed, 8);
	/* Not for ten minutes, whatever else is wrong with it. */
	end->timeout_ms %= 1000;
}

static int connect_something(unsigned long *seed, unsigned char *buffer, int fd)
{
	struct gyges_endpoint *end = (void *)buffer;
	bool import = below(seed, 2);
	struct sockaddr_in in;
	int ret;

	endpoint(seed, end, import);
	ret = ioctl(fd, import ? GYGES_IOC_IMPORT : GYGES_IOC_EXPORT, end);
	if (!ret && !import) {
		memcpy(&in, end->addr, sizeof(in));
		atomic_store(&last_port, ntohs(in.sin_port));
	}
	return ret;
}

static unsigned long odd_command(unsigned long *seed)
{
	unsigned long right = commands[below(seed, sizeof(commands) / sizeof(commands[0]))];

	/* Abandoning is for good, so it is rare. */
	if (right == GYGES_IOC_IMPORT_ABANDON && below(seed, 50))
		right = GYGES_IOC_STATE;
	return below(seed, 20) ? right : right ^ 1ul << below(seed, 32);
}

static void *give_orders(void *arg)
{
	unsigned long seed = (unsigned long)arg;
	unsigned char *buffer = mmap(NULL, BUFFER + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	mprotect(buffer + BUFFER, PAGE, PROT_NONE);
	for (unsigned long i = 0; i < per_thread; i++) {
		unsigned int which = (unsigned int)below(&seed, FILES * 2);
		int ret;

		if (!below(&seed, 400)) {
			ret = connect_something(&seed, buffer, fds[which]);
		} else {
			fill(&seed, buffer, which % FILES);
			ret = ioctl(fds[which], odd_command(&seed),
				    below(&seed, 16) ? (void *)buffer : odd_pointer(&seed, buffer));
		}
		atomic_fetch_add(&given, 1);
		atomic_fetch_add(&obeyed, ret >= 0);
	}
	return NULL;
}

/* In a process of its own: a touch of a page that never comes ends with it alone. */
static void disturb(unsigned long seed)
{
	for (;;) {
		unsigned int file = (unsigned int)below(&seed, FILES);
		size_t bytes = (size_t)file_pages[file] * PAGE;
		off_t at = (off_t)below(&seed, file_pages[file]) * PAGE;
		unsigned char *map;
		char byte;

		switch (below(&seed, 5)) {
		case 0:
			fallocate(fds[file], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, PAGE);
			break;
		case 1:
			(void)!ftruncate(fds[file], (off_t)bytes + PAGE);
			(void)!ftruncate(fds[file], (off_t)bytes);
			break;
		case 2:
			close(fds[FILES + file]);
			open_file(file);
			break;
		case 3:
			(void)!pread(fds[file], &byte, 1, at);
			break;
		default:
			map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[file], 0);
			if (map == MAP_FAILED)
				break;
			map[at] ^= (unsigned char)seed;
			munmap(map, bytes);
		}
	}
}

/* A disturber that an abandoned page has killed, or that waits for one for ever, is replaced. */
static pid_t disturber(unsigned long seed)
{
	pid_t pid = fork();

	if (!pid)
		disturb(seed);
	return pid;
}

int main(int argc, char **argv)
{
	pthread_t thread[THREADS];
	unsigned long seed;
	pid_t child = -1;

	if (argc != 5)
		return 2;
	folder = argv[1];
	address = argv[2];
	seed = strtoul(argv[3], NULL, 0) | 1;
	per_thread = strtoul(argv[4], NULL, 0) / THREADS;
	for (unsigned int i = 0; i < FILES; i++)
		open_file(i);
	for (unsigned int i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, give_orders, (void *)(seed * (2 * i + 3)));
	while (atomic_load(&given) < per_thread * THREADS) {
		if (child > 0) {
			kill(child, SIGKILL);
			waitpid(child, NULL, 0);
		}
		child = disturber(next_random(&seed) | 1);
		usleep(200000);
	}
	for (unsigned int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	printf("given=%lu obeyed=%lu\n", atomic_load(&given), atomic_load(&obeyed));
	for (unsigned int i = 0; i < FILES; i++) {
		char path[256];

		snprintf(path, sizeof(path), "%s/fuzz-%u", folder, i);
		unlink(path);
	}
	return 0;
}
