// SPDX-License-Identifier: Apache-2.0
/*
 * loads.c - unloads the module and loads it again, so many times, and after each load moves a file by it: in one host,
 * from a file to another, by RDMA over the host's own address.
 *
 *     loads MODULE PARAMETERS FOLDER ADDRESS PAGES TIMES       gyges.ko is loaded, and mounted at FOLDER
 *
 * The files have PAGES pages, the first FILLED of them with content.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/gyges.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#include "facts.h"

#define FILLED 48
#define TOKEN "a token"
/* Of something that is to happen soon, PAUSE_US apart. */
#define TRIES 2000
#define PAUSE_US 5000

static long pages;

/* What a close has left to be done by others may hold the module for a moment. */
static void unload(void)
{
	int tries = TRIES;

	if (umount(folder))
		give_up("umount");
	while (syscall(SYS_delete_module, "gyges", O_NONBLOCK)) {
		if (errno != EAGAIN || !tries--)
			give_up("delete_module");
		usleep(PAUSE_US);
	}
}

static void load(const char *module, const char *parameters)
{
	int file = open(module, O_RDONLY | O_CLOEXEC);

	if (file < 0 || syscall(SYS_finit_module, file, parameters, 0))
		give_up(module);
	close(file);
	if (mount("gyges", folder, "gygesfs", 0, "mode=0700"))
		give_up("mount");
}

static void order(int file, unsigned long request, void *arg, const char *what)
{
	if (ioctl(file, request, arg))
		give_up(what);
}

static int make(const char *name, char **at)
{
	int file = open(path_of(name), O_RDWR | O_CREAT | O_EXCL, 0600);

	if (file < 0 || ftruncate(file, pages * PAGE))
		give_up(name);
	*at = map_file(file, pages * PAGE, MAP_SHARED);
	return file;
}

static void end(const char *name, int file, char *at)
{
	if (munmap(at, (size_t)(pages * PAGE)) || close(file) || unlink(path_of(name)))
		give_up(name);
}

static void join(int from, int to, const char *address)
{
	struct sockaddr_in in = { .sin_family = AF_INET };
	struct gyges_endpoint endpoint = { .token = TOKEN };

	inet_pton(AF_INET, address, &in.sin_addr);
	memcpy(endpoint.addr, &in, sizeof(in));
	order(from, GYGES_IOC_EXPORT, &endpoint, "EXPORT");
	memcpy(endpoint.token, TOKEN, sizeof(TOKEN));
	endpoint.timeout_ms = 5000;
	order(to, GYGES_IOC_IMPORT, &endpoint, "IMPORT");
}

/* The source hears a little later than the destination that they are connected. */
static void hand_over_regions(int from, int to)
{
	struct gyges_region table[1];
	struct gyges_regions regions = { .regions_ptr = (uintptr_t)table, .capacity = 1 };
	int tries = TRIES;

	while (ioctl(from, GYGES_IOC_EXPORT_REGIONS, &regions)) {
		if (errno != ENOTCONN || !tries--)
			give_up("EXPORT_REGIONS");
		usleep(PAUSE_US);
	}
	regions = (struct gyges_regions){ .regions_ptr = (uintptr_t)table, .capacity = regions.count };
	order(to, GYGES_IOC_IMPORT_REGIONS, &regions, "IMPORT_REGIONS");
}

static void pull(int to)
{
	uint64_t *set = calloc((size_t)pages / 64, 8);
	struct gyges_bitmap bitmap = { .words_ptr = (uintptr_t)set, .words = (uint64_t)pages / 64 };
	struct gyges_state state = { 0 };

	if (!set)
		give_up("calloc");
	set[0] = (1ull << FILLED) - 1;
	order(to, GYGES_IOC_IMPORT_DISCARD, &bitmap, "DISCARD");
	order(to, GYGES_IOC_IMPORT_ARM, NULL, "ARM");
	order(to, GYGES_IOC_IMPORT_RUN, NULL, "RUN");
	free(set);
	for (int tries = TRIES; state.phase != GYGES_PHASE_COMPLETE; tries--) {
		if (!tries)
			give_up("not complete");
		usleep(PAUSE_US);
		order(to, GYGES_IOC_STATE, &state, "STATE");
	}
}

/* One file; the page after its content is a hole. */
static void move(const char *address)
{
	char *source, *destination;
	int from = make("source", &source), to = make("destination", &destination);

	order(from, GYGES_IOC_DIRTY_START, NULL, "DIRTY_START");
	for (long page = 0; page < FILLED; page++)
		memset(source + page * PAGE, 'a' + (int)(page % 26), PAGE);
	join(from, to, address);
	hand_over_regions(from, to);
	pull(to);
	if (memcmp(source, destination, (FILLED + 1) * PAGE))
		give_up("another content");
	end("destination", to, destination);
	end("source", from, source);
}

int main(int argc, char **argv)
{
	if (argc != 7)
		return 2;
	folder = argv[3];
	pages = atol(argv[5]);
	for (long times = atol(argv[6]); times > 0; times--) {
		unload();
		load(argv[1], argv[2]);
		move(argv[4]);
	}
	return 0;
}
