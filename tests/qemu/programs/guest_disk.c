// SPDX-License-Identifier: Apache-2.0
/*
 * guest_disk.c - a disk that is written and read past the page cache, so that the device writes into this memory itself.
 *
 * Each worker has a part of the disk and some buffers. What it has read stays in its buffer for a while and is looked at
 * again before the buffer is used anew: what came into memory and was lost on the way to another host is found then.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guest.h"

#define SLOT_PAGES 16u
#define SLOT_BYTES (SLOT_PAGES * PAGE)
#define BUFFERS 32u
#define MAX_SLOTS 512u /* 32 MiB a worker: small enough that slots are written again */

struct buffer {
	uint64_t *words;
	uint64_t slot;
	uint64_t version; /* 0: nothing is in it */
};

struct disk_worker {
	pthread_t thread;
	uint64_t first; /* slot */
	uint64_t slots;
	uint64_t random;
	uint64_t *versions; /* of slot first + i; 0: not yet written */
	struct buffer buffers[BUFFERS];
};

static int disk = -1;
static struct disk_worker *workers;
static int worker_count;
static atomic_bool ending;
static _Atomic uint64_t done;
static _Atomic uint64_t bad;

static void fill(struct buffer *buffer)
{
	for (uint64_t i = 0; i < SLOT_PAGES; i++)
		stamp_write(buffer->words + i * PAGE_WORDS,
			    (struct stamp){ buffer->slot * SLOT_PAGES + i, buffer->version });
}

/* `when`: as it was read, or after it lay for a while. */
static void check(const struct buffer *buffer, const char *when)
{
	struct stamp got;

	for (uint64_t i = 0; buffer->version && i < SLOT_PAGES; i++) {
		struct stamp want = { buffer->slot * SLOT_PAGES + i, buffer->version };
		enum damage damage = stamp_check(buffer->words + i * PAGE_WORDS, want, &got);

		if (damage == WHOLE)
			continue;
		bad++;
		complain("CORRUPT blk=%lu want=%lu got=%lu %s %s", want.page, want.version, got.version,
			 damage_name(damage), when);
	}
}

static void transfer(struct buffer *buffer, bool write)
{
	off_t at = (off_t)(buffer->slot * SLOT_BYTES);
	ssize_t n = write ? pwrite(disk, buffer->words, SLOT_BYTES, at) : pread(disk, buffer->words, SLOT_BYTES, at);

	if (n == SLOT_BYTES)
		return;
	bad++;
	complain("CORRUPT blk=%lu %s of %u bytes gave %ld", buffer->slot * SLOT_PAGES, write ? "write" : "read",
		 SLOT_BYTES, (long)n);
	buffer->version = 0;
}

static void write_anew(struct disk_worker *worker, struct buffer *buffer, uint64_t i)
{
	buffer->slot = worker->first + i;
	buffer->version = ++worker->versions[i];
	fill(buffer);
	transfer(buffer, true);
}

static void read_back(struct disk_worker *worker, struct buffer *buffer, uint64_t i)
{
	buffer->slot = worker->first + i;
	buffer->version = worker->versions[i];
	/* So that nothing of before passes for it. */
	memset(buffer->words, 0xa5, SLOT_BYTES);
	transfer(buffer, false);
	check(buffer, "read");
}

static void *work(void *argument)
{
	struct disk_worker *worker = argument;

	for (uint64_t n = 0; !ending; n++) {
		struct buffer *buffer = &worker->buffers[n % BUFFERS];
		uint64_t i;

		worker->random = mix(worker->random + n);
		i = worker->random % worker->slots;
		check(buffer, "kept");
		if (!worker->versions[i] || worker->random >> 32 & 1)
			write_anew(worker, buffer, i);
		else
			read_back(worker, buffer, i);
		done++;
	}
	return NULL;
}

static void prepare(struct disk_worker *worker, uint64_t first, uint64_t slots)
{
	worker->first = first;
	worker->slots = slots < MAX_SLOTS ? slots : MAX_SLOTS;
	worker->random = mix(first + 1);
	worker->versions = calloc(worker->slots, 8);
	for (unsigned int i = 0; i < BUFFERS; i++)
		worker->buffers[i].words = aligned_alloc(PAGE, SLOT_BYTES);
	if (!worker->slots || !worker->versions || !worker->buffers[BUFFERS - 1].words)
		die("a disk of some size and memory for it");
}

void disk_start(const char *path, int count)
{
	uint64_t bytes, slots;

	disk = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (disk < 0 || ioctl(disk, BLKGETSIZE64, &bytes))
		die(path);
	slots = bytes / SLOT_BYTES / (uint64_t)count;
	workers = calloc((size_t)count, sizeof(*workers));
	if (!workers)
		die("calloc");
	worker_count = count;
	for (int i = 0; i < count; i++) {
		prepare(&workers[i], slots * (uint64_t)i, slots);
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			die("pthread_create");
	}
}

void disk_finish(void)
{
	ending = true;
	for (int i = 0; i < worker_count; i++) {
		struct disk_worker *worker = &workers[i];

		pthread_join(worker->thread, NULL);
		for (unsigned int n = 0; n < BUFFERS; n++)
			check(&worker->buffers[n], "kept");
		for (uint64_t slot = 0; slot < worker->slots; slot++)
			if (worker->versions[slot])
				read_back(worker, &worker->buffers[0], slot);
	}
}

uint64_t disk_done(void)
{
	return done;
}

uint64_t disk_bad(void)
{
	return bad;
}
