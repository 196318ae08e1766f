// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "launcher.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static bool json;

void gy_note(const char *format, ...)
{
	va_list args;

	fputs("gyges: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

/* A path may hold any byte but NUL; what is not plain ASCII becomes '?'. */
static void print_json_string(const char *text)
{
	putchar('"');
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			printf("\\%c", *text);
		else
			putchar(*text >= ' ' && *text < 127 ? *text : '?');
	}
	putchar('"');
}

void gy_fail(const char *format, ...)
{
	char message[2 * PATH_MAX];
	va_list args;

	va_start(args, format);
	vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	if (!json) {
		gy_note("%s", message);
		return;
	}
	/* The error event of lib/events.ts. */
	printf("{\"type\":\"error\",\"code\":%d,\"name\":\"PreflightError\",\"message\":",
	       GY_EXIT_HOST);
	print_json_string(message);
	printf(",\"guest_location\":\"unknown\",\"check\":\"unpack\"}\n");
}

static bool asks_for_json(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--"); i++) {
		if (!strcmp(argv[i], "--json"))
			return true;
	}
	return false;
}

static void *must(void *pointer)
{
	if (!pointer) {
		gy_fail("out of memory");
		exit(GY_EXIT_HOST);
	}
	return pointer;
}

static char *format_path(const char *root, const char *pack, const char *name)
{
	char *path = NULL;

	if (asprintf(&path, "%s/%s/%s", root, pack, name) < 0)
		path = NULL;
	return must(path);
}

/* "--allow-x={self}" becomes "--allow-x=" and @self; no other braces occur. */
static const char *expand(const char *flag, const char *self)
{
	const char *brace = strchr(flag, '{');
	char *out = NULL;

	if (!brace)
		return flag;
	if (asprintf(&out, "%.*s%s", (int)(brace - flag), flag, self) < 0)
		out = NULL;
	return must(out);
}

/*
 * Variables that steer Deno are ours to set: a DENO_V8_FLAGS or NODE_OPTIONS
 * from the operator's shell is meant for other programs.
 */
static void clear_runtime_environment(void)
{
	size_t i = 0;

	while (environ && environ[i]) {
		const char *entry = environ[i];
		size_t length = strcspn(entry, "=");
		char name[64];

		if ((strncmp(entry, "DENO_", 5) == 0 ||
		     strncmp(entry, "NODE_", 5) == 0) && length < sizeof(name)) {
			memcpy(name, entry, length);
			name[length] = '\0';
			unsetenv(name); /* closes the gap: stay at i */
		} else {
			i++;
		}
	}
}

static void set_environment(const char *self, const char *lib, const char *cache)
{
	clear_runtime_environment();
	if (setenv("GYGES_FORM", "launcher", 1) ||
	    setenv("GYGES_SELF", self, 1) ||
	    setenv("GYGES_LIB", lib, 1) ||
	    setenv("DENO_DIR", cache, 1) ||
	    setenv("DENO_NO_UPDATE_CHECK", "1", 1) ||
	    /* A package.json above the cache directory is none of ours. */
	    setenv("DENO_NO_PACKAGE_JSON", "1", 1))
		must(NULL);
}

/* The path of this file; false: it has been said what is wrong with it. */
static bool find_self(char self[PATH_MAX])
{
	ssize_t length = readlink("/proc/self/exe", self, PATH_MAX - 1);

	if (length < 0) {
		gy_fail("cannot find my own file: /proc/self/exe: %s; mount /proc",
			strerror(errno));
		return false;
	}
	self[length] = '\0';
	/* Deno splits permission values at commas and knows no escape there. */
	if (strchr(self, ',')) {
		gy_fail("there is a comma in %s: move this file to a path without one",
			self);
		return false;
	}
	return true;
}

int main(int argc, char **argv)
{
	static const char *const fixed[] = {
		"gyges", "run", "--quiet", "--no-prompt", "--no-config",
		"--no-lock", "--no-remote", "--no-npm", "--cached-only", NULL
	};
	const char *runtime = gy_packs[GY_PACK_RUNTIME].hash;
	const char *app = gy_packs[GY_PACK_APP].hash;
	char self[PATH_MAX], root[PATH_MAX];
	char *deno, *lib, *script, *cache;
	const char **args;
	size_t n = 0;

	json = asks_for_json(argc, argv);
	if (!find_self(self))
		return GY_EXIT_HOST;

	if (gy_store_open(root) < 0)
		return GY_EXIT_HOST;

	deno = format_path(root, runtime, "deno");
	lib = format_path(root, app, "libgyges.so");
	script = format_path(root, app, "main.js");
	cache = format_path(root, app, GY_CACHE_DIR);

	/* 64 is room for the fixed flags and the permission list. */
	args = must(calloc(64 + (size_t)argc, sizeof(*args)));
	for (size_t i = 0; fixed[i]; i++)
		args[n++] = fixed[i];
	for (size_t i = 0; gy_permissions[i] && n < 60; i++)
		args[n++] = expand(gy_permissions[i], self);
	args[n++] = script;
	for (int i = 1; i < argc; i++)
		args[n++] = argv[i];

	set_environment(self, lib, cache);
	execv(deno, (char *const *)args);
	gy_fail("cannot execute %s: %s", deno, strerror(errno));
	return GY_EXIT_HOST;
}
