/* SPDX-License-Identifier: Apache-2.0 */
/* config_value.c: values of settings, as text and as fields.  What is formatted here parses to the same again.  Knows kinds of values,
 * not the keys that have them. */
#include "config_key.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/size.h"

/* A text may quote a file that is not a configuration at all. */
static void config_error_clean(struct config_error *e)
{
	for (char *p = e->text; *p; p++) {
		if (iscntrl((unsigned char)*p))
			*p = '?';
	}
}

int config_refuse(struct config_error *e, const char *format, ...)
{
	va_list args;

	assert(e && format);
	va_start(args, format);
	vsnprintf(e->text, sizeof(e->text), format, args);
	va_end(args);
	config_error_clean(e);
	return CONFIG_E_BAD;
}

int config_refuse_at(struct config_error *e, const char *format, ...)
{
	struct config_error reason = *e;
	va_list args;
	size_t n;

	assert(format);
	va_start(args, format);
	vsnprintf(e->text, sizeof(e->text), format, args);
	va_end(args);
	n = strlen(e->text);
	snprintf(e->text + n, sizeof(e->text) - n, "%s", reason.text);
	config_error_clean(e);
	return CONFIG_E_BAD;
}

static bool config_parse_number(const char *text, unsigned base, uint64_t *ret_number)
{
	uint64_t number = 0;
	size_t n = strlen(text);

	if (n == 0 || n > 18)
		return false;
	for (; *text; text++) {
		if (*text < '0' || *text >= (char)('0' + base))
			return false;
		number = number * base + (unsigned)(*text - '0');
	}
	*ret_number = number;
	return true;
}

static int config_parse_uids(const char *text, struct config_uids *ret_uids, struct config_error *e)
{
	struct config_uids uids = { .n = 0 };
	char one[32];
	uint64_t uid;

	while (*text) {
		size_t n = strcspn(text, ","), blank = strspn(text, " \t");

		if (n - blank >= sizeof(one) || (text[n] == ',' && !text[n + 1]))
			return config_refuse(e, "is a list of uids separated by commas");
		snprintf(one, sizeof(one), "%.*s", (int)(n - blank), text + blank);
		one[strcspn(one, " \t")] = '\0';
		/* The last one is what chown() and friends take for "none". */
		if (!config_parse_number(one, 10, &uid) || uid >= UINT32_MAX)
			return config_refuse(e, "'%s' is not a uid: a number up to %u", one, UINT32_MAX - 1);
		for (uint32_t i = 0; i < uids.n; i++) {
			if (uids.uid[i] == uid)
				return config_refuse(e, "names uid %s twice", one);
		}
		if (uids.n == CONFIG_MAX_UIDS)
			return config_refuse(e, "has more than %d uids", CONFIG_MAX_UIDS);
		uids.uid[uids.n++] = (uid_t)uid;
		text += n + (text[n] == ',');
	}
	*ret_uids = uids;
	return 0;
}

static int config_parse_word(const struct config_key *k, const char *text, unsigned *ret_value, struct config_error *e)
{
	const struct config_word *w;
	char list[128] = "";
	bool truth, is_truth = size_parse_bool(text, &truth) == 0;
	size_t n = 0;

	for (w = k->words; w->text; w++) {
		if (strcmp(text, w->text) == 0 || (is_truth && w->truth == (truth ? 'y' : 'n'))) {
			*ret_value = w->value;
			return 0;
		}
		n += (size_t)snprintf(list + n, sizeof(list) - n, "%s%s", n ? ", " : "", w->text);
		assert(n < sizeof(list));
	}
	return config_refuse(e, "'%s' is none of %s", text, list);
}

static int config_parse_text(const struct config_key *k, const char *text, char *ret_text, struct config_error *e)
{
	size_t n = strlen(text);

	if (n > k->max)
		return config_refuse(e, "is longer than %" PRIu64 " bytes", k->max);
	if (n > 0 && k->type == TYPE_PATH && text[0] != '/')
		return config_refuse(e, "'%s' is not an absolute path", text);
	for (const char *p = text; *p; p++) {
		if (k->type == TYPE_PATH || k->type == TYPE_PATHS
		            ? iscntrl((unsigned char)*p) || strchr(" ;#", *p)
		            : !isalnum((unsigned char)*p) && !strchr(k->type == TYPE_DEVICES ? "-," : "_-.", *p))
			return config_refuse(e, "has a '%c' in it", *p);
	}
	memset(ret_text, 0, k->max + 1);
	memcpy(ret_text, text, n);
	return 0;
}

