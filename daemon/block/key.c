/* A key is bytes and a length.  Nothing here hashes it: where keys live is index.c's business (proto/shm.h has the function). */
#include "block/key.h"

#include <assert.h>

struct key key_from(const void *bytes, uint32_t len)
{
	struct key k = { .len = len };

	assert(len >= KEY_MIN && len <= KEY_MAX);
	memcpy(k.bytes, bytes, len);
	return k;
}

bool key_equal(const struct key *a, const struct key *b)
{
	return a->len == b->len && memcmp(a->bytes, b->bytes, KEY_MAX) == 0;
}

bool key_is_zero(const uint8_t *bytes, uint32_t len)
{
	static const uint8_t zeros[KEY_MAX];

	assert(len <= KEY_MAX);
	return memcmp(bytes, zeros, len) == 0;
}

void key_format(const struct key *k, char ret_text[2 * KEY_MAX + 1])
{
	static const char hex[] = "0123456789abcdef";

	assert(k->len <= KEY_MAX);
	for (uint32_t i = 0; i < k->len; i++) {
		ret_text[2 * i] = hex[k->bytes[i] >> 4];
		ret_text[2 * i + 1] = hex[k->bytes[i] & 15];
	}
	ret_text[2 * k->len] = 0;
}

static int key_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

bool key_parse(const char *text, struct key *ret_key)
{
	struct key k = { .len = 0 };
	size_t n = strlen(text);

	if (n % 2 || n < 2 * KEY_MIN || n > 2 * KEY_MAX)
		return false;
	for (size_t i = 0; i < n; i += 2) {
		int hi = key_digit(text[i]), lo = key_digit(text[i + 1]);

		if (hi < 0 || lo < 0)
			return false;
		k.bytes[k.len++] = (uint8_t)(hi << 4 | lo);
	}
	*ret_key = k;
	return true;
}
