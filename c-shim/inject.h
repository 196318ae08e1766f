/* SPDX-License-Identifier: Apache-2.0 */
/* inject.h - one fault made on purpose, so that a test can see its detector fire. */
#ifndef GY_INJECT_H
#define GY_INJECT_H

#include <stdbool.h>
#include <stdint.h>

#include "gyges.h"

/*
 * Is @what to happen within [first, first + count)? Answers true once, with the page in *page, and disarms.
 * One relaxed load where nothing is armed.
 */
bool inject_take(enum gy_inject what, uint64_t first, uint64_t count, uint64_t *page);

#endif
