// SPDX-License-Identifier: Apache-2.0
/*
 * DOC: the store
 *
 * The carried files are unpacked once, under ROOT/HASH/, where ROOT is
 * ${XDG_CACHE_HOME:-$HOME/.cache}/gyges or, when that place cannot be used,
 * /var/tmp/gyges-UID. What is executed later is trusted because
 *
 *  - nobody but the caller (and root) can write in ROOT: it must be a real
 *    directory, 0700, the caller's own, and no directory above it may let a
 *    third person swap it. A ROOT that fails this is refused: it may be a trap
 *    or a mistake, and only its owner can know;
 *  - each start checks owner, type, mode, size and time of every file in it. A
 *    pack that fails is damage, and is unpacked again;
 *  - a pack appears under its hash by one rename, complete or not at all.
 *
 * Content is checked when it is unpacked, by the checksum in each zstd frame:
 * that is enough against damage. Whoever could forge one could replace the
 * launcher. The SHA-256 is a name; hashing 96 MB on each start would cost more
 * than Deno's own start.
 *
 * Locks (flock): ROOT exclusive while unpacking; a pack shared for as long as
 * a process runs from it, exclusive to prune it. They go with their process,
 * so a killed launcher leaves none, and what it left half-done is removed by
 * the next unpacking.
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <zstd.h>

#define DIR_FLAGS (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define REMEDY "set XDG_CACHE_HOME to a private directory"

/* Why one place was not used. UNSUITED: try the next. REFUSED: stop here. */
enum verdict { USED, UNSUITED, REFUSED };

/* Every unpacked file carries this time, so that a later write shows. */
static const struct timespec unpack_time = { .tv_sec = 946684800 };

static int lock(int fd, int operation)
{
	int ret;

	do {
		ret = flock(fd, operation);
	} while (ret < 0 && errno == EINTR);
	return ret < 0 ? -errno : 0;
}

