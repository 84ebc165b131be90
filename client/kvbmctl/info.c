/* Verbs that show what the daemon reports: status, namespaces, clients, tiers, metrics, top.  Rendering is generic (output.c); a list shows
 * the columns that a terminal has room for, everything is in the report of one thing and in JSON.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "ctl.h"
#include "output.h"

/* The most telling first: what the terminal has no room for is left out from the end. */
static const char *const info_namespaces[] = { "name",        "lane_bytes", "slots",    "used",      "g3_used",
	                                       "looked_up/s", "stored/s",   "hit_rate", "dropped/s", "pins",
	                                       "device",      "looked_up",  "stored",   "dropped",   "lanes",
	                                       "sessions",    "g3_slots",   NULL };
static const char *const info_clients[] = { "session",           "name",    "pid",  "uid",       "state",
	                                    "namespaces",        "writing", "pins", "looked_up", "hit_rate",
	                                    "connected_seconds", NULL };
static const char *const info_tiers[] = { "name",   "state", "size_bytes",  "used_bytes", "slots",  "free", "used",
	                                  "device", "pages", "quarantined", "in_flight",  "queued", NULL };

/* Columns of the terminal; SIZE_MAX: it is none, and COLUMNS does not say. */
static size_t info_width(void)
{
	const char *given = getenv("COLUMNS");
	struct winsize size;

	if (given && atoi(given) > 0)
		return (size_t)atoi(given);
	return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : SIZE_MAX;
}

/* The columns of a list; NULL: all. */
static const char *const *info_columns(const char *topic)
{
	if (strcmp(topic, "namespaces") == 0)
		return info_namespaces;
	if (strcmp(topic, "clients") == 0)
		return info_clients;
	return strcmp(topic, "tiers") == 0 ? info_tiers : NULL;
}

/* @rows with those of the columns @names that a line has room for; new. */
static json_t *info_pick(const json_t *rows, const char *const *names)
{
	const char *some[32];
	size_t n = 0, width = info_width();
	json_t *table;

	for (; names[n]; n++) {
		assert(n + 1 < sizeof(some) / sizeof(*some));
		some[n] = names[n];
	}
	for (;; n--) {
		some[n] = NULL;
		table = output_pick(rows, some);
		if (n <= 1 || output_width(table) <= width)
			return table;
		json_decref(table);
	}
}

static const char *info_number(const json_t *row, const char *name, char buf[OUTPUT_TEXT])
{
	const json_t *value = json_object_get(row, name);

	output_value(name, value ? value : json_null(), buf);
	return buf;
}

/* What a tier with drives does at the moment. */
static void info_drives(const json_t *tier, const char *name)
{
	char a[OUTPUT_TEXT], b[OUTPUT_TEXT];

	if (!json_object_get(tier, "drives"))
		return;
	printf("%s: %s in flight, %s waiting", name, info_number(tier, "in_flight", a), info_number(tier, "queued", b));
	printf("; reads %s in %s", info_number(tier, "read_bytes_per_second", a),
	       info_number(tier, "read_latency_seconds", b));
	printf(", writes %s in %s\n", info_number(tier, "write_bytes_per_second", a),
	       info_number(tier, "write_latency_seconds", b));
	printf("%s: written today %s", name, info_number(tier, "written_today_bytes", a));
	if (json_integer_value(json_object_get(tier, "write_budget_bytes")) > 0)
		printf(" of %s", info_number(tier, "write_budget_bytes", a));
	printf("; %s errors, %s wrong checksums\n", info_number(tier, "errors", a),
	       info_number(tier, "checksum_errors", b));
}

/* A list as a table, and what is to say about its rows. */
static void info_list(const char *topic, const json_t *rows)
{
	json_t *table = info_pick(rows, info_columns(topic)), *row;
	size_t i;

	output_table(table);
	json_decref(table);
	json_array_foreach(rows, i, row)
	{
		const char *note = json_string_value(json_object_get(row, "note")),
			   *name = json_string_value(json_object_get(row, "name"));

		info_drives(row, name);
		if (note && *note)
			printf("%s: %s\n", name, note);
	}
}

/* The status with its tiers as a list of their own. */
static void info_status(json_t *status)
{
	json_t *tiers = json_incref(json_object_get(status, "tiers"));

	json_object_del(status, "tiers");
	output_table(status);
	if (tiers) {
		printf("\n");
		info_list("tiers", tiers);
	}
	json_decref(tiers);
}

static void info_print(struct ctl *ctl, const char *topic, bool one, json_t *value)
{
	if (ctl->json)
		output_json(value);
	else if (strcmp(topic, "status") == 0)
		info_status(value);
	else if (one && json_array_size(value) == 1) /* reads better as lines than as a table with one row */
		output_table(json_array_get(value, 0));
	else if (!one && json_array_size(value) > 0)
		info_list(topic, value);
	else
		output_table(value);
	json_decref(value);
}

int verb_info(struct ctl *ctl, int argc, char **argv)
{
	const char *topic = ctl->verb->name;
	json_t *value;
	int r = ctl_args(ctl, NULL, &argc, argv, 0, strcmp(topic, "status") == 0 ? 0 : 1);

	if (r >= 0)
		return r;
	r = ctl_info(ctl, topic, argc ? argv[0] : NULL, &value);
	if (r != 0)
		return r;
	info_print(ctl, topic, argc > 0, value);
	return CTL_DONE;
}

