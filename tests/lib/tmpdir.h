/* SPDX-License-Identifier: Apache-2.0 */
/* tmpdir.h: a directory of the test's own, with a path short enough for a socket. */
#ifndef TESTS_LIB_TMPDIR_H
#define TESTS_LIB_TMPDIR_H

#include <stddef.h>

struct tmpdir {
	char path[64];
};

/* Mode 0755, so that clients of other uids reach the socket in it. */
void tmpdir_make(struct tmpdir *dir);
/* With all that is in it. */
void tmpdir_remove(struct tmpdir *dir);
/* dir/name into @ret_path of @size bytes. */
void tmpdir_path(const struct tmpdir *dir, const char *name, char *ret_path, size_t size);
/* Makes dir/name with that text. */
void tmpdir_write(const struct tmpdir *dir, const char *name, const char *text);
/* All of a file as a string; the caller frees it.  Empty if there is none. */
char *tmpdir_read(const char *path);

#endif
