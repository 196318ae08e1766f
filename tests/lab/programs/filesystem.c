// SPDX-License-Identifier: Apache-2.0
/*
 * filesystem.c - what comes of everything that can be done with a file and with memory that is a file, one fact a line:
 * NAME=OUTCOME. The same program on tmpfs says what is to be expected.
 *
 *     filesystem FOLDER DISK
 *
 * FOLDER: empty. DISK: for direct I/O, its first MiB is overwritten.
 */
#define _GNU_SOURCE
#include <linux/falloc.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include "facts.h"

#define PAGES 64
#define BYTES (PAGES * PAGE)

static const char *disk;

/* A new file of PAGES in fd, mapped shared at map; its even pages have content. */
static void make_file(const char *name)
{
	fd = open(path_of(name), O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || ftruncate(fd, BYTES))
		give_up(name);
	map = map_file(fd, BYTES, MAP_SHARED);
	for (long page = 0; page < PAGES; page += 2)
		memset(map + page * PAGE, 'a', PAGE);
}

/* ---- names ---- */

static void names(void)
{
	make_file("names");
	outcome("create-again", open(path_of("names"), O_RDWR | O_CREAT | O_EXCL, 0600));
	outcome("open-direct", open(path_of("names"), O_RDWR | O_DIRECT));
	outcome("link", link(path_of("names"), path_of("names-2")));
	outcome("unlink-link", unlink(path_of("names-2")));
	outcome("unlink-unknown", unlink(path_of("names-2")));
	outcome("chmod", chmod(path_of("names"), 0640));
	outcome("chown", chown(path_of("names"), 1000, 1000));
	outcome("rename", rename(path_of("names"), path_of("names")));
	outcome("rename-other", rename(path_of("names"), path_of("names-3")));
	outcome("mkdir", mkdir(path_of("directory"), 0700));
	outcome("symlink", symlink("names", path_of("symlink")));
}

/* ---- size ---- */

static void sizes(void)
{
	make_file("sizes");
	outcome("grow-mapped", ftruncate(fd, BYTES + PAGE));
	outcome("shrink-mapped", ftruncate(fd, BYTES - PAGE));
	munmap(map, BYTES);
	outcome("size-unaligned", ftruncate(fd, BYTES + 100));
	outcome("size-negative", ftruncate(fd, -PAGE));
	outcome("shrink", ftruncate(fd, PAGE));
	outcome("grow", ftruncate(fd, BYTES));
	map = map_file(fd, BYTES, MAP_SHARED);
	fact("after-shrink-and-grow", "%c%c", content(map), content(map + 2 * PAGE));
}

/* ---- mappings ---- */

static void touch_beyond_end(void)
{
	char *more = map_file(fd, BYTES + PAGE, MAP_SHARED);

	more[BYTES] = 1;
}

static void write_protected(void)
{
	mprotect(map, PAGE, PROT_READ);
	map[0] = 1;
}

static void mappings(void)
{
	char *other, *private, page[PAGE];
	int only;

	make_file("mappings");
	other = map_file(fd, BYTES, MAP_SHARED);
	private = map_file(fd, BYTES, MAP_PRIVATE);
	fact("private-sees", "%c", content(private));
	memset(private, 'p', PAGE);
	memset(private + PAGE, 'p', PAGE);
	fact("private-write-in-file", "%c%c", content(map), content(map + PAGE));
	memset(map + 2 * PAGE, 's', PAGE);
	fact("shared-write-elsewhere", "%c%c", content(other + 2 * PAGE), content(private + 2 * PAGE));
	if (pread(fd, page, PAGE, 2 * PAGE) == PAGE)
		fact("shared-write-by-read", "%c", content(page));
	only = open(path_of("mappings"), O_RDONLY);
	outcome("map-for-writing-what-is-read-only",
		mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, only, 0) == MAP_FAILED ? -1 : 0);
	fact("touch-beyond-end", "%s", ended(touch_beyond_end));
	fact("write-protected", "%s", ended(write_protected));
	outcome("populate", mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0) == MAP_FAILED ? -1
														      : 0);
	fact("populated-pages", "%ld", blocks());
	outcome("mlock", mlock(map, BYTES));
	outcome("mremap", mremap(other, BYTES, BYTES / 2, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0);
}

/* ---- reading and holes ---- */

