// SPDX-License-Identifier: Apache-2.0
/*
 * room.c - who pays for the memory of a file, and whether it stays: one fact a line, NAME=OUTCOME. The same program on
 * tmpfs says what is to be expected.
 *
 *     room FOLDER CGROUPS
 *
 * FOLDER: of a file system of 64 MiB, empty. CGROUPS: a folder of cgroup2 in which groups with the memory controller can
 * be made.
 */
#define _GNU_SOURCE
#include <sys/statvfs.h>

#include "facts.h"

static const char *cgroups;

/* ---- room ---- */

static long room(void)
{
	struct statvfs st;

	if (statvfs(folder, &st))
		give_up("statvfs");
	return (long)(st.f_bavail * st.f_frsize);
}

static long file_system_bytes(void)
{
	struct statvfs st;

	return statvfs(folder, &st) ? -1 : (long)(st.f_blocks * st.f_frsize);
}

static void space(void)
{
	long before = room();

	fact("mount-bytes", "%ld", file_system_bytes());
	fd = open(path_of("space"), O_RDWR | O_CREAT, 0600);
	if (ftruncate(fd, 8 * MIB))
		give_up("ftruncate");
	fact("room-taken-by-size", "%ld", before - room());
	map = map_file(fd, 8 * MIB, MAP_SHARED);
	memset(map, 'a', MIB);
	fact("room-taken-by-touch", "%ld", before - room());
	outcome("larger-than-the-mount", ftruncate(open(path_of("large"), O_RDWR | O_CREAT, 0600), 65 * MIB));
	unlink(path_of("large"));
	unlink(path_of("space"));
	close(fd);
	fact("unlinked-while-mapped", "%c%c", content(map), content(map + 2 * MIB));
	memset(map + 2 * MIB, 'u', PAGE);
	fact("written-while-unlinked", "%c", content(map + 2 * MIB));
	fact("room-kept-by-the-mapping", "%s", before - room() > 0 ? "yes" : "no");
	munmap(map, 8 * MIB);
	fact("room-given-back", "%ld", before - room());
}

/* ---- memory that stays ---- */

static long meminfo(const char *name)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char word[64];
	long kib;

	while (file && fscanf(file, "%63[^:]: %ld kB%*[^\n] ", word, &kib) > 0) {
		if (!strcmp(word, name)) {
			fclose(file);
			return kib;
		}
		/* Lines without a unit. */
		if (fscanf(file, "%*1[\n]") == EOF)
			break;
	}
	give_up(name);
}

static void write_words(const char *path, const char *words)
{
	int file = open(path, O_WRONLY);

	if (file < 0 || write(file, words, strlen(words)) < 0)
		give_up(path);
	close(file);
}

static void evicting(void)
{
	long before = meminfo("Unevictable"), more;

	fd = open(path_of("evicting"), O_RDWR | O_CREAT, 0600);
	if (ftruncate(fd, 8 * MIB))
		give_up("ftruncate");
	map = map_file(fd, 8 * MIB, MAP_SHARED);
	memset(map, 'a', 4 * MIB);
	/* Only looked at, so nothing has made them dirty. */
	for (long at = 4 * MIB; at < 8 * MIB; at += PAGE)
		(void)*(volatile char *)(map + at);
	more = meminfo("Unevictable") - before;
	fact("unevictable", "%s", more > 7 << 10 ? "all" : more < 1 << 10 ? "none" : "some");
	munmap(map, 8 * MIB);
	write_words("/proc/sys/vm/drop_caches", "3");
	fact("pages-after-drop-caches", "%ld", blocks());
	map = map_file(fd, 8 * MIB, MAP_SHARED);
	fact("content-after-drop-caches", "%c%c", content(map), content(map + 6 * MIB));
	unlink(path_of("evicting"));
}

/* ---- memory cgroups ---- */

static char *in_group(const char *group, const char *file)
{
	char *path;

	if (asprintf(&path, "%s/%s/%s", cgroups, group, file) < 0)
		give_up("asprintf");
	return path;
}

static void make_group(const char *group, const char *limit)
{
	if (mkdir(in_group(group, ""), 0700))
		give_up(group);
	write_words(in_group(group, "memory.max"), limit);
}

