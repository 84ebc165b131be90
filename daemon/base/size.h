/* size.h: what people write for amounts: sizes, truth values, durations.
 *
 * Strict: the whole text must be the value (no blanks, no sign, no rest), fractions are computed in integers, and what
 * does not fit is refused.  Outcomes are SIZE_E_*; outputs are written only on success.  Any thread.
 */
#ifndef BASE_SIZE_H
#define BASE_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	SIZE_E_FORMAT = 1, /* not a value of this kind */
	SIZE_E_RANGE,      /* does not fit into 64 bits */
};

#define SIZE_TEXT_MAX 32

/* "4096", "16K", "0.5G", "1.5TiB": K, M, G, T are powers of 1024 in either case, optionally followed by "iB" ("KB" is
 * refused, because half of its users mean 1000); a plain number may end in "B".  At most 12 decimals; a fraction of a
 * byte is cut off. */
int size_parse(const char *text, uint64_t *ret_bytes);

/* true/yes/on/1, false/no/off/0, in any case. */
int size_parse_bool(const char *text, bool *ret_value);

/* "250us", "100ms", "5s", "1.5s", "10m", "1h", "1d"; "0" needs no unit. */
int size_parse_duration(const char *text, uint64_t *ret_ns);

/* "16K", "1.50G", 9140 is "8.92K": the largest unit that leaves at least 1; two decimals, cut off, unless exact.  @buf of
 * SIZE_TEXT_MAX always suffices.  Returns @buf. */
char *size_format(uint64_t bytes, char *buf, size_t size);

#endif