static void reading(void)
{
	char buffer[2 * PAGE] = { 0 };
	struct iovec parts[] = { { buffer, 100 }, { buffer + 100, PAGE } };
	int pipes[2];
	long before;

	make_file("reading");
	before = blocks();
	fact("read-over-a-boundary", "%ld", pread(fd, buffer, PAGE, PAGE / 2));
	fact("read-halves", "%c%c", buffer[0], buffer[PAGE - 1] ? '?' : '0');
	fact("read-allocates", "%ld", blocks() - before);
	fact("read-vector", "%ld", preadv(fd, parts, 2, BYTES - PAGE));
	fact("read-at-end", "%ld", pread(fd, buffer, PAGE, BYTES));
	fact("read-over-end", "%ld", pread(fd, buffer, 2 * PAGE, BYTES - PAGE));
	outcome("read-into-nothing", pread(fd, map + BYTES + PAGE, PAGE, 0));
	outcome("write", pwrite(fd, "x", 1, 0));
	if (!pipe(pipes))
		outcome("splice", splice(fd, NULL, pipes[1], NULL, PAGE, 0));
	fact("data-after-a-hole", "%ld", (long)lseek(fd, PAGE + 7, SEEK_DATA));
	fact("data-in-data", "%ld", (long)lseek(fd, 2 * PAGE + 7, SEEK_DATA));
	fact("hole-after-data", "%ld", (long)lseek(fd, 2 * PAGE + 7, SEEK_HOLE));
	fact("hole-in-a-hole", "%ld", (long)lseek(fd, PAGE + 7, SEEK_HOLE));
	outcome("data-at-the-last-hole", lseek(fd, BYTES - PAGE, SEEK_DATA));
	outcome("hole-beyond-end", lseek(fd, BYTES + 1, SEEK_HOLE));
}

static void holes(void)
{
	const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	make_file("holes");
	fact("blocks", "%ld", blocks());
	outcome("punch", fallocate(fd, punch, 0, 3 * PAGE));
	fact("punched", "%c%c%c%c", content(map), content(map + 2 * PAGE), content(map + 4 * PAGE), content(map + PAGE));
	/* Looking at a hole through a mapping fills it. */
	fact("blocks-after-punch", "%ld", blocks());
	memset(map, 'b', PAGE);
	fact("written-after-punch", "%c", content(map));
	outcome("punch-unaligned", fallocate(fd, punch, 4 * PAGE + 1, PAGE));
	outcome("punch-beyond-end", fallocate(fd, punch, 2 * BYTES, PAGE));
	outcome("punch-and-shrink", fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, PAGE));
	outcome("allocate", fallocate(fd, 0, 0, BYTES));
	outcome("zero-range", fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, PAGE));
	outcome("collapse-range", fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, PAGE));
}

/* ---- advice ---- */

static const struct {
	const char *name;
	int advice;
} advices[] = {
	{ "normal", MADV_NORMAL },	   { "random", MADV_RANDOM },
	{ "sequential", MADV_SEQUENTIAL }, { "willneed", MADV_WILLNEED },
	{ "dontneed", MADV_DONTNEED },	   { "free", MADV_FREE },
	{ "remove", MADV_REMOVE },	   { "dontfork", MADV_DONTFORK },
	{ "cold", MADV_COLD },		   { "pageout", MADV_PAGEOUT },
	{ "hugepage", MADV_HUGEPAGE },	   { "nohugepage", MADV_NOHUGEPAGE },
	{ "mergeable", MADV_MERGEABLE },   { "dontdump", MADV_DONTDUMP },
	{ "populate-read", 22 },	   { "populate-write", 23 },
	{ "wipeonfork", MADV_WIPEONFORK }, { "unknown", 4711 },
};

static void advise(const char *kind, const char *name, char *at, int advice)
{
	char words[64];

	snprintf(words, sizeof(words), "advise-%s-%s", kind, name);
	outcome(words, madvise(at, 4 * PAGE, advice));
	snprintf(words, sizeof(words), "after-%s-%s", kind, name);
	fact(words, "%c%c", content(at), content(at + PAGE));
}

/* On pages that were written to and on holes, in a shared mapping and in a private one that has pages of its own. */
static void advice(void)
{
	for (size_t i = 0; i < sizeof(advices) / sizeof(advices[0]); i++) {
		char *private;

		make_file("advice");
		advise("shared", advices[i].name, map, advices[i].advice);
		memset(map, 'a', PAGE);
		private = map_file(fd, BYTES, MAP_PRIVATE);
		memset(private, 'p', PAGE);
		advise("private", advices[i].name, private, advices[i].advice);
		munmap(private, BYTES);
		munmap(map, BYTES);
		close(fd);
		unlink(path_of("advice"));
	}
}

static void syncing(void)
{
	make_file("syncing");
	outcome("msync", msync(map, BYTES, MS_SYNC));
	outcome("msync-async", msync(map, BYTES, MS_ASYNC));
	outcome("msync-invalidate", msync(map, BYTES, MS_SYNC | MS_INVALIDATE));
	outcome("fsync", fsync(fd));
	outcome("fdatasync", fdatasync(fd));
	fact("fadvise-dontneed", "%d", posix_fadvise(fd, 0, BYTES, POSIX_FADV_DONTNEED));
	fact("fadvise-willneed", "%d", posix_fadvise(fd, 0, BYTES, POSIX_FADV_WILLNEED));
	outcome("readahead", readahead(fd, 0, BYTES));
	fact("after-syncing", "%c%c", content(map), content(map + PAGE));
}

/* ---- other processes ---- */

static char *copy;

