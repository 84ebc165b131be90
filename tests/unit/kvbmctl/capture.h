/* SPDX-License-Identifier: Apache-2.0 */
/* capture.h: what a function prints on stdout or stderr, as text. */
#ifndef TESTS_KVBMCTL_CAPTURE_H
#define TESTS_KVBMCTL_CAPTURE_H

#include <check.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct capture {
	FILE *stream; /* borrows: stdout or stderr */
	int saved_fd, memory_fd;
};

static inline void capture_begin(struct capture *c, FILE *stream)
{
	fflush(stream);
	c->stream = stream;
	c->saved_fd = dup(fileno(stream));
	c->memory_fd = memfd_create("capture", MFD_CLOEXEC);
	ck_assert(c->saved_fd >= 0 && c->memory_fd >= 0);
	ck_assert_int_ge(dup2(c->memory_fd, fileno(stream)), 0);
}

static inline void capture_end(struct capture *c, char *ret_text, size_t size)
{
	ssize_t n;

	fflush(c->stream);
	ck_assert_int_ge(dup2(c->saved_fd, fileno(c->stream)), 0);
	n = pread(c->memory_fd, ret_text, size - 1, 0);
	ck_assert(n >= 0 && (size_t)n < size - 1);
	ret_text[n] = '\0';
	close(c->memory_fd);
	close(c->saved_fd);
}

#endif
