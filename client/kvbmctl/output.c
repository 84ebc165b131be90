/* Output renders whatever the daemon reports without knowing its fields, so that new ones are shown at once. */
#include "output.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OUTPUT_COLUMNS 32

struct output_column {
	const char *name; /* borrows */
	size_t width;
	bool right;
};

char *output_bytes(double bytes, char *buf, size_t size)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	size_t unit = 0;

	while (bytes >= 1024 && unit < 6) {
		bytes /= 1024;
		unit++;
	}
	snprintf(buf, size, bytes == floor(bytes) && (unit == 0 || bytes < 100) ? "%.0f %s" : "%.1f %s", bytes,
	         units[unit]);
	return buf;
}

char *output_count(double n, char *buf, size_t size)
{
	static const char *const units[] = { "", " k", " M", " G", " T", " P", " E" };
	size_t unit = 0;

	if (n < 10000) {
		snprintf(buf, size, n == floor(n) ? "%.0f" : "%.2f", n);
		return buf;
	}
	while (n >= 1000 && unit < 6) {
		n /= 1000;
		unit++;
	}
	snprintf(buf, size, "%.1f%s", n, units[unit]);
	return buf;
}

char *output_duration(double ns, char *buf, size_t size)
{
	if (ns < 1e3)
		snprintf(buf, size, "%.0f ns", ns);
	else if (ns < 1e6)
		snprintf(buf, size, "%.1f us", ns / 1e3);
	else if (ns < 1e9)
		snprintf(buf, size, "%.1f ms", ns / 1e6);
	else if (ns < 120e9)
		snprintf(buf, size, "%.1f s", ns / 1e9);
	else if (ns < 7200e9)
		snprintf(buf, size, "%.1f min", ns / 60e9);
	else if (ns < 172800e9)
		snprintf(buf, size, "%.1f h", ns / 3600e9);
	else
		snprintf(buf, size, "%.1f d", ns / 86400e9);
	return buf;
}

static bool output_ends(const char *name, const char *end)
{
	size_t n = strlen(name), m = strlen(end);

	return n >= m && strcmp(name + n - m, end) == 0;
}

/* Names things rather than counting them: its digits are all shown. */
static bool output_is_identity(const char *name)
{
	static const char *const ends[] = { "id",   "slot",    "generation", "session", "serial", "region",
		                            "seed", "version", "node",       "area",    "place",  "offset" };

	for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++)
		if (output_ends(name, ends[i]))
			return true;
	return false;
}