/* ---- metrics ---- */

/* "name{labels} value" lines as an object; comments are left out. */
static json_t *metrics_object(char *text)
{
	json_t *object = json_object();
	char *save = NULL;

	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char *value = strrchr(line, ' '), *end;
		double x;

		if (*line == '#' || !value)
			continue;
		*value++ = '\0';
		x = strtod(value, &end);
		if (*end)
			continue;
		if (!strpbrk(value, ".eEnN") && x < 9e18)
			json_object_set_new(object, line, json_integer(strtoll(value, NULL, 10)));
		else
			json_object_set_new(object, line, json_real(x));
	}
	return object;
}

int verb_metrics(struct ctl *ctl, int argc, char **argv)
{
	char *text = NULL;
	int r = ctl_args(ctl, NULL, &argc, argv, 0, 0);

	if (r >= 0)
		return r;
	r = ctl_open(ctl);
	if (r != 0)
		return r;
	r = kvbm_info(ctl->kvbm, "metrics", NULL, NULL, 0, &text);
	if (r < 0)
		return ctl_failed(ctl, "metrics", r);
	if (ctl->json)
		ctl_print(ctl, metrics_object(text));
	else
		fputs(text, stdout);
	free(text);
	return CTL_DONE;
}

/* ---- top ---- */

static const char *const top_counters[] = { "looked_up", "hits", "stored", "dropped" };

/* Of the same namespace, in the same kind of memory? */
static bool top_is_same(const json_t *a, const json_t *b)
{
	const char *name = json_string_value(json_object_get(a, "name"));
	const char *other = json_string_value(json_object_get(b, "name"));
	const char *device = json_string_value(json_object_get(a, "device"));
	const char *other_device = json_string_value(json_object_get(b, "device"));

	return name && other && strcmp(name, other) == 0 &&
	       strcmp(device ? device : "", other_device ? other_device : "") == 0;
}

/* Adds "<counter>/s" to each namespace of @now, from its row in @before. */
static void top_rates(json_t *now, const json_t *before, double seconds)
{
	json_t *row, *old;
	size_t i, k;

	json_array_foreach(now, i, row)
	{
		json_array_foreach(before, k, old)
		{
			if (!top_is_same(row, old))
				continue;
			for (size_t c = 0; c < sizeof(top_counters) / sizeof(*top_counters); c++) {
				const json_t *a = json_object_get(old, top_counters[c]),
					     *b = json_object_get(row, top_counters[c]);
				char rate[32];

				snprintf(rate, sizeof(rate), "%s/s", top_counters[c]);
				if (json_is_number(a) && json_is_number(b))
					json_object_set_new(
						row, rate,
						json_real((json_number_value(b) - json_number_value(a)) / seconds));
			}
		}
	}
}

static int top_once(struct ctl *ctl, json_t **before, uint64_t *then_ns, bool clear)
{
	json_t *status, *namespaces;
	uint64_t now_ns;
	int r = ctl_info(ctl, "status", NULL, &status);

	if (r != 0)
		return r;
	r = ctl_info(ctl, "namespaces", NULL, &namespaces);
	if (r != 0) {
		json_decref(status);
		return r;
	}
	now_ns = clock_now_ns();
	if (*before)
		top_rates(namespaces, *before, (double)(now_ns - *then_ns) / 1e9);
	json_decref(*before);
	*before = json_deep_copy(namespaces);
	*then_ns = now_ns;
	if (clear)
		printf("\033[H\033[2J");
	if (ctl->json) {
		json_object_set_new(status, "namespaces", namespaces);
		ctl_print(ctl, status);
	} else {
		info_print(ctl, "status", false, status);
		printf("\n");
		info_print(ctl, "namespaces", false, namespaces);
	}
	fflush(stdout);
	return CTL_DONE;
}

int verb_top(struct ctl *ctl, int argc, char **argv)
{
	double interval = 1;
	uint32_t count = 0;
	const struct arg table[] = {
		{ "interval", 'n', ARG_REAL, &interval, "SECONDS", "between two looks (1)" },
		{ "count", 'c', ARG_U32, &count, "N", "end after so many looks (0: never)" },
		{ 0 },
	};
	json_t *before = NULL;
	uint64_t then_ns = 0;
	int r = ctl_args(ctl, table, &argc, argv, 0, 0);

	if (r >= 0)
		return r;
	if (interval < 0.05 || interval > 86400)
		return ctl_usage(ctl, "interval is 0.05 to 86400 seconds");
	for (uint32_t i = 0; count == 0 || i < count; i++) {
		struct timespec pause = { .tv_sec = (time_t)interval,
			                  .tv_nsec = (long)((interval - (double)(time_t)interval) * 1e9) };

		if (i > 0)
			while (nanosleep(&pause, &pause) != 0 && errno == EINTR)
				;
		r = top_once(ctl, &before, &then_ns, isatty(STDOUT_FILENO));
		if (r != CTL_DONE)
			break;
	}
	json_decref(before);
	return r;
}