/* "/a,/b": blanks around the commas are dropped, and doubled slashes. */
static int config_parse_paths(const struct config_key *k, const char *text, char *ret_text, struct config_error *e)
{
	char packed[CONFIG_VALUE_SIZE];
	unsigned n_paths = 0;
	size_t n = 0;

	for (const char *p = text; *p; p++) {
		bool blank = *p == ' ' && (n == 0 || packed[n - 1] == ',' || p[1 + strspn(p + 1, " ")] == ',' ||
		                           p[strspn(p, " ")] == '\0');
		bool slash = *p == '/' && n > 0 && packed[n - 1] == '/';

		if (!blank && !slash && n < sizeof(packed) - 1)
			packed[n++] = *p;
	}
	packed[n] = '\0';
	for (const char *p = packed; *p; p += strcspn(p, ","), p += *p == ',') {
		if (*p != '/')
			return config_refuse(e, "'%.*s' is not an absolute path", (int)strcspn(p, ","), p);
		if (++n_paths > CONFIG_MAX_PATHS)
			return config_refuse(e, "has more than %d paths", CONFIG_MAX_PATHS);
	}
	if (n > 0 && packed[n - 1] == ',')
		return config_refuse(e, "ends with a comma");
	return config_parse_text(k, packed, ret_text, e);
}

/* "10%" or, where @bare, "10". */
static bool config_parse_percent(const char *text, bool bare, uint64_t *ret_percent)
{
	char digits[8];
	size_t n = strcspn(text, "%");

	if (n >= sizeof(digits) || (text[n] ? text[n + 1] != '\0' : !bare))
		return false;
	memcpy(digits, text, n);
	digits[n] = '\0';
	return config_parse_number(digits, 10, ret_percent);
}

struct config_unit {
	const char *name;
	uint64_t scale;
};

static void config_format_scaled(uint64_t value, const struct config_unit *units, char *buf, size_t size)
{
	while (units->scale > 1 && (value == 0 || value % units->scale != 0))
		units++;
	snprintf(buf, size, "%" PRIu64 "%s", value / units->scale, units->name);
}

static void config_format_size(uint64_t bytes, char *buf, size_t size)
{
	static const struct config_unit units[] = { { "T", TIB }, { "G", GIB }, { "M", MIB }, { "K", KIB }, { "", 1 } };

	config_format_scaled(bytes, units, buf, size);
}

static void config_format_time(uint64_t ns, char *buf, size_t size)
{
	static const struct config_unit units[] = { { "h", 3600 * SEC }, { "m", 60 * SEC }, { "s", SEC },
		                                    { "ms", MS },        { "us", 1000 },    { "ns", 1 } };

	config_format_scaled(ns, units, buf, size);
}

static void config_format_uids(const struct config_uids *uids, char *buf, size_t size)
{
	size_t n = 0;

	buf[0] = '\0';
	for (uint32_t i = 0; i < uids->n; i++)
		n += (size_t)snprintf(buf + n, size - n, "%s%u", i ? "," : "", uids->uid[i]);
	assert(n < size);
}

static const char *config_format_word(const struct config_key *k, unsigned value)
{
	const struct config_word *w = k->words;

	while (w->text && w->value != value)
		w++;
	assert(w->text);
	return w->text;
}

