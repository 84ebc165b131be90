/* SPDX-License-Identifier: Apache-2.0 */
/* listener.h: where clients connect: sockets that systemd made, or one of our own in the file system.
 *
 * Loop thread.  Each connection goes to sessions_adopt(), which asks who it is.
 */
#ifndef KVBMD_SERVER_LISTENER_H
#define KVBMD_SERVER_LISTENER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "loop/loop.h"
#include "server/session.h"

enum {
	LISTENER_E_REFUSED = 1, /* the socket cannot be ours; logged with what to do */
	LISTENER_E_CONFIG,      /* a setting cannot be; logged with its name */
};

#define LISTENER_MAX 4u
#define LISTENER_PATH 108u /* what sockaddr_un holds */

struct listener_config {
	const char *path;  /* borrows for the call; absolute */
	const char *group; /* the same; "": leave it alone */
	mode_t mode;
	bool make_directory; /* @path is a default: its directory may be made */
};

struct listener_socket {
	struct listener *listener;
	struct loop_watch watch;
	int fd; /* owns */
};

struct listener {
	struct loop *loop;         /* borrows */
	struct sessions *sessions; /* borrows */
	struct listener_socket sockets[LISTENER_MAX];
	unsigned n;
	char path[LISTENER_PATH]; /* where the first one is; for reports */
	bool inherited;           /* systemd's: not ours to remove */
	bool made_directory;
	dev_t dev; /* the file that bind() made */
	ino_t ino;
	int lock_fd;  /* owns; -1 where there is none */
	int spare_fd; /* owns; given up for a moment to tell a peer that there are no descriptors left */
	int fd_limit; /* from here on descriptors are kept for ourselves */
	bool short_of_fds;
	struct loop_timer pause;
};

/* Finds or makes the sockets; clients can connect from here on, and wait.  Faults and the outcomes above; after either nothing
 * needs closing. */
_must_check_ int listener_open(struct listener *l, const struct listener_config *config);

/* Accepts from now on.  Faults only. */
_must_check_ int listener_start(struct listener *l, struct loop *loop, struct sessions *sessions);

/* Connects nobody any more and removes what it made, if that is still what it made.  The memory is the loop's until
 * loop_free(). */
void listener_close(struct listener *l);

#endif
