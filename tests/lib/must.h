/* SPDX-License-Identifier: Apache-2.0 */
/* must.h: assertions that work in a test, in what it calls and in the client processes it forks alike: they say where and what on
 * stderr and end the process with 1, which Check and client_join() both count as a failure.  The kernel then ends what that
 * process had started (PR_SET_PDEATHSIG); its directory stays, with the daemon's log in it.
 */
#ifndef TESTS_LIB_MUST_H
#define TESTS_LIB_MUST_H

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define must(condition) \
	do { \
		if (!(condition)) { \
			int must_errno_ = errno; \
			fprintf(stderr, "%s:%d: %s: must be: %s (errno %s)\n", __FILE__, __LINE__, __func__, \
			        #condition, strerror(must_errno_)); \
			_exit(1); \
		} \
	} while (0)

/* Whole numbers of any kind; both values are shown. */
#define must_cmp(a, op, b) \
	do { \
		long long must_a_ = (long long)(a), must_b_ = (long long)(b); \
		if (!(must_a_ op must_b_)) { \
			fprintf(stderr, "%s:%d: %s: must be: %s %s %s, but these are %lld and %lld\n", __FILE__, \
			        __LINE__, __func__, #a, #op, #b, must_a_, must_b_); \
			_exit(1); \
		} \
	} while (0)
#define must_eq(a, b) must_cmp(a, ==, b)

#define must_contain(text, part) \
	do { \
		const char *must_text_ = (text), *must_part_ = (part); \
		if (!strstr(must_text_, must_part_)) { \
			fprintf(stderr, "%s:%d: %s: \"%s\" must contain \"%s\"\n", __FILE__, __LINE__, __func__, \
			        must_text_, must_part_); \
			_exit(1); \
		} \
	} while (0)

#endif
