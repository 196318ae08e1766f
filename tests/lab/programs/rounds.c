// SPDX-License-Identifier: Apache-2.0
/*
 * rounds.c - dirty rounds of a RAM file while a slow disk reads into its memory by direct I/O.
 *
 *     rounds FOLDER DISK rounds       copies what each round says to a second memory, and compares the two in the end
 *     rounds FOLDER DISK resize N     N times: I/O under way, memory unmapped, tracking begun and ended, file resized
 *     rounds FOLDER DISK given-back   rounds that end in EFAULT, and by a signal: the pages that the next does not say
 *     rounds FOLDER DISK present MIB  how long the look at what is present takes
 *
 * DISK has to be slow: its pages arrive one after the other, long after they were asked for. The last two do not use it.
 */
#define _GNU_SOURCE
#include <linux/aio_abi.h>
#include <linux/gyges.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include "facts.h"

#define READ_PAGES 48			/* the disk reads into the first half of the file */
#define PAGES (2l * READ_PAGES)		/* and this process writes to the other */
#define BYTES (PAGES * PAGE)
#define TURNS 3
#define STRIDE (2l * PAGE)		/* apart, so that requests are not merged */

static aio_context_t context;
static struct iocb block[READ_PAGES];
static int device;
static char *destination;

static void order(unsigned long request, void *arg)
{
	if (ioctl(fd, request, arg))
		give_up("ioctl");
}

static void open_all(const char *disk)
{
	device = open(disk, O_RDWR | O_DIRECT);
	fd = open(path_of("rounds"), O_RDWR | O_CREAT, 0600);
	if (device < 0 || fd < 0 || ftruncate(fd, BYTES) || syscall(SYS_io_setup, READ_PAGES, &context))
		give_up(disk);
	map = map_file(fd, BYTES, MAP_SHARED);
	memset(map, '-', BYTES);
}

static void fill_disk(void)
{
	static char page[PAGE] __attribute__((aligned(PAGE)));

	for (long i = 0; i < TURNS * READ_PAGES; i++) {
		memset(page, 'a' + (int)(i / READ_PAGES), PAGE);
		if (pwrite(device, page, PAGE, i * STRIDE) != PAGE)
			give_up("pwrite");
	}
}

/* Asks the disk for the pages of one turn. */
static void submit(int turn)
{
	struct iocb *list[READ_PAGES];

	for (int i = 0; i < READ_PAGES; i++) {
		block[i] = (struct iocb){
			.aio_fildes = (uint32_t)device,
			.aio_lio_opcode = IOCB_CMD_PREAD,
			.aio_buf = (uintptr_t)(map + (long)i * PAGE),
			.aio_nbytes = PAGE,
			.aio_offset = (turn * READ_PAGES + i) * STRIDE,
		};
		list[i] = &block[i];
	}
	if (syscall(SYS_io_submit, context, READ_PAGES, list) != READ_PAGES)
		give_up("io_submit");
}

/* Reads that have ended within @ms. */
static long finished(long ms)
{
	struct io_event event[READ_PAGES];
	struct timespec patience = { .tv_nsec = ms * 1000000 };
	long n = syscall(SYS_io_getevents, context, 1, READ_PAGES, event, &patience);

	for (long i = 0; i < n; i++) {
		if (event[i].res != PAGE)
			give_up("a read of the disk");
	}
	return n;
}

/* Takes a round, and copies what it says. The pages in it. */
static long take_round(void)
{
	uint64_t set[(PAGES + 63) / 64] = { 0 };
	struct gyges_bitmap bitmap = { .words_ptr = (uintptr_t)set, .words = sizeof(set) / 8 };

	order(GYGES_IOC_DIRTY_ROUND, &bitmap);
	for (long page = 0; page < PAGES; page++) {
		if (set[page / 64] >> page % 64 & 1 &&
		    pread(fd, destination + page * PAGE, PAGE, page * PAGE) != PAGE)
			give_up("pread");
	}
	return (long)bitmap.pages;
}

static long lost(long first, long last)
{
	long n = 0;

	for (long page = first; page < last; page++)
		n += memcmp(map + page * PAGE, destination + page * PAGE, PAGE) != 0;
	return n;
}

static void rounds(void)
{
	long n = 0, during = 0, copied;
	struct gyges_stats stats;

	destination = map_file(-1, BYTES, MAP_PRIVATE | MAP_ANONYMOUS);
	fill_disk();
	order(GYGES_IOC_DIRTY_START, NULL);
	memcpy(destination, map, BYTES);
	copied = 0;
	for (int turn = 0; turn < TURNS; turn++) {
		submit(turn);
		for (long left = READ_PAGES; left > 0; n++) {
			memset(map + (READ_PAGES + n % READ_PAGES) * PAGE, 'A' + (int)(n % 26), PAGE);
			copied += take_round();
			during += left;
			left -= finished(5);
		}
	}
	copied += take_round();
	order(GYGES_IOC_STATS, &stats);
	printf("rounds=%ld under_way=%ld copied=%ld pinned=%lu lost_read=%ld lost_written=%ld\n", n, during, copied,
	       (unsigned long)stats.pinned_pages, lost(0, READ_PAGES), lost(READ_PAGES, PAGES));
	order(GYGES_IOC_DIRTY_STOP, NULL);
}