/* Removes @name, a file or a tree; follows no link. */
static int remove_tree(int at, const char *name)
{
	struct dirent *entry;
	DIR *dir;
	int fd, ret = 0;

	if (unlinkat(at, name, 0) == 0 || errno == ENOENT)
		return 0;
	fd = openat(at, name, DIR_FLAGS);
	if (fd < 0)
		return -errno;
	dir = fdopendir(fd);
	if (!dir) {
		ret = -errno;
		close(fd);
		return ret;
	}
	while (!ret && (entry = readdir(dir))) {
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			ret = remove_tree(fd, entry->d_name);
	}
	closedir(dir);
	if (!ret && unlinkat(at, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
		ret = -errno;
	return ret;
}

/* == checking ============================================================ */

static bool is_own_dir(const struct stat *st)
{
	return S_ISDIR(st->st_mode) && st->st_uid == geteuid() &&
	       (st->st_mode & 0777) == 0700;
}

static bool file_is_sound(int dir, const struct gy_file *file)
{
	struct stat st;

	return fstatat(dir, file->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	       S_ISREG(st.st_mode) && st.st_uid == geteuid() &&
	       (st.st_mode & 07777) == file->mode &&
	       (uint64_t)st.st_size == file->size &&
	       st.st_mtim.tv_sec == unpack_time.tv_sec;
}

static bool pack_is_sound(int dir, const struct gy_pack *pack)
{
	struct stat st;

	if (fstat(dir, &st) < 0 || !is_own_dir(&st) || st.st_nlink == 0)
		return false;
	if (fstatat(dir, GY_CACHE_DIR, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
	    !is_own_dir(&st))
		return false;
	for (size_t i = 0; i < pack->count; i++) {
		if (!file_is_sound(dir, &pack->files[i]))
			return false;
	}
	return true;
}

/*
 * Takes pack @i into use if it is there and sound. Its descriptor is left open
 * across exec on purpose: it holds the lock that keeps pruning away.
 */
static bool pack_use(int root, size_t i)
{
	static bool used[GY_PACKS];
	int dir, ret;

	if (used[i])
		return true;
	dir = openat(root, gy_packs[i].hash, DIR_FLAGS & ~O_CLOEXEC);
	if (dir < 0)
		return false;
	/* Some network file systems have no flock: then there is no pruning. */
	ret = lock(dir, LOCK_SH | LOCK_NB);
	used[i] = ret != -EWOULDBLOCK && pack_is_sound(dir, &gy_packs[i]);
	if (!used[i])
		close(dir);
	return used[i];
}

static bool packs_use(int root)
{
	for (size_t i = 0; i < GY_PACKS; i++) {
		if (!pack_use(root, i))
			return false;
	}
	return true;
}

/* == unpacking =========================================================== */

static int write_all(int fd, const char *data, size_t size)
{
	while (size > 0) {
		ssize_t n = write(fd, data, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		size -= (size_t)n;
	}
	return 0;
}

/* Writes the frame's content to @fd; -EBADMSG if this gyges is damaged. */
static int inflate_to(int fd, const struct gy_file *file)
{
	ZSTD_inBuffer in = {
		.src = file->zst,
		.size = (size_t)(file->zst_end - file->zst),
	};
	size_t room = ZSTD_DStreamOutSize(), left = 1;
	ZSTD_DStream *stream = ZSTD_createDStream();
	char *buffer = malloc(room);
	uint64_t total = 0;
	int ret = stream && buffer ? 0 : -ENOMEM;

	/* left is 0 once the frame has ended and its checksum has matched. */
	while (!ret && left != 0) {
		ZSTD_outBuffer out = { .dst = buffer, .size = room };

		left = ZSTD_decompressStream(stream, &out, &in);
		if (ZSTD_isError(left) || (left && out.pos == 0 && in.pos == in.size))
			ret = -EBADMSG;
		else
			ret = write_all(fd, buffer, out.pos);
		total += out.pos;
	}
	if (!ret && total != file->size)
		ret = -EBADMSG;
	free(buffer);
	ZSTD_freeDStream(stream);
	return ret;
}

static int file_unpack(int dir, const struct gy_file *file)
{
	const struct timespec times[2] = { unpack_time, unpack_time };
	int fd, ret;

	fd = openat(dir, file->name,
		    O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	ret = inflate_to(fd, file);
	/* On disk before the rename: power loss must not leave a hollow pack. */
	if (!ret && (fchmod(fd, file->mode) || futimens(fd, times) || fsync(fd)))
		ret = -errno;
	if (close(fd) < 0 && !ret)
		ret = -errno;
	return ret;
}

static int files_unpack(int root, const char *name, const struct gy_pack *pack)
{
	int dir, ret = 0;

	dir = openat(root, name, DIR_FLAGS);
	if (dir < 0)
		return -errno;
	/* mkdir obeys the caller's umask, which may take our own rights away. */
	if (fchmod(dir, 0700) || mkdirat(dir, GY_CACHE_DIR, 0700) ||
	    fchmodat(dir, GY_CACHE_DIR, 0700, 0))
		ret = -errno;
	for (size_t i = 0; !ret && i < pack->count; i++)
		ret = file_unpack(dir, &pack->files[i]);
	close(dir);
	return ret;
}

static int pack_unpack(int root, const struct gy_pack *pack)
{
	char name[32];
	int ret;

	snprintf(name, sizeof(name), ".new-%ld", (long)getpid());
	if (mkdirat(root, name, 0700) < 0)
		return -errno;
	ret = files_unpack(root, name, pack);
	/* What is there under this hash did not pass; nobody may start it. */
	if (!ret)
		ret = remove_tree(root, pack->hash);
	if (!ret && renameat(root, name, root, pack->hash) < 0)
		ret = -errno;
	if (ret)
		remove_tree(root, name);
	/* Without locks another first start may have won: that one will do. */
	return ret == -EEXIST || ret == -ENOTEMPTY ? 0 : ret;
}

static bool is_prunable(const char *name)
{
	for (size_t i = 0; i < GY_PACKS; i++) {
		if (!strcmp(name, gy_packs[i].hash))
			return false;
	}
	return !strncmp(name, ".new-", 5) ||
	       (strlen(name) == 64 && strspn(name, "0123456789abcdef") == 64);
}

/* Removes other versions that no process runs from. ROOT is locked. */
static void prune(int root)
{
	int fd = openat(root, ".", DIR_FLAGS);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (!dir)
		return;
	while ((entry = readdir(dir))) {
		int pack;

		if (!is_prunable(entry->d_name))
			continue;
		pack = openat(root, entry->d_name, DIR_FLAGS);
		if (pack < 0)
			continue;
		if (lock(pack, LOCK_EX | LOCK_NB) == 0)
			remove_tree(root, entry->d_name);
		close(pack);
	}
	closedir(dir);
}

static uint64_t bytes_needed(void)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < GY_PACKS; i++) {
		for (size_t k = 0; k < gy_packs[i].count; k++)
			sum += gy_packs[i].files[k].size;
	}
	return sum;
}

static enum verdict unpack_failed(const char *path, int err)
{
	if (err == -EROFS || err == -EACCES || err == -EPERM) {
		gy_note("cannot unpack into %s: %s", path, strerror(-err));
		return UNSUITED;
	}
	if (err == -EBADMSG)
		gy_fail("this gyges file is damaged (checksum); copy it again");
	else if (err == -ENOSPC || err == -EDQUOT)
		gy_fail("no room in %s: unpacking needs %llu bytes there; free some, or %s with more room",
		       path, (unsigned long long)bytes_needed(), REMEDY);
	else
		gy_fail("cannot unpack into %s (%llu bytes needed): %s", path,
		       (unsigned long long)bytes_needed(), strerror(-err));
	return REFUSED;
}

static int packs_unpack(int root)
{
	bool locked = lock(root, LOCK_EX) == 0;
	int ret = 0;

	for (size_t i = 0; !ret && i < GY_PACKS; i++) {
		/* Another first start may have done it while we waited. */
		if (!pack_use(root, i))
			ret = pack_unpack(root, &gy_packs[i]);
	}
	if (locked)
		prune(root);
	lock(root, LOCK_UN);
	if (!ret && !packs_use(root))
		ret = -EIO;
	return ret;
}

/* A signal waits until the unpacking is over, so it leaves nothing behind. */
static int packs_unpack_undisturbed(int root)
{
	sigset_t block, before;
	int ret;

	sigemptyset(&block);
	sigaddset(&block, SIGINT);
	sigaddset(&block, SIGTERM);
	sigaddset(&block, SIGHUP);
	sigprocmask(SIG_BLOCK, &block, &before);
	ret = packs_unpack(root);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return ret;
}

/* == finding ROOT ======================================================== */

/* Can nobody but root and the caller swap what lies at @path, resolved? */
static bool ancestors_are_safe(const char *path)
{
	char part[PATH_MAX];
	struct stat st;

	for (size_t i = 1; path[i - 1]; i++) {
		if (path[i] != '/' && path[i] != '\0')
			continue;
		memcpy(part, path, i);
		part[i] = '\0';
		if (lstat(part, &st) < 0)
			return false;
		if (st.st_uid != 0 && st.st_uid != geteuid())
			return false;
		if ((st.st_mode & 0022) && !(st.st_mode & S_ISVTX))
			return false;
	}
	return true;
}

/* The directory that holds ROOT, resolved, or NULL if it cannot be used. */
static const char *cache_home(char *resolved)
{
	const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	char base[PATH_MAX];
	int length;

	if (xdg && xdg[0] == '/')
		length = snprintf(base, sizeof(base), "%s", xdg);
	else if (home && home[0] == '/')
		length = snprintf(base, sizeof(base), "%s/.cache", home);
	else
		return NULL;
	if (length >= (int)sizeof(base))
		return NULL;
	if (mkdir(base, 0700) < 0 && errno != EEXIST)
		return NULL;
	if (!realpath(base, resolved) || !ancestors_are_safe(resolved))
		return NULL;
	return resolved;
}

static enum verdict root_check(int fd, const char *path)
{
	struct statvfs fs;
	struct stat st;

	if (fstat(fd, &st) < 0 || fstatvfs(fd, &fs) < 0) {
		gy_fail("cannot look at %s: %s", path, strerror(errno));
		return REFUSED;
	}
	if (st.st_uid != geteuid()) {
		gy_fail("refused: %s belongs to uid %u, not to uid %u; remove it, or %s",
		       path, st.st_uid, geteuid(), REMEDY);
		return REFUSED;
	}
	if ((st.st_mode & 0777) != 0700) {
		gy_fail("refused: %s has mode %04o, so others may have changed it; remove it (it is made again, 0700), or %s",
		       path, st.st_mode & 07777, REMEDY);
		return REFUSED;
	}
	return fs.f_flag & ST_NOEXEC ? UNSUITED : USED;
}

static enum verdict root_use(const char *path)
{
	bool made = mkdir(path, 0700) == 0;
	enum verdict verdict;
	int fd, ret;

	if (!made && errno != EEXIST)
		return UNSUITED;
	if (made)
		chmod(path, 0700); /* the umask may have taken rights away */
	fd = open(path, DIR_FLAGS);
	if (fd < 0) {
		if (errno == ELOOP || errno == ENOTDIR)
			gy_fail("refused: %s is not a directory but a link or a file; remove it, or %s",
			       path, REMEDY);
		else
			gy_fail("refused: %s cannot be opened: %s; remove it, or %s",
			       path, strerror(errno), REMEDY);
		return REFUSED;
	}
	verdict = root_check(fd, path);
	if (verdict == USED && !packs_use(fd)) {
		ret = packs_unpack_undisturbed(fd);
		if (ret < 0)
			verdict = unpack_failed(path, ret);
	}
	close(fd);
	return verdict;
}

int gy_store_open(char *root)
{
	char resolved[PATH_MAX];
	enum verdict verdict = UNSUITED;
	const char *base = cache_home(resolved);

	if (base && snprintf(root, PATH_MAX, "%s/gyges", base) < PATH_MAX)
		verdict = root_use(root);
	if (verdict == UNSUITED) {
		/* Sticky, so a directory of ours cannot be swapped there. */
		snprintf(root, PATH_MAX, "/var/tmp/gyges-%u", geteuid());
		verdict = root_use(root);
		if (verdict == UNSUITED)
			gy_fail("no directory to unpack into: neither the cache directory nor %s can be used (writable? mounted noexec?); %s",
			       root, REMEDY);
	}
	return verdict == USED ? 0 : -1;
}
