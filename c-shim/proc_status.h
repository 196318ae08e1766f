/* SPDX-License-Identifier: Apache-2.0 */
/* proc_status.h - single lines of /proc/PID/status. */
#ifndef GY_PROC_STATUS_H
#define GY_PROC_STATUS_H

#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

/* The first line that fits @format, which has one conversion: its value in *value. False: there is none. */
static inline bool proc_status(pid_t pid, const char *format, void *value)
{
	char path[64], line[256];
	bool found = false;
	FILE *status;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	status = fopen(path, "re");
	while (status && !found && fgets(line, sizeof(line), status))
		found = sscanf(line, format, value) == 1;
	if (status)
		fclose(status);
	return found;
}

#endif