static void write_in_child(void)
{
	memset(map, 'c', PAGE);
	memset(map + PAGE, 'c', PAGE);
	memset(copy, 'c', PAGE);
	exit(content(copy + 2 * PAGE) == 'p' ? 0 : 1);
}

static void forking(void)
{
	make_file("forking");
	copy = map_file(fd, BYTES, MAP_PRIVATE);
	memset(copy + 2 * PAGE, 'p', PAGE);
	fact("child-sees-the-private-copy", "%s", ended(write_in_child));
	fact("child-writes-shared", "%c%c", content(map), content(map + PAGE));
	fact("child-writes-private", "%c", content(copy));
}

static void peek_and_poke(pid_t pid)
{
	errno = 0;
	fact("peek", "%lx", ptrace(PTRACE_PEEKDATA, pid, map + 2 * PAGE, 0));
	outcome("poke", ptrace(PTRACE_POKEDATA, pid, map + 2 * PAGE, 0x6b6b6b6b6b6b6b6bl));
	outcome("poke-a-hole", ptrace(PTRACE_POKEDATA, pid, map + 5 * PAGE, 0x6b6b6b6b6b6b6b6bl));
	outcome("poke-read-only-shared", ptrace(PTRACE_POKEDATA, pid, map + 6 * PAGE, 0l));
	outcome("poke-read-only-private", ptrace(PTRACE_POKEDATA, pid, copy, 0x6b6b6b6b6b6b6b6bl));
	fact("poked", "%c%c%c", map[2 * PAGE], map[5 * PAGE], map[6 * PAGE]);
}

static void peers(void)
{
	char buffer[2 * PAGE], path[64];
	struct iovec ours = { buffer, sizeof(buffer) }, theirs;
	pid_t pid;
	int mem;

	make_file("peers");
	copy = map_file(fd, BYTES, MAP_PRIVATE);
	mprotect(copy, PAGE, PROT_READ);
	mprotect(map + 6 * PAGE, PAGE, PROT_READ);
	pid = fork();
	if (!pid)
		for (;;)
			pause();
	theirs = (struct iovec){ map, sizeof(buffer) };
	fact("process-vm-read", "%ld", process_vm_readv(pid, &ours, 1, &theirs, 1, 0));
	fact("process-vm-content", "%c%c", content(buffer), content(buffer + PAGE));
	memset(buffer, 'v', sizeof(buffer));
	fact("process-vm-write", "%ld", process_vm_writev(pid, &ours, 1, &theirs, 1, 0));
	fact("process-vm-written", "%c%c", content(map), content(map + PAGE));
	outcome("ptrace", ptrace(PTRACE_ATTACH, pid, 0, 0));
	waitpid(pid, NULL, 0);
	peek_and_poke(pid);
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	mem = open(path, O_RDWR);
	fact("proc-mem-write", "%ld", pwrite(mem, buffer, PAGE, (off_t)(uintptr_t)map + 8 * PAGE));
	fact("proc-mem-written", "%c", content(map + 8 * PAGE));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	fact("poked-private-in-file", "%c", content(map));
}

/* ---- direct I/O ---- */

static void direct(void)
{
	int device = open(disk, O_RDWR | O_DIRECT);
	char *other, *private;

	make_file("direct");
	if (device < 0)
		give_up(disk);
	fact("direct-write-from-it", "%ld", pwrite(device, map, BYTES, 0));
	other = map;
	make_file("direct-2");
	memset(map + PAGE, 'x', PAGE);
	fact("direct-read-into-it", "%ld", pread(device, map, BYTES, 0));
	fact("direct-content", "%s", memcmp(map, other, BYTES) ? "differs" : "same");
	private = map_file(fd, BYTES, MAP_PRIVATE);
	fact("direct-read-into-private", "%ld", pread(device, private, 2 * PAGE, PAGE));
	fact("direct-private-content", "%c%c%c%c", content(private), content(private + PAGE), content(map),
	     content(map + PAGE));
	mprotect(map, PAGE, PROT_READ);
	outcome("direct-read-into-read-only", pread(device, map, PAGE, 0));
	munmap(map, BYTES);
	outcome("direct-read-into-nothing", pread(device, map, PAGE, 0));
}

static void incore(void)
{
	unsigned char vector[PAGES];

	make_file("incore");
	outcome("mincore", mincore(map, BYTES, vector));
	fact("in-core", "%d%d%d%d", vector[0] & 1, vector[1] & 1, vector[2] & 1, vector[3] & 1);
	fact("pages-after-mincore", "%ld", blocks());
}

static const struct check checks[] = {
	{ "names", names },	{ "sizes", sizes },	{ "mappings", mappings }, { "reading", reading },
	{ "holes", holes },	{ "advice", advice },	{ "syncing", syncing },	  { "forking", forking },
	{ "peers", peers },	{ "direct", direct },	{ "incore", incore },
};

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	folder = argv[1];
	disk = argv[2];
	run_checks(checks, sizeof(checks) / sizeof(checks[0]));
	return 0;
}
