/* The option parser.  It owns nothing: strings point into argv. */
#include "args.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/size.h"

static const struct arg *args_find(const struct arg *table, const char *name, size_t len)
{
	for (const struct arg *a = table; a && a->name; a++)
		if (strlen(a->name) == len && memcmp(a->name, name, len) == 0)
			return a;
	return NULL;
}

static const struct arg *args_find_letter(const struct arg *table, char letter)
{
	for (const struct arg *a = table; a && a->name; a++)
		if (a->letter == letter)
			return a;
	return NULL;
}

static bool args_number(const char *text, uint64_t max, uint64_t *ret_value)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*ret_value = strtoull(text, &end, 10);
	return !*end && errno == 0 && *ret_value <= max;
}

static bool args_real(const char *text, double *ret_value)
{
	char *end;

	*ret_value = strtod(text, &end);
	return *text && !*end && isfinite(*ret_value) && *ret_value >= 0;
}

static bool args_set(const struct arg *a, const char *text)
{
	uint64_t number;

	switch (a->kind) {
	case ARG_STRING:
		*(const char **)a->to = text;
		return true;
	case ARG_U32:
		if (!args_number(text, UINT32_MAX, &number))
			return false;
		*(uint32_t *)a->to = (uint32_t)number;
		return true;
	case ARG_U64:
		return args_number(text, UINT64_MAX, a->to);
	case ARG_SIZE:
		return size_parse(text, a->to) == 0;
	case ARG_REAL:
		return args_real(text, a->to);
	case ARG_FLAG:
		*(bool *)a->to = true;
		return true;
	}
	return false;
}

static const char *args_kind_text(enum arg_kind kind)
{
	switch (kind) {
	case ARG_U32:
	case ARG_U64:
		return "a whole number";
	case ARG_SIZE:
		return "a size such as 16K or 0.5G";
	case ARG_REAL:
		return "a number >= 0";
	case ARG_STRING:
	case ARG_FLAG:
		break;
	}
	return "a value";
}

/* One option at argv[i]; returns how many words it took, 0: it is wrong. */
static int args_option(const struct arg *table, const struct arg *more, const char *program, int left, char **argv)
{
	const char *word = argv[0], *value = NULL;
	const struct arg *a;
	bool is_long = word[1] == '-';

	if (is_long) {
		size_t len = strcspn(word + 2, "=");

		value = word[2 + len] ? word + 3 + len : NULL;
		a = args_find(table, word + 2, len);
		a = a ? a : args_find(more, word + 2, len);
	} else {
		value = word[2] ? word + 2 : NULL;
		a = args_find_letter(table, word[1]);
		a = a ? a : args_find_letter(more, word[1]);
	}
	if (!a) {
		fprintf(stderr, "%s: unknown option '%s'\n", program, word);
		return 0;
	}
	if (a->kind == ARG_FLAG && value) {
		fprintf(stderr, "%s: '%s' takes no value\n", program, word);
		return 0;
	}
	if (a->kind == ARG_FLAG)
		return args_set(a, "") ? 1 : 0;
	if (!value && left < 2) {
		fprintf(stderr, "%s: '%s' needs %s\n", program, word, args_kind_text(a->kind));
		return 0;
	}
	if (!args_set(a, value ? value : argv[1])) {
		fprintf(stderr, "%s: --%s needs %s, not '%s'\n", program, a->name, args_kind_text(a->kind),
		        value ? value : argv[1]);
		return 0;
	}
	return value ? 1 : 2;
}

int args_parse(const struct arg *table, const struct arg *more, const char *program, int *argc, char **argv)
{
	int words = 0, i = 0;

	assert(*argc >= 0);
	while (i < *argc) {
		int taken;

		if (strcmp(argv[i], "--") == 0) {
			while (++i < *argc)
				argv[words++] = argv[i];
			break;
		}
		if (argv[i][0] != '-' || !argv[i][1]) {
			argv[words++] = argv[i++];
			continue;
		}
		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
			return ARGS_E_HELP;
		taken = args_option(table, more, program, *argc - i, argv + i);
		if (taken == 0)
			return ARGS_E_USAGE;
		i += taken;
	}
	*argc = words;
	return 0;
}

void args_help(const struct arg *table)
{
	for (const struct arg *a = table; a->name; a++) {
		char left[64];
		int n = a->letter ? snprintf(left, sizeof(left), "-%c, --%s", a->letter, a->name)
		                  : snprintf(left, sizeof(left), "    --%s", a->name);

		if (a->kind != ARG_FLAG)
			snprintf(left + n, sizeof(left) - (size_t)n, " %s", a->value);
		printf("  %-30s %s\n", left, a->help);
	}
}