void config_format(const struct config_key *k, const void *field, char buf[CONFIG_VALUE_SIZE])
{
	const struct config_amount *amount = field;

	switch (k->type) {
	case TYPE_PATH:
	case TYPE_PATHS:
	case TYPE_GROUP:
	case TYPE_DEVICES:
		snprintf(buf, CONFIG_VALUE_SIZE, "%s", (const char *)field);
		break;
	case TYPE_WORD:
		snprintf(buf, CONFIG_VALUE_SIZE, "%s", config_format_word(k, *(const unsigned *)field));
		break;
	case TYPE_COUNT:
		snprintf(buf, CONFIG_VALUE_SIZE, "%" PRIu64, *(const uint64_t *)field);
		break;
	case TYPE_MODE:
		snprintf(buf, CONFIG_VALUE_SIZE, "0%" PRIo64, *(const uint64_t *)field);
		break;
	case TYPE_SIZE:
		config_format_size(*(const uint64_t *)field, buf, CONFIG_VALUE_SIZE);
		break;
	case TYPE_TIME:
		config_format_time(*(const uint64_t *)field, buf, CONFIG_VALUE_SIZE);
		break;
	case TYPE_PERCENT:
		snprintf(buf, CONFIG_VALUE_SIZE, "%" PRIu64 "%%", *(const uint64_t *)field);
		break;
	case TYPE_AMOUNT:
		if (amount->is_percent)
			snprintf(buf, CONFIG_VALUE_SIZE, "%" PRIu64 "%%", amount->value);
		else
			config_format_size(amount->value, buf, CONFIG_VALUE_SIZE);
		break;
	case TYPE_UIDS:
		config_format_uids(field, buf, CONFIG_VALUE_SIZE);
		break;
	}
}

size_t config_field_size(const struct config_key *k)
{
	switch (k->type) {
	case TYPE_PATH:
	case TYPE_PATHS:
	case TYPE_GROUP:
	case TYPE_DEVICES:
		return k->max + 1;
	case TYPE_WORD:
		return sizeof(unsigned);
	case TYPE_COUNT:
	case TYPE_MODE:
	case TYPE_SIZE:
	case TYPE_TIME:
	case TYPE_PERCENT:
		return sizeof(uint64_t);
	case TYPE_AMOUNT:
		return sizeof(struct config_amount);
	case TYPE_UIDS:
		return sizeof(struct config_uids);
	}
	abort();
}

static int config_parse_in_range(const struct config_key *k, uint64_t value, const char *text, uint64_t *ret_value,
                                 struct config_error *e)
{
	char low[CONFIG_VALUE_SIZE], high[CONFIG_VALUE_SIZE];

	if (value < k->min || value > k->max) {
		config_format(k, &k->min, low);
		config_format(k, &k->max, high);
		return config_refuse(e, "%s is not between %s and %s", text, low, high);
	}
	*ret_value = value;
	return 0;
}

static int config_parse_amount(const struct config_key *k, const char *text, struct config_amount *ret_amount,
                               struct config_error *e)
{
	struct config_amount a = { .is_percent = strchr(text, '%') != NULL, .value = 0 };

	if (a.is_percent ? !config_parse_percent(text, false, &a.value) : size_parse(text, &a.value) != 0)
		return config_refuse(e, "'%s' is neither a size (such as 16K, 0.5G) nor a percentage (25%%)", text);
	if (a.value < k->min || a.value > (a.is_percent ? 100 : k->max))
		return config_refuse(e, "%s is not between %" PRIu64 " and %s", text, k->min,
		                     a.is_percent ? "100%" : "64T");
	*ret_amount = a;
	return 0;
}

int config_parse(const struct config_key *k, const char *text, void *field, struct config_error *e)
{
	uint64_t value = 0;

	switch (k->type) {
	case TYPE_PATHS:
		return config_parse_paths(k, text, field, e);
	case TYPE_PATH:
	case TYPE_GROUP:
	case TYPE_DEVICES:
		return config_parse_text(k, text, field, e);
	case TYPE_WORD:
		return config_parse_word(k, text, field, e);
	case TYPE_UIDS:
		return config_parse_uids(text, field, e);
	case TYPE_AMOUNT:
		return config_parse_amount(k, text, field, e);
	case TYPE_COUNT:
		if (!config_parse_number(text, 10, &value))
			return config_refuse(e, "'%s' is not a whole number", text);
		break;
	case TYPE_MODE:
		if (!config_parse_number(text, 8, &value))
			return config_refuse(e, "'%s' is not an octal number such as 0660", text);
		break;
	case TYPE_SIZE:
		if (size_parse(text, &value) != 0)
			return config_refuse(e, "'%s' is not a size such as 4096, 16K or 0.5G", text);
		break;
	case TYPE_TIME:
		if (size_parse_duration(text, &value) != 0)
			return config_refuse(e, "'%s' is not a duration such as 100ms, 5s or 1m", text);
		break;
	case TYPE_PERCENT:
		if (!config_parse_percent(text, true, &value))
			return config_refuse(e, "'%s' is not a percentage such as 10%%", text);
		break;
	}
	return config_parse_in_range(k, value, text, field, e);
}
