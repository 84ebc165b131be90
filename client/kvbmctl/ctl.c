/* The ground of all verbs.  Owns the session with the daemon through struct ctl; main.c ends it. */
#include "ctl.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "block/key.h"
#include "output.h"
#include "trace.h"
#include "workload.h"

static void ctl_help(const struct ctl *ctl, const struct arg *table, const struct arg *common)
{
	const struct verb *verb = ctl->verb;

	printf("kvbmctl [-S SOCKET] [-o table|json] %s %s\n\n%s.\n", verb->name, verb->words, verb->summary);
	if (verb->more)
		printf("%s\n", verb->more);
	printf("\n");
	if (table)
		args_help(table);
	args_help(common);
	printf("\nExit codes: 0 done, 1 no, 2 usage, 3 daemon unreachable.\n");
}

int ctl_args(struct ctl *ctl, const struct arg *table, int *argc, char **argv, int least, int most)
{
	const struct arg common[] = {
		{ "socket", 'S', ARG_STRING, &ctl->socket, "PATH", "the daemon's socket" },
		{ "output", 'o', ARG_STRING, &ctl->output, "FORM", "table (default) or json" },
		{ 0 },
	};
	char program[64];
	int r;

	snprintf(program, sizeof(program), "kvbmctl %s", ctl->verb->name);
	r = args_parse(table ? table : common, common, program, argc, argv);
	if (r == ARGS_E_HELP) {
		ctl_help(ctl, table, common);
		return CTL_DONE;
	}
	if (r == ARGS_E_USAGE) {
		fprintf(stderr, "usage: kvbmctl %s %s   (kvbmctl %s --help says more)\n", ctl->verb->name,
		        ctl->verb->words, ctl->verb->name);
		return CTL_USAGE;
	}
	if (strcmp(ctl->output, "json") != 0 && strcmp(ctl->output, "table") != 0)
		return ctl_usage(ctl, "output is table or json, not '%s'", ctl->output);
	ctl->json = strcmp(ctl->output, "json") == 0;
	if (*argc < least)
		return ctl_usage(ctl, "something is missing: %s", ctl->verb->words);
	if (*argc > most)
		return ctl_usage(ctl, "unexpected '%s'", argv[most]);
	return -1;
}

int ctl_usage(const struct ctl *ctl, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "kvbmctl %s: ", ctl->verb->name);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\nusage: kvbmctl %s %s   (kvbmctl %s --help says more)\n", ctl->verb->name, ctl->verb->words,
	        ctl->verb->name);
	return CTL_USAGE;
}

void ctl_socket(const struct ctl *ctl, char *buf, size_t size)
{
	const char *path = ctl->socket ? ctl->socket : getenv("KVBM_SOCKET"), *dir = getenv("RUNTIME_DIRECTORY");

	if (!dir || !*dir)
		dir = getenv("XDG_RUNTIME_DIR");
	if (path && *path)
		snprintf(buf, size, "%s", path);
	else
		snprintf(buf, size, "%s/kvbmd.sock", dir && *dir ? dir : "/run/kvbmd");
}

static bool ctl_is_unreachable(int r)
{
	return r == -KVBM_E_SYS || r == -KVBM_E_TIMEOUT || r == -KVBM_E_GONE || r == -KVBM_E_PROTO;
}

int ctl_open(struct ctl *ctl)
{
	struct kvbm_options options = { .socket = ctl->socket, .name = "kvbmctl" };
	char path[512];
	int r, saved;

	if (ctl->kvbm)
		return 0;
	errno = 0;
	r = kvbm_open(&options, &ctl->kvbm);
	if (r >= 0)
		return 0;
	saved = errno;
	ctl->kvbm = NULL;
	ctl_socket(ctl, path, sizeof(path));
	fprintf(stderr, "kvbmctl: no kvbmd at %s: %s", path, kvbm_strerror(r));
	if (r == -KVBM_E_SYS && saved)
		fprintf(stderr, " (%s)", strerror(saved));
	fprintf(stderr, "\nIs it running?  kvbmctl doctor says what is missing.\n");
	return ctl_is_unreachable(r) ? CTL_UNREACHABLE : CTL_NO;
}

int ctl_failed(const struct ctl *ctl, const char *what, int r)
{
	const char *text = ctl->kvbm ? kvbm_error(ctl->kvbm) : "";

	assert(r < 0);
	fprintf(stderr, "kvbmctl %s: %s: %s%s%s\n", ctl->verb->name, what, kvbm_strerror(r), *text ? ": " : "", text);
	return ctl_is_unreachable(r) ? CTL_UNREACHABLE : CTL_NO;
}

