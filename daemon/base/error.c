/* error.c: logs the birth and the way of faults.  Owns no state; the code itself is the only thing carried. */
#include "base/error.h"

#include <string.h>

#include "base/assert.h"
#include "base/log.h"

int error_origin_at(int r, const char *file, int line, const char *func)
{
	char text[128];

	assert(r < 0);
	log_error("%s:%d: %s: %s (%d)", file, line, func, strerror_r(-r, text, sizeof(text)), r);
	return r;
}

int error_trace_at(int r, const char *file, int line, const char *func)
{
	assert(r <= 0);
	if (r < 0)
		log_debug("%s:%d: %s: passes on %d", file, line, func, r);
	return r;
}
