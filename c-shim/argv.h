/* SPDX-License-Identifier: Apache-2.0 */
/* argv.h - arguments as they come from TypeScript: NUL-terminated, one after the other. */
#ifndef GY_ARGV_H
#define GY_ARGV_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Pointers to the arguments in @text, ended by NULL. NULL: no memory, or they are not all terminated. */
static inline char **gy_argv_split(const char *text, uint64_t bytes)
{
	uint64_t n = 0, at = 0;
	char **argv;

	if (!bytes || text[bytes - 1])
		return NULL;
	for (uint64_t i = 0; i < bytes; i++)
		n += !text[i];
	argv = calloc(n + 1, sizeof(*argv));
	for (uint64_t i = 0; argv && i < n; i++) {
		argv[i] = (char *)text + at;
		at += strlen(argv[i]) + 1;
	}
	return argv;
}

#endif
