/* SPDX-License-Identifier: Apache-2.0 */
/* guest.h - the parts of the guest's one program: memory, disk and network that prove themselves, and who is told. */
#ifndef GUEST_H
#define GUEST_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define PAGE 4096u
#define PAGE_WORDS (PAGE / 8)

/* What a page must say in each of its words. The first word is the same in all, so that one finds them in RAM. */
#define STAMP_MAGIC 0x5347594745535047ull

/* How a page differs from what it should be. */
enum damage {
	WHOLE,
	/* A page as it was written once, but another version, or another page's. */
	STALE,
	ZERO,
	TORN,
};

struct stamp {
	uint64_t page;
	uint64_t version;
};

void stamp_write(uint64_t *words, struct stamp stamp);
/* How `words` differ from `want`; `got` is what they say of themselves. */
enum damage stamp_check(const uint64_t *words, struct stamp want, struct stamp *got);
const char *damage_name(enum damage damage);

static inline uint64_t mix(uint64_t value)
{
	value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ull;
	value = (value ^ value >> 27) * 0x94d049bb133111ebull;
	return value ^ value >> 31;
}

/* ---- memory ---- */

/* Fills `pages` pages and starts one worker a CPU; together they rewrite `rate` pages a second, 0: all they can. */
void memory_start(uint64_t pages, uint64_t rate, int workers);
/* Stops the workers for good and checks every page. */
void memory_finish(void);
/* How often every page has been checked. */
uint64_t memory_passes(void);
uint64_t memory_verified(void);
uint64_t memory_corrupt(void);
/* Counts damage, and says so. */
void memory_damaged(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- memory for a while ---- */

/* Takes, checks and gives back `bytes`, again and again, where there is room. */
void visits_start(uint64_t bytes);
void visits_finish(void);
uint64_t visits_done(void);

/* ---- disk ---- */

/* Starts `workers` threads that write to the disk at `path` past its cache, and read it. */
void disk_start(const char *path, int workers);
void disk_finish(void);
uint64_t disk_done(void);
uint64_t disk_bad(void);

/* ---- network ---- */

/* Pings a neighbour, `pings` at once at most; returns when the first is answered. */
void net_start(int pings);
void net_finish(void);
uint64_t net_answered(void);
/* Not answered in time, nor later. */
uint64_t net_lost(void);
uint64_t net_bad(void);

/* ---- one line, whole, on the console ---- */

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same for damage: the first of it is said, all of it is counted. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
void vcomplain(const char *format, va_list list);
/* What cannot be done without ends the guest. */
void die(const char *what) __attribute__((noreturn));

uint64_t now_ns(void);
void sleep_until(uint64_t ns);

#endif
