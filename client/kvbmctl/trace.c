/* The trace reader.  It is strict: whatever is not a request is refused with its line, because a replay of half a trace would report
 * figures that look right.
 */
#include "trace.h"

#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int trace_bad(char *ret_error, const char *path, uint64_t line, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

static int trace_bad(char *ret_error, const char *path, uint64_t line, const char *fmt, ...)
{
	char what[TRACE_ERROR_SIZE - 160];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	snprintf(ret_error, TRACE_ERROR_SIZE, "%.120s:%llu: %s", path, (unsigned long long)line, what);
	return TRACE_E_FORMAT;
}

/* The name of the first member of @object that is not the number >= 0 that it must be; NULL: all are. */
static const char *trace_numbers(const json_t *object, double ret_numbers[3])
{
	static const char *const names[] = { "timestamp", "input_length", "output_length" };

	for (int i = 0; i < 3; i++) {
		const json_t *member = json_object_get(object, names[i]);

		if (!json_is_number(member) || json_number_value(member) < 0 || json_number_value(member) > 9e15)
			return names[i];
		ret_numbers[i] = json_number_value(member);
	}
	return NULL;
}

static int trace_request(const json_t *object, const char *path, uint64_t line, struct requests *rs, char *ret_error)
{
	const json_t *ids = json_object_get(object, "hash_ids"), *id;
	double numbers[3];
	const char *bad;
	size_t i;
	int r;

	if (!json_is_object(object))
		return trace_bad(ret_error, path, line, "not a JSON object");
	bad = trace_numbers(object, numbers);
	if (bad)
		return trace_bad(ret_error, path, line, "\"%s\" is missing or not a number >= 0", bad);
	if (!json_is_array(ids))
		return trace_bad(ret_error, path, line, "\"hash_ids\" is missing or not an array");
	if (json_array_size(ids) > TRACE_MAX_IDS)
		return trace_bad(ret_error, path, line, "%zu hash_ids, at most %u are possible", json_array_size(ids),
		                 TRACE_MAX_IDS);
	if (rs->n_ids + json_array_size(ids) > TRACE_MAX_ALL_IDS || rs->n == UINT32_MAX / 4)
		return trace_bad(ret_error, path, line, "the trace is too long");
	r = requests_begin(rs, numbers[0], (uint64_t)numbers[1], (uint64_t)numbers[2]);
	json_array_foreach(ids, i, id)
	{
		if (!json_is_integer(id) || json_integer_value(id) < 0)
			return trace_bad(ret_error, path, line, "hash_ids[%zu] is not an integer >= 0", i);
		if (r == 0)
			r = requests_add(rs, (uint64_t)json_integer_value(id));
	}
	return r;
}

static bool trace_is_blank(const char *text, size_t len)
{
	while (len > 0 && memchr(" \t\r\n", text[len - 1], 4))
		len--;
	return len == 0;
}

/* Reads a line of at most @size bytes.  Returns its length, more than @size if it is longer, or -1 at the end or on an error. */
static ssize_t trace_line(FILE *file, char *text, size_t size)
{
	size_t len = 0;
	int c = '\0';

	while (len <= size && c != '\n' && (c = getc_unlocked(file)) != EOF) {
		if (len < size)
			text[len] = (char)c;
		len++;
	}
	return len ? (ssize_t)len : -1;
}

static int trace_lines(FILE *file, const char *path, struct requests *rs, char *ret_error)
{
	char *text = malloc(TRACE_MAX_LINE);
	ssize_t len;
	uint64_t line = 0;
	int r = text ? 0 : -ENOMEM;

	while (r == 0 && (len = trace_line(file, text, TRACE_MAX_LINE)) >= 0) {
		json_error_t error;
		json_t *object;

		line++;
		if (len > (ssize_t)TRACE_MAX_LINE) {
			r = trace_bad(ret_error, path, line, "the line is longer than %u bytes", TRACE_MAX_LINE);
			break;
		}
		if (trace_is_blank(text, (size_t)len))
			continue;
		object = json_loadb(text, (size_t)len, JSON_REJECT_DUPLICATES, &error);
		r = object ? trace_request(object, path, line, rs, ret_error)
		           : trace_bad(ret_error, path, line, "%s (column %d)", error.text, error.column);
		json_decref(object);
	}
	if (r == 0 && ferror(file))
		r = errno ? -errno : -EIO;
	if (r == 0 && rs->n == 0)
		r = trace_bad(ret_error, path, line, "no request in it");
	free(text);
	return r;
}

int trace_read(const char *path, struct requests *rs, char ret_error[TRACE_ERROR_SIZE])
{
	bool standard = strcmp(path, "-") == 0;
	FILE *file = standard ? stdin : fopen(path, "re");
	int r;

	if (file) {
		r = trace_lines(file, path, rs, ret_error);
		if (!standard)
			fclose(file);
	} else {
		r = -errno;
	}
	if (r < 0)
		snprintf(ret_error, TRACE_ERROR_SIZE, "%.200s: %s", path, strerror(-r));
	if (r != 0)
		requests_deinit(rs);
	return r;
}