static void enter(const char *group)
{
	write_words(in_group(group, "cgroup.procs"), "0");
}

/* Bytes of page cache that are charged to it. */
static long charged(const char *group)
{
	FILE *file = fopen(in_group(group, "memory.stat"), "r");
	long bytes = -1;
	char line[128];

	while (file && fgets(line, sizeof(line), file) && sscanf(line, "file %ld", &bytes) != 1)
		;
	if (file)
		fclose(file);
	return bytes;
}

static void make_in_one(void)
{
	enter("one");
	fd = open(path_of("charged"), O_RDWR | O_CREAT, 0600);
	if (ftruncate(fd, 16 * MIB))
		give_up("ftruncate");
}

static void touch_in_two(void)
{
	enter("two");
	map = map_file(open(path_of("charged"), O_RDWR), 16 * MIB, MAP_SHARED);
	memset(map, 'a', 4 * MIB);
}

/* More than the file's creator, or this group, may have. */
static void touch_all_in_three(void)
{
	enter("three");
	fd = open(path_of("limited"), O_RDWR | O_CREAT, 0600);
	if (ftruncate(fd, 32 * MIB))
		give_up("ftruncate");
	map = map_file(fd, 32 * MIB, MAP_SHARED);
	memset(map, 'a', 32 * MIB);
}

/* Of a file whose creator's group is full, from a group that is not; its creator is gone. */
static pid_t touch_in_one(void)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	enter("one");
	map = map_file(open(path_of("full"), O_RDWR), 16 * MIB, MAP_SHARED);
	memset(map, 'a', 16 * MIB);
	exit(0);
}

static void make_in_three(void)
{
	enter("three");
	fd = open(path_of("full"), O_RDWR | O_CREAT, 0600);
	if (ftruncate(fd, 16 * MIB))
		give_up("ftruncate");
}

/* What has become of @pid after at most @ms: "waits", "done", "killed", or "gone" where that was seen before. */
static const char *becomes(pid_t pid, int ms)
{
	int status;

	for (; ms > 0; ms -= 50) {
		pid_t done = waitpid(pid, &status, WNOHANG);

		if (done)
			return done < 0 ? "gone" : WIFEXITED(status) ? "done" : "killed";
		usleep(50000);
	}
	return "waits";
}

static void full_group(void)
{
	pid_t one, other;

	ended(make_in_three);
	one = touch_in_one();
	fact("touch-beyond-the-creators-limit", "%s", becomes(one, 1500));
	kill(one, SIGKILL);
	fact("killed-beyond-the-limit", "%s", becomes(one, 5000));
	other = touch_in_one();
	fact("touch-again", "%s", becomes(other, 500));
	write_words(in_group("three", "memory.max"), "max");
	fact("touch-after-the-limit-was-raised", "%s", becomes(other, 20000));
	fact("after-the-limit-was-raised", "%ld", charged("one") + charged("three") >= 16 * MIB ? 16l : 0l);
	unlink(path_of("full"));
}

static void charges(void)
{
	char *events;
	long one, two;

	make_group("one", "max");
	make_group("two", "max");
	make_group("three", "8M");
	ended(make_in_one);
	fact("touch-in-another-group", "%s", ended(touch_in_two));
	one = charged("one");
	two = charged("two");
	fact("charged-to", "%s", one >= 4 * MIB && two < MIB ? "creator" : two >= 4 * MIB && one < MIB ? "toucher" : "both");
	unlink(path_of("charged"));
	fact("charge-given-back", "%s", charged("one") + charged("two") < MIB ? "yes" : "no");
	fact("touch-more-than-the-limit", "%s", ended(touch_all_in_three));
	events = in_group("three", "memory.events.local");
	fact("limit-kept", "%s", charged("three") <= 8 * MIB && !access(events, R_OK) ? "yes" : "no");
	unlink(path_of("limited"));
	full_group();
	outcome("group-removed", rmdir(in_group("three", "")) | rmdir(in_group("one", "")) | rmdir(in_group("two", "")));
}

static const struct check checks[] = {
	{ "space", space },
	{ "evicting", evicting },
	{ "charges", charges },
};

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	folder = argv[1];
	cgroups = argv[2];
	run_checks(checks, sizeof(checks) / sizeof(checks[0]));
	return 0;
}
