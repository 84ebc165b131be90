/* error.h: how faults are born and carried.
 *
 *   0    done
 *   < 0  -errno: a fault nobody planned for here; logged once where it is born, traced on the way
 *   > 0  an outcome named in the callee's header; the caller handles it or turns it into its own
 *
 *	fd = open(path, O_RDONLY | O_CLOEXEC);
 *	if (fd < 0)
 *		return error_origin(-errno);
 *	...
 *	r = file_check(fd);
 *	if (r < 0)
 *		return error_trace(r);
 *
 * Any thread.
 */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

/* The caller may not ignore what this function returns. */
#define _must_check_ __attribute__((warn_unused_result))

/* A fault is born here: logs it with its place, at level error, and gives @r (< 0) back. */
#define error_origin(r) error_origin_at((r), __FILE__, __LINE__, __func__)

/* A fault passes here: logs the place at level debug and gives @r back.  0 passes silently.  Outcomes (> 0) must not be
 * passed through, which is asserted. */
#define error_trace(r) error_trace_at((r), __FILE__, __LINE__, __func__)

int error_origin_at(int r, const char *file, int line, const char *func);
int error_trace_at(int r, const char *file, int line, const char *func);

#endif
