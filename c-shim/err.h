/* SPDX-License-Identifier: Apache-2.0 */
/* err.h - the words that go with an error code. */
#ifndef GY_ERR_H
#define GY_ERR_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

/* Where a caller wants the words; text may be NULL. */
struct gy_err {
	char *text;
	uint32_t bytes;
};

/* Writes the words and returns @ret, so that a failure is one statement. */
__attribute__((format(printf, 3, 4)))
static inline int gy_err_set(const struct gy_err *err, int ret, const char *format, ...)
{
	va_list args;

	if (!err || !err->text || !err->bytes)
		return ret;
	va_start(args, format);
	vsnprintf(err->text, err->bytes, format, args);
	va_end(args);
	return ret;
}

#endif
