/* SPDX-License-Identifier: Apache-2.0 */
/* daemon.h: the whole daemon, from start to end. */
#ifndef KVBMD_DAEMON_H
#define KVBMD_DAEMON_H

#include "config.h"

enum daemon_exit {
	DAEMON_OK = 0,     /* ended because it was told to */
	DAEMON_FAILED = 1, /* the log says what */
	DAEMON_REFUSED = 2 /* a setting cannot be; the log names it */
};

/* Serves until SIGTERM or SIGINT.  @sources are read again on SIGHUP; both are borrowed for the call. */
enum daemon_exit daemon_run(const struct config *config, const struct config_sources *sources);

#endif
