/* output.h: what people and programs read.  JSON has raw numbers; tables have numbers for people, by the ending of their name: _bytes,
 * _ns, _us, _ms, _rate.
 */
#ifndef KVBMCTL_OUTPUT_H
#define KVBMCTL_OUTPUT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#define OUTPUT_TEXT 320

/* "1.2 GiB", "12.3 k" and "1.50 ms" into @buf of @size; returns it. */
char *output_bytes(double bytes, char *buf, size_t size);
char *output_count(double n, char *buf, size_t size);
char *output_duration(double ns, char *buf, size_t size);

/* @value as the member @name of an object, in few characters. */
void output_value(const char *name, const json_t *value, char ret_text[OUTPUT_TEXT]);

/* The whole of @value as one JSON text and a newline. */
void output_json(const json_t *value);

/* @rows, an array of objects, with only the members @names (NULL-terminated), in that order; new. */
json_t *output_pick(const json_t *rows, const char *const *names);

/* Characters that a line of @rows as a table takes. */
size_t output_width(const json_t *rows);

/* Any JSON value as text: an object's members as lines, an array of objects as a table with a column for each name that occurs. */
void output_table(json_t *value);

#endif
