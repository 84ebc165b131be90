/* SPDX-License-Identifier: Apache-2.0 */
/* scale.h: how much of it: less under sanitizers, and as much as the environment says. */
#ifndef TESTS_LIB_SCALE_H
#define TESTS_LIB_SCALE_H

#include <stdlib.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SCALE_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SCALE_SANITIZED 1
#endif

#ifdef SCALE_SANITIZED
#define SCALE(plain, sanitized) (sanitized)
#else
#define SCALE(plain, sanitized) (plain)
#endif

/* What the environment variable @name says, else @otherwise. */
static inline unsigned scale_env(const char *name, unsigned otherwise)
{
	const char *value = getenv(name);

	return value && *value ? (unsigned)strtoul(value, NULL, 10) : otherwise;
}

#endif