int ctl_info_try(struct kvbm *kvbm, const char *topic, const char *name, const void *key, uint32_t key_bytes,
                 json_t **ret_json)
{
	char *text = NULL;
	json_t *value;
	int r = kvbm_info(kvbm, topic, name, key, key_bytes, &text);

	if (r < 0)
		return r;
	value = text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
	free(text);
	if (!value)
		return -KVBM_E_PROTO;
	*ret_json = value;
	return 0;
}

int ctl_info(struct ctl *ctl, const char *topic, const char *name, json_t **ret_json)
{
	int r = ctl_open(ctl);

	if (r != 0)
		return r;
	r = ctl_info_try(ctl->kvbm, topic, name, NULL, 0, ret_json);
	return r < 0 ? ctl_failed(ctl, name ? name : topic, r) : 0;
}

void ctl_print(const struct ctl *ctl, json_t *value)
{
	if (ctl->json)
		output_json(value);
	else
		output_table(value);
	json_decref(value);
}

int ctl_key(const struct ctl *ctl, const char *text, uint8_t ret_key[KVBM_KEY_MAX])
{
	struct key key;

	if (!key_parse(text, &key)) {
		ctl_usage(ctl, "'%s' is not a key: %u to %u bytes in hex digits", text, KEY_MIN, KEY_MAX);
		return -1;
	}
	memcpy(ret_key, key.bytes, KVBM_KEY_MAX);
	return (int)key.len;
}

int ctl_keys(struct ctl *ctl, int argc, char **argv, uint8_t **ret_keys, uint32_t *ret_len)
{
	uint8_t *keys = calloc((size_t)argc + 1, KVBM_KEY_MAX), key[KVBM_KEY_MAX];
	int len = 0, first = 0;

	if (!keys)
		return CTL_NO;
	for (int i = 0; i < argc; i++) {
		len = ctl_key(ctl, argv[i], key);
		first = i == 0 ? len : first;
		if (len >= 0 && len != first)
			ctl_usage(ctl, "'%s' is not as long as the first key", argv[i]);
		if (len < 0 || len != first) {
			free(keys);
			return CTL_USAGE;
		}
		memcpy(keys + (size_t)i * (size_t)len, key, (size_t)len);
	}
	*ret_keys = keys;
	*ret_len = (uint32_t)len;
	return 0;
}

int ctl_namespace(struct ctl *ctl, const char *given, char **ret_ns)
{
	json_t *list, *row, *first = NULL;
	size_t i, n = 0;
	int r;

	if (given) {
		*ret_ns = strdup(given);
		return *ret_ns ? 0 : CTL_NO;
	}
	r = ctl_info(ctl, "namespaces", NULL, &list);
	if (r != 0)
		return r;
	json_array_foreach(list, i, row)
	{
		if (json_object_get(row, "device"))
			continue; /* a pool of one of the others */
		first = n++ ? first : row;
	}
	if (n == 1)
		*ret_ns = strdup(json_string_value(json_object_get(first, "name")));
	else
		r = ctl_usage(ctl, "--namespace is missing: there are %zu", n);
	json_decref(list);
	return r;
}

int ctl_requests(const struct ctl *ctl, const char *trace, const char *workload, uint32_t limit, struct requests *rs)
{
	char error[TRACE_ERROR_SIZE] = "";
	int r;

	_Static_assert(WORKLOAD_ERROR_SIZE <= TRACE_ERROR_SIZE, "one buffer for both");
	if (!trace == !workload)
		return ctl_usage(ctl, "give --trace FILE or --workload KIND, one of them");
	requests_init(rs);
	r = trace ? trace_read(trace, rs, error) : workload_make(workload, rs, error);
	if (r != 0) {
		fprintf(stderr, "kvbmctl %s: %s\n", ctl->verb->name, error);
		return r == WORKLOAD_E_TEXT && workload ? CTL_USAGE : CTL_NO;
	}
	if (limit)
		requests_truncate(rs, limit);
	return 0;
}

void ctl_progress(const char *what, double part, const char *detail)
{
	char bar[31];

	if (!isatty(STDERR_FILENO))
		return;
	part = part < 0 ? 0 : part > 1 ? 1 : part;
	for (int i = 0; i < 30; i++)
		bar[i] = i < (int)(part * 30) ? '#' : '.';
	bar[30] = '\0';
	fprintf(stderr, "\r%s [%s] %3.0f %% %s\033[K", what, bar, part * 100, detail);
	fflush(stderr);
}

void ctl_progress_end(void)
{
	if (isatty(STDERR_FILENO))
		fprintf(stderr, "\r\033[K");
}
