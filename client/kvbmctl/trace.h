/* trace.h: reads request traces in the format of the Mooncake project: one JSON object a line, with the numbers "timestamp" (ms),
 * "input_length" and "output_length" (tokens) and "hash_ids", the ids (integers >= 0) of the input's prefix blocks in order.  All four
 * are required; other members are passed over, blank lines too.
 */
#ifndef KVBMCTL_TRACE_H
#define KVBMCTL_TRACE_H

#include <stddef.h>

#include "requests.h"

enum { TRACE_E_FORMAT = 1 };

#define TRACE_MAX_IDS 16384u                  /* of one request: the most keys that one call of libkvbm takes */
#define TRACE_MAX_LINE (4u << 20)             /* bytes */
#define TRACE_MAX_ALL_IDS (UINT32_C(1) << 30) /* of all requests: 8 GiB of them */
#define TRACE_ERROR_SIZE 512

/* Reads @path ("-": standard input) into @rs, which must be empty; on failure it is empty again and @ret_error says what is wrong and
 * in which line.  Outcome: FORMAT; -errno when the file cannot be read. */
int trace_read(const char *path, struct requests *rs, char ret_error[TRACE_ERROR_SIZE]);

#endif
