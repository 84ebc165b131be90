/* key.h: a block's sequence hash, as the engine computed it: opaque, 8 to 32 bytes, zero-extended. */
#ifndef KVBMD_BLOCK_KEY_H
#define KVBMD_BLOCK_KEY_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define KEY_MIN 8u
#define KEY_MAX 32u

struct key {
	uint8_t bytes[KEY_MAX];
	uint32_t len;
};

/* @len must be KEY_MIN..KEY_MAX. */
struct key key_from(const void *bytes, uint32_t len);
bool key_equal(const struct key *a, const struct key *b);
/* All zero: "no parent". */
bool key_is_zero(const uint8_t *bytes, uint32_t len);
/* Hex, NUL-terminated. */
void key_format(const struct key *k, char ret_text[2 * KEY_MAX + 1]);
/* From hex digits; false: not hex, odd, or a length outside KEY_MIN..KEY_MAX. */
bool key_parse(const char *text, struct key *ret_key);

#endif
