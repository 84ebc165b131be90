/* size.c: amounts as people write them.  No state, no floating point: 0.1G is the same number on every machine. */
#include "base/size.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/assert.h"

#define SIZE_DECIMALS_MAX 12

struct size_unit {
	const char *name;
	uint64_t factor;
};

/* @text = digits [ '.' digits ] unit; ret = number * factor(unit), fractions of 1 cut off. */
static int size_scale(const char *text, const struct size_unit *units, uint64_t *ret)
{
	unsigned __int128 whole = 0, fraction = 0, value;
	uint64_t fraction_scale = 1;
	unsigned digits = 0, decimals = 0;
	const char *p = text;

	assert(text && ret);
	for (; isdigit((unsigned char)*p); p++, digits++) {
		whole = whole * 10 + (unsigned)(*p - '0');
		if (whole > UINT64_MAX)
			return SIZE_E_RANGE;
	}
	if (*p == '.') {
		for (p++; isdigit((unsigned char)*p); p++, decimals++) {
			if (decimals == SIZE_DECIMALS_MAX)
				return SIZE_E_FORMAT;
			fraction = fraction * 10 + (unsigned)(*p - '0');
			fraction_scale *= 10;
		}
		if (decimals == 0)
			return SIZE_E_FORMAT;
	}
	if (digits == 0)
		return SIZE_E_FORMAT;

	for (; units->name; units++) {
		if (strcasecmp(p, units->name) != 0)
			continue;
		value = whole * units->factor + fraction * units->factor / fraction_scale;
		if (value > UINT64_MAX)
			return SIZE_E_RANGE;
		*ret = (uint64_t)value;
		return 0;
	}
	return SIZE_E_FORMAT;
}

int size_parse(const char *text, uint64_t *ret_bytes)
{
	static const struct size_unit units[] = {
		{ "", 1 },
		{ "b", 1 },
		{ "k", UINT64_C(1) << 10 },
		{ "kib", UINT64_C(1) << 10 },
		{ "m", UINT64_C(1) << 20 },
		{ "mib", UINT64_C(1) << 20 },
		{ "g", UINT64_C(1) << 30 },
		{ "gib", UINT64_C(1) << 30 },
		{ "t", UINT64_C(1) << 40 },
		{ "tib", UINT64_C(1) << 40 },
		{ NULL, 0 },
	};

	return size_scale(text, units, ret_bytes);
}

int size_parse_duration(const char *text, uint64_t *ret_ns)
{
	static const struct size_unit units[] = {
		{ "ns", 1 },
		{ "us", UINT64_C(1000) },
		{ "ms", UINT64_C(1000000) },
		{ "s", UINT64_C(1000000000) },
		{ "m", UINT64_C(60) * 1000000000 },
		{ "h", UINT64_C(3600) * 1000000000 },
		{ "d", UINT64_C(86400) * 1000000000 },
		{ NULL, 0 },
	};

	assert(text && ret_ns);
	if (strcmp(text, "0") == 0) {
		*ret_ns = 0;
		return 0;
	}
	return size_scale(text, units, ret_ns);
}

int size_parse_bool(const char *text, bool *ret_value)
{
	static const char *const words[2][4] = {
		{ "false", "no", "off", "0" },
		{ "true", "yes", "on", "1" },
	};

	assert(text && ret_value);
	for (int value = 0; value < 2; value++) {
		for (int i = 0; i < 4; i++) {
			if (strcasecmp(text, words[value][i]) == 0) {
				*ret_value = value;
				return 0;
			}
		}
	}
	return SIZE_E_FORMAT;
}

char *size_format(uint64_t bytes, char *buf, size_t size)
{
	static const char letters[] = "BKMGTPE";
	unsigned unit = 0;
	uint64_t whole, rest, hundredths;

	assert(buf && size > 0);
	while (unit + 1 < sizeof(letters) - 1 && bytes >> (10 * (unit + 1)))
		unit++;
	whole = bytes >> (10 * unit);
	rest = bytes & ((UINT64_C(1) << (10 * unit)) - 1);
	if (rest == 0) {
		snprintf(buf, size, "%" PRIu64 "%c", whole, letters[unit]);
		return buf;
	}
	hundredths = (uint64_t)((unsigned __int128)rest * 100 >> (10 * unit));
	snprintf(buf, size, "%" PRIu64 ".%02" PRIu64 "%c", whole, hundredths, letters[unit]);
	return buf;
}
