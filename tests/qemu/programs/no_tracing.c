// SPDX-License-Identifier: Apache-2.0
/* no_tracing.c - runs a command that may trace nobody: no_tracing PROGRAM ARG... */
#include <stdio.h>
#include <unistd.h>

#include "../../shim/no_tracing.h"

int main(int argc, char **argv)
{
	if (argc < 2 || forbid_tracing()) {
		perror("no_tracing");
		return 126;
	}
	execvp(argv[1], argv + 1);
	perror(argv[1]);
	return 127;
}
