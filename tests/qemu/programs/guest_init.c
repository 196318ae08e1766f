// SPDX-License-Identifier: Apache-2.0
/*
 * guest_init.c - the one program of a Linux guest that proves its own memory.
 *
 * It says on its console, a line each:
 *
 *     START pages=N workers=N                                       all is stamped, work begins
 *     HB N MONOTONIC_MS passes=N verified=N corrupt=N DEVICES       every 50 ms, or as told
 *     CORRUPT page=N want=VERSION got=VERSION zero|stale|torn       damage, at once; the first 100 of it
 *     END N MONOTONIC_MS passes=N verified=N corrupt=N DEVICES      after a last check of all, before power-off
 *
 * DEVICES: [blk=REQUESTS blkbad=N] [net=ANSWERED netlost=N netbad=N] [visits=N], of what it was told to use.
 * Kernel words: gyges.ws=SIZE[K|M|G], gyges.rate=PAGES_A_SECOND (0: all it can), gyges.blk=WORKERS, gyges.net=PINGS_AT_ONCE,
 * gyges.visit=SIZE, gyges.exit_after=S, gyges.beat=MS.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/input.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

#define MAX_COMPLAINTS 100
#define MAX_BUTTONS 8

static int console = -1;
static pthread_mutex_t console_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_int complaints;

static struct {
	uint64_t working_set;
	uint64_t rate;
	uint64_t disk_workers;
	uint64_t pings;
	uint64_t visit;
	uint64_t exit_after;
	uint64_t beat_ms;
} options = { .working_set = 64 << 20, .beat_ms = 50 };

/* ---- words on the console ---- */

static void vsay(const char *format, va_list list)
{
	char line[256];
	int n = vsnprintf(line, sizeof(line) - 1, format, list);

	line[n++] = '\n';
	pthread_mutex_lock(&console_lock);
	for (int at = 0; at < n;) {
		ssize_t written = write(console, line + at, (size_t)(n - at));

		if (written < 0 && errno != EINTR)
			break;
		if (written > 0)
			at += (int)written;
	}
	pthread_mutex_unlock(&console_lock);
}

void say(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	vsay(format, list);
	va_end(list);
}

void vcomplain(const char *format, va_list list)
{
	if (complaints++ < MAX_COMPLAINTS)
		vsay(format, list);
}

void complain(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	vcomplain(format, list);
	va_end(list);
}

