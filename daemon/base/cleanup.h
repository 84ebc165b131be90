/* cleanup.h: locals that own.
 *
 *	_cleanup_(close_p) int fd = open(path, O_RDONLY | O_CLOEXEC);
 *	_cleanup_(session_free_p) struct session *s = NULL;      with CLEANUP_DEFINE(struct session *, session_free)
 *	...
 *	*ret_session = steal(&s);
 *	*ret_fd = steal_fd(&fd);
 */
#ifndef BASE_CLEANUP_H
#define BASE_CLEANUP_H

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))

/* Take the pointer out of *@p, leaving NULL: the caller owns it from here on. */
#define steal(p) \
	(__extension__({ \
		__typeof__(p) steal_from_ = (p); \
		__typeof__(*steal_from_) steal_value_ = *steal_from_; \
		*steal_from_ = NULL; \
		steal_value_; \
	}))

/* The same for a file descriptor, leaving -1. */
static inline int steal_fd(int *fd)
{
	int value = *fd;

	*fd = -1;
	return value;
}

static inline void free_p(void *p)
{
	free(*(void **)p);
}

/* Closes *@fd if it is one; errno stays as it was, so that a return of -errno on the same line is right. */
static inline void close_p(int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		(void)close(*fd);
	errno = saved;
}

/* Makes func_p() out of a destructor that takes NULL. */
#define CLEANUP_DEFINE(type, func) \
	static inline __attribute__((unused)) void func##_p(type *p) \
	{ \
		(void)func(*p); \
	} \
	struct cleanup_semicolon_

#endif