static void output_number(const char *name, const json_t *value, char *ret_text)
{
	double x = json_number_value(value);

	if (output_is_identity(name) && json_is_integer(value))
		snprintf(ret_text, OUTPUT_TEXT, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
	else if (output_ends(name, "bytes") || output_ends(name, "bytes_per_second"))
		output_bytes(x, ret_text, OUTPUT_TEXT - 4);
	else if (output_ends(name, "_ns"))
		output_duration(x, ret_text, OUTPUT_TEXT);
	else if (output_ends(name, "_us"))
		output_duration(x * 1e3, ret_text, OUTPUT_TEXT);
	else if (output_ends(name, "_ms"))
		output_duration(x * 1e6, ret_text, OUTPUT_TEXT);
	else if (output_ends(name, "seconds") || output_ends(name, "uptime_s"))
		output_duration(x * 1e9, ret_text, OUTPUT_TEXT);
	else if (output_ends(name, "rate") || output_ends(name, "ratio"))
		snprintf(ret_text, OUTPUT_TEXT, "%.1f %%", x * 100);
	else
		output_count(x, ret_text, OUTPUT_TEXT);
	if (output_ends(name, "bytes_per_second"))
		strcat(ret_text, "/s");
}

/* Some of it is text from strangers (clients name themselves): a terminal must not obey it.  U+0080 to U+009F are commands, too. */
static void output_tame(char *text)
{
	for (char *p = text; *p; p++) {
		unsigned char c = (unsigned char)p[0], next = (unsigned char)p[1];

		if (c < 0x20 || c == 0x7f)
			*p = '?';
		else if (c == 0xc2 && next >= 0x80 && next < 0xa0)
			p[0] = p[1] = '?';
	}
}

void output_value(const char *name, const json_t *value, char ret_text[OUTPUT_TEXT])
{
	char *dump;

	switch (json_typeof(value)) {
	case JSON_NULL:
		snprintf(ret_text, OUTPUT_TEXT, "-");
		return;
	case JSON_TRUE:
	case JSON_FALSE:
		snprintf(ret_text, OUTPUT_TEXT, "%s", json_is_true(value) ? "yes" : "no");
		return;
	case JSON_STRING:
		snprintf(ret_text, OUTPUT_TEXT, "%s", *json_string_value(value) ? json_string_value(value) : "-");
		output_tame(ret_text);
		return;
	case JSON_INTEGER:
	case JSON_REAL:
		output_number(name, value, ret_text);
		return;
	case JSON_ARRAY:
	case JSON_OBJECT:
		break;
	}
	dump = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
	snprintf(ret_text, OUTPUT_TEXT, "%s", dump ? dump : "?");
	output_tame(ret_text);
	if (dump && strlen(dump) >= OUTPUT_TEXT)
		strcpy(ret_text + OUTPUT_TEXT - 4, "...");
	free(dump);
}

void output_json(const json_t *value)
{
	json_dumpf(value, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(12));
	putchar('\n');
}

/* ---- tables ---- */

static bool output_is_rows(const json_t *value)
{
	const json_t *row;
	size_t i;

	if (!json_is_array(value) || json_array_size(value) == 0)
		return false;
	json_array_foreach(value, i, row) if (!json_is_object(row)) return false;
	return true;
}

/* Does @row's member @name get a column?  What does not fit into one is left to the report of that one thing. */
static bool output_fits(const json_t *member)
{
	if (json_is_array(member))
		return json_array_size(member) <= 8 && !output_is_rows(member);
	return !json_is_object(member);
}

static size_t output_columns(const json_t *rows, struct output_column *columns)
{
	size_t n = 0, i, c;
	const char *name;
	json_t *row, *member;

	json_array_foreach(rows, i, row)
	{
		json_object_foreach(row, name, member)
		{
			char text[OUTPUT_TEXT];

			if (!output_fits(member))
				continue;
			for (c = 0; c < n && strcmp(columns[c].name, name) != 0; c++)
				;
			if (c == OUTPUT_COLUMNS)
				continue;
			if (c == n)
				columns[n++] = (struct output_column){ .name = name, .width = strlen(name), .right = true };
			output_value(name, member, text);
			if (strlen(text) > columns[c].width)
				columns[c].width = strlen(text);
			columns[c].right &= json_is_number(member) || json_is_null(member);
		}
	}
	return n;
}

static void output_cell(const struct output_column *column, const char *text, bool last)
{
	if (column->right)
		printf("%*s", (int)column->width, text);
	else if (last)
		printf("%s", text);
	else
		printf("%-*s", (int)column->width, text);
	printf(last ? "\n" : "  ");
}

static void output_rows(const json_t *rows)
{
	struct output_column columns[OUTPUT_COLUMNS];
	size_t n = output_columns(rows, columns), i;
	json_t *row;

	for (size_t c = 0; c < n; c++)
		output_cell(&columns[c], columns[c].name, c + 1 == n);
	json_array_foreach(rows, i, row)
	{
		for (size_t c = 0; c < n; c++) {
			const json_t *member = json_object_get(row, columns[c].name);
			char text[OUTPUT_TEXT] = "-";

			if (member)
				output_value(columns[c].name, member, text);
			output_cell(&columns[c], text, c + 1 == n);
		}
	}
}

static void output_object(json_t *object, const char *prefix)
{
	char name[OUTPUT_TEXT], text[OUTPUT_TEXT];
	const char *key;
	json_t *member;

	json_object_foreach(object, key, member)
	{
		snprintf(name, sizeof(name), "%s%s", prefix, key);
		if (json_is_object(member)) {
			strncat(name, ".", sizeof(name) - strlen(name) - 1);
			output_object(member, name);
		} else if (!output_is_rows(member)) {
			output_value(key, member, text);
			printf("%-26s %s\n", name, text);
		}
	}
	json_object_foreach(object, key, member)
	{
		if (!output_is_rows(member))
			continue;
		printf("\n%s%s\n", prefix, key);
		output_rows(member);
	}
}

json_t *output_pick(const json_t *rows, const char *const *names)
{
	json_t *picked = json_array(), *row;
	size_t i;

	json_array_foreach(rows, i, row)
	{
		json_t *some = json_object();

		for (const char *const *name = names; *name; name++)
			if (json_object_get(row, *name))
				json_object_set(some, *name, json_object_get(row, *name));
		json_array_append_new(picked, some);
	}
	return picked;
}

size_t output_width(const json_t *rows)
{
	struct output_column columns[OUTPUT_COLUMNS];
	size_t n = output_columns(rows, columns), width = 0;

	for (size_t c = 0; c < n; c++)
		width += columns[c].width + (c ? 2 : 0);
	return width;
}

void output_table(json_t *value)
{
	char text[OUTPUT_TEXT];

	if (output_is_rows(value)) {
		output_rows(value);
	} else if (json_is_object(value)) {
		output_object(value, "");
	} else if (json_is_array(value) && json_array_size(value) == 0) {
		printf("none\n");
	} else {
		output_value("", value, text);
		printf("%s\n", text);
	}
}