static void power_off(void) __attribute__((noreturn));
static void power_off(void)
{
	tcdrain(console);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

void die(const char *what)
{
	say("FAILED %s: %s", what, strerror(errno));
	power_off();
}

/* ---- time ---- */

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

void sleep_until(uint64_t ns)
{
	struct timespec until = { .tv_sec = (time_t)(ns / 1000000000ull), .tv_nsec = (long)(ns % 1000000000ull) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

/* ---- start ---- */

static void load_modules(void)
{
	char name[128], path[160];
	FILE *order = fopen("/modules/order", "r");

	if (!order)
		die("/modules/order");
	while (fscanf(order, "%127s", name) == 1) {
		int fd;

		snprintf(path, sizeof(path), "/modules/%s", name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			die(path);
		close(fd);
	}
	fclose(order);
}

static uint64_t size_of(const char *text)
{
	char *end;
	uint64_t value = strtoull(text, &end, 10);

	switch (*end) {
	case 'G':
		return value << 30;
	case 'M':
		return value << 20;
	case 'K':
		return value << 10;
	default:
		return value;
	}
}

static void read_options(void)
{
	static const struct {
		const char *word;
		uint64_t *into;
	} WORDS[] = {
		{ "gyges.ws=", &options.working_set },
		{ "gyges.rate=", &options.rate },
		{ "gyges.blk=", &options.disk_workers },
		{ "gyges.net=", &options.pings },
		{ "gyges.visit=", &options.visit },
		{ "gyges.exit_after=", &options.exit_after },
		{ "gyges.beat=", &options.beat_ms },
	};
	char line[4096];
	FILE *file = fopen("/proc/cmdline", "r");

	if (!file || !fgets(line, sizeof(line), file))
		die("/proc/cmdline");
	fclose(file);
	for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n"))
		for (size_t i = 0; i < sizeof(WORDS) / sizeof(*WORDS); i++)
			if (!strncmp(word, WORDS[i].word, strlen(WORDS[i].word)))
				*WORDS[i].into = size_of(word + strlen(WORDS[i].word));
}

static void open_console(void)
{
	struct termios raw;

	console = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (console < 0)
		console = STDOUT_FILENO;
	if (tcgetattr(console, &raw))
		return;
	cfmakeraw(&raw);
	tcsetattr(console, TCSANOW, &raw);
}

/* Heartbeats do not wait until the workers have had their turn. */
static void take_precedence(void)
{
	struct sched_param first = { .sched_priority = 1 };

	if (sched_setscheduler(0, SCHED_FIFO, &first))
		die("SCHED_FIFO");
}

static int open_buttons(struct pollfd *buttons)
{
	glob_t found;
	int n = 0;

	if (glob("/dev/input/event*", 0, NULL, &found))
		return 0;
	for (size_t i = 0; i < found.gl_pathc && n < MAX_BUTTONS; i++) {
		buttons[n].events = POLLIN;
		buttons[n].fd = open(found.gl_pathv[i], O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		n += buttons[n].fd >= 0;
	}
	globfree(&found);
	return n;
}

/* ---- the life of it ---- */

static bool power_button(struct pollfd *buttons, int count)
{
	struct input_event event;

	if (poll(buttons, (nfds_t)count, 0) <= 0)
		return false;
	for (int i = 0; i < count; i++)
		while (read(buttons[i].fd, &event, sizeof(event)) == sizeof(event))
			if (event.type == EV_KEY && event.code == KEY_POWER && event.value)
				return true;
	return false;
}

static void beat(const char *word, uint64_t n)
{
	char disk[64] = "", net[96] = "", visits[32] = "";

	if (options.disk_workers)
		snprintf(disk, sizeof(disk), " blk=%lu blkbad=%lu", disk_done(), disk_bad());
	if (options.pings)
		snprintf(net, sizeof(net), " net=%lu netlost=%lu netbad=%lu", net_answered(), net_lost(), net_bad());
	if (options.visit)
		snprintf(visits, sizeof(visits), " visits=%lu", visits_done());
	say("%s %lu %lu passes=%lu verified=%lu corrupt=%lu%s%s%s", word, n, now_ns() / 1000000, memory_passes(),
	    memory_verified(), memory_corrupt(), disk, net, visits);
}

int main(void)
{
	struct pollfd buttons[MAX_BUTTONS];
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	uint64_t n = 1, due;
	int button_count;

	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	if (mount("dev", "/dev", "devtmpfs", 0, NULL) || mount("proc", "/proc", "proc", 0, NULL))
		die("mount");
	open_console();
	read_options();
	load_modules();
	button_count = open_buttons(buttons);
	if (options.disk_workers)
		disk_start("/dev/vda", (int)options.disk_workers);
	if (options.pings)
		net_start((int)options.pings);
	memory_start(options.working_set / PAGE, options.rate, (int)cpus);
	if (options.visit)
		visits_start(options.visit);
	take_precedence();
	say("START pages=%lu workers=%ld", options.working_set / PAGE, cpus);
	for (due = now_ns();; n++) {
		beat("HB", n);
		if (power_button(buttons, button_count))
			break;
		if (options.exit_after && now_ns() / 1000000000ull >= options.exit_after)
			break;
		due += options.beat_ms * 1000000;
		/* Beats that could not be are not made up for. */
		if (due < now_ns())
			due = now_ns();
		sleep_until(due);
	}
	memory_finish();
	if (options.disk_workers)
		disk_finish();
	if (options.pings)
		net_finish();
	if (options.visit)
		visits_finish();
	beat("END", n + 1);
	power_off();
}
