/* SPDX-License-Identifier: Apache-2.0 */
/* local_addr.h - this host's addresses, for whoever needs one of them and cannot tell which will do. */
#ifndef GY_LOCAL_ADDR_H
#define GY_LOCAL_ADDR_H

#include <stdint.h>

/* >= 0: this address will do. */
typedef int local_addr_fn(void *arg, const char *address);

/*
 * Calls @fn with the address, in digits, of this host's end of the way to @towards (which may be NULL), then with all
 * others but loopback, until one will do. @fn's result for that one, its address in @address; -ENODEV: none.
 */
int local_addr_find(const char *towards, local_addr_fn *fn, void *arg, char *address, uint32_t bytes);

#endif
