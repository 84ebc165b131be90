/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a configuration file, as an environment variable and as a flag.
 *
 * Held: no crash; a refusal says why, in one line; what is accepted prints, and the print is accepted and means the same.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct config fuzz_first, fuzz_second, fuzz_merged;

static void require(bool ok)
{
	if (!ok)
		abort();
}

static int read_bytes(struct config *c, const void *data, size_t size, struct config_error *e)
{
	FILE *f = size ? fmemopen((void *)data, size, "r") : fopen("/dev/null", "re");
	int r;

	require(f != NULL);
	config_init(c);
	r = config_read(c, f, "fuzz.conf", e);
	fclose(f);
	return r == 0 ? config_check(c, 0, e) : r;
}

static void require_reason(int r, const struct config_error *e)
{
	require(r == CONFIG_E_BAD && e->text[0] && !strchr(e->text, '\n') && strlen(e->text) < sizeof(e->text));
}

static void try_one_setting(const uint8_t *data, size_t size)
{
	struct config_error e = { "" };
	char text[512] = "KVBMD_";
	char *env[] = { text, NULL }, *flag = text + 6, *value;
	int r;

	if (size >= sizeof(text) - 6)
		size = sizeof(text) - 7;
	memcpy(flag, data, size);
	config_init(&fuzz_first);
	r = config_read_env(&fuzz_first, env, &e);
	if (r != 0)
		require_reason(r, &e);
	value = strchr(flag, '=');
	if (!value)
		return;
	*value++ = '\0';
	r = config_set(&fuzz_first, flag, value, CONFIG_FROM_FLAG, &e);
	if (r != 0)
		require_reason(r, &e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct config_error e = { "" };
	char *text = NULL, kept[64];
	size_t length = 0;
	FILE *f;
	int r;

	try_one_setting(data, size);
	r = read_bytes(&fuzz_first, data, size, &e);
	if (r != 0) {
		require_reason(r, &e);
		return 0;
	}
	f = open_memstream(&text, &length);
	require(f != NULL);
	config_print(&fuzz_first, f);
	fclose(f);
	require(read_bytes(&fuzz_second, text, length, &e) == 0);
	free(text);
	require(config_reload(&fuzz_first, &fuzz_second, &fuzz_merged, kept, sizeof(kept), &e) == 0 && !kept[0]);
	require(fuzz_first.n_namespaces == fuzz_second.n_namespaces);
	for (uint32_t i = 0; i < fuzz_first.n_namespaces; i++) {
		const struct config_namespace *a = &fuzz_first.namespaces[i], *b = &fuzz_second.namespaces[i];

		require(strcmp(a->name, b->name) == 0 && a->uids.n == b->uids.n);
		require(a->share.value == b->share.value && a->share.is_percent == b->share.is_percent);
		require(a->max.value == b->max.value && a->max.is_percent == b->max.is_percent);
	}
	return 0;
}