/* The I/O of a turn ends in memory that is long unmapped, of a file that has had another size since. */
static void resize(long times)
{
	for (; times > 0; times--) {
		submit((int)(times % TURNS));
		munmap(map, BYTES);
		for (long size = BYTES; size; size = size == BYTES ? BYTES / 2 : size == BYTES / 2 ? 2 * BYTES : 0) {
			if (ftruncate(fd, size))
				give_up("ftruncate");
			order(GYGES_IOC_DIRTY_START, NULL);
			finished(20);
			order(GYGES_IOC_DIRTY_STOP, NULL);
		}
		syscall(SYS_io_destroy, context);
		context = 0;
		if (ftruncate(fd, BYTES) || syscall(SYS_io_setup, READ_PAGES, &context))
			give_up("again");
		map = map_file(fd, BYTES, MAP_SHARED);
	}
	printf("resized\n");
}

/* ---- rounds that nobody gets ---- */

#define MANY 8192l

static uint64_t many[MANY / 64];

static int round_into(void *words)
{
	struct gyges_bitmap bitmap = { .words_ptr = (uintptr_t)words, .words = MANY / 64 };

	return ioctl(fd, GYGES_IOC_DIRTY_ROUND, &bitmap) ? errno : 0;
}

static long in_round(void)
{
	long n = 0;

	if (round_into(many))
		give_up("DIRTY_ROUND");
	for (long i = 0; i < MANY / 64; i++)
		n += __builtin_popcountl(many[i]);
	return n;
}

/* Writes to every page. How many had to be faulted in for that, as those that a round has protected have. */
static long write_all(void)
{
	struct rusage before, after;

	getrusage(RUSAGE_SELF, &before);
	for (long page = 0; page < MANY; page++)
		map[page * PAGE]++;
	getrusage(RUSAGE_SELF, &after);
	return after.ru_minflt - before.ru_minflt;
}

/* After all was written to: a process takes a round, and is killed @us later. */
static void interrupt(long us)
{
	pid_t pid;

	write_all();
	pid = fork();
	if (!pid)
		exit(round_into(many));
	usleep((useconds_t)us);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void given_back(void)
{
	long halfway = 0, lost_killed = 0, lost_fault;

	if (ftruncate(fd, 0) || ftruncate(fd, MANY * PAGE))
		give_up("ftruncate");
	map = map_file(fd, MANY * PAGE, MAP_SHARED);
	order(GYGES_IOC_DIRTY_START, NULL);
	write_all();
	if (round_into((void *)8) != EFAULT)
		give_up("a round into nothing");
	lost_fault = MANY - in_round();
	for (long us = 2000; us < 200000; us *= 2) {
		long protected, marked;

		interrupt(us);
		marked = in_round();
		/* None at all: it had its round before it was killed. */
		lost_killed += marked ? MANY - marked : 0;
		interrupt(us);
		protected = write_all();
		halfway += protected > 0 && protected < MANY;
		in_round();
	}
	printf("halfway=%ld lost_fault=%ld lost_killed=%ld\n", halfway, lost_fault, lost_killed);
}

/* ---- the look at what is present ---- */

static long present(const struct gyges_bitmap *bitmap)
{
	struct gyges_bitmap arg = *bitmap;
	struct timespec from, to;

	clock_gettime(CLOCK_MONOTONIC, &from);
	order(GYGES_IOC_PRESENT, &arg);
	clock_gettime(CLOCK_MONOTONIC, &to);
	if ((long)arg.pages != (long)arg.words * 64)
		give_up("not all is present");
	return (to.tv_sec - from.tv_sec) * 1000000 + (to.tv_nsec - from.tv_nsec) / 1000;
}

static void look(long mib)
{
	struct gyges_bitmap bitmap = { .words = (uint64_t)(mib * MIB / PAGE / 64) };
	long best = INT32_MAX;

	if (ftruncate(fd, mib * MIB))
		give_up("ftruncate");
	map = map_file(fd, mib * MIB, MAP_SHARED);
	for (long at = 0; at < mib * MIB; at += PAGE)
		map[at] = 1;
	bitmap.words_ptr = (uintptr_t)calloc(bitmap.words, 8);
	for (int i = 0; i < 5; i++) {
		long us = present(&bitmap);

		best = us < best ? us : best;
	}
	printf("us_per_gib=%ld\n", best * 1024 / mib);
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	folder = argv[1];
	open_all(argv[2]);
	if (!strcmp(argv[3], "rounds")) {
		rounds();
	} else if (!strcmp(argv[3], "resize") && argc > 4) {
		resize(atol(argv[4]));
	} else {
		munmap(map, BYTES);
		if (!strcmp(argv[3], "given-back"))
			given_back();
		else if (!strcmp(argv[3], "present") && argc > 4)
			look(atol(argv[4]));
	}
	return unlink(path_of("rounds"));
}
