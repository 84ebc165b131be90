/* Verbs about single blocks and about dropping them: block, why, match, flush, drop.  None of them attaches: what they need is in the daemon's
 * reports, so the model of the namespace need not be known.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "output.h"

int verb_block(struct ctl *ctl, int argc, char **argv)
{
	const char *given = NULL;
	const struct arg table[] = { { "namespace", 'n', ARG_STRING, &given, "NAME", "the block's namespace" }, { 0 } };
	char *ns = NULL;
	uint8_t key[KVBM_KEY_MAX];
	json_t *value;
	int r = ctl_args(ctl, table, &argc, argv, 1, 1), len;

	if (r >= 0)
		return r;
	len = ctl_key(ctl, argv[0], key);
	if (len < 0)
		return CTL_USAGE;
	r = ctl_open(ctl);
	if (r == 0)
		r = ctl_namespace(ctl, given, &ns);
	if (r != 0)
		return r;
	r = ctl_info_try(ctl->kvbm, ctl->verb->name, ns, key, (uint32_t)len, &value);
	free(ns);
	if (r < 0)
		return ctl_failed(ctl, argv[0], r);
	ctl_print(ctl, value);
	return CTL_DONE;
}

/* Is the block there, by the report of it?  The absence of a block is told as an error or as "present": false. */
static int match_look(struct ctl *ctl, const char *ns, const uint8_t *key, uint32_t len, json_t **ret_block)
{
	int r = ctl_info_try(ctl->kvbm, "block", ns, key, len, ret_block);

	if (r == -KVBM_E_NOENT)
		return 0;
	if (r < 0)
		return r;
	if (!json_is_false(json_object_get(*ret_block, "present")))
		return 1;
	json_decref(*ret_block);
	return 0;
}

static int match_report(struct ctl *ctl, const char *ns, int looked_up, json_t *blocks)
{
	size_t hits = json_array_size(blocks);
	json_t *report;

	report = json_pack("{s:s, s:i, s:I, s:o}", "namespace", ns, "looked_up", looked_up, "hits", (json_int_t)hits,
	                   "blocks", blocks);
	ctl_print(ctl, report);
	return hits == (size_t)looked_up ? CTL_DONE : CTL_NO;
}

/* The leading blocks that are there.  0, or the exit code after saying why. */
static int match_prefix(struct ctl *ctl, const char *ns, int n, char **texts, json_t *blocks)
{
	uint8_t key[KVBM_KEY_MAX];
	json_t *one;

	for (int i = 0; i < n; i++) {
		int len = ctl_key(ctl, texts[i], key), r = match_look(ctl, ns, key, (uint32_t)len, &one);

		if (r < 0)
			return ctl_failed(ctl, texts[i], r);
		if (r == 0)
			break;
		json_array_append_new(blocks, one);
	}
	return 0;
}

int verb_match(struct ctl *ctl, int argc, char **argv)
{
	const char *given = NULL;
	const struct arg table[] = { { "namespace", 'n', ARG_STRING, &given, "NAME", "where to look" }, { 0 } };
	json_t *blocks = NULL, *one;
	uint8_t key[KVBM_KEY_MAX];
	char *ns = NULL;
	int r = ctl_args(ctl, table, &argc, argv, 1, (int)KVBM_MAX_KEYS);

	if (r >= 0)
		return r;
	for (int i = 0; i < argc; i++)
		if (ctl_key(ctl, argv[i], key) < 0)
			return CTL_USAGE;
	r = ctl_open(ctl);
	if (r == 0)
		r = ctl_namespace(ctl, given, &ns);
	if (r == 0)
		r = ctl_info(ctl, "namespaces", ns, &one); /* so that a wrong name is not taken for a miss */
	if (r == 0) {
		json_decref(one);
		blocks = json_array();
		r = match_prefix(ctl, ns, argc, argv, blocks);
	}
	if (r == 0)
		r = match_report(ctl, ns, argc, json_incref(blocks));
	json_decref(blocks);
	free(ns);
	return r;
}

static int drop_report(struct ctl *ctl, const char *ns, int dropped, uint32_t kept)
{
	char a[32], b[32];

	if (ctl->json) {
		ctl_print(ctl, json_pack("{s:s?, s:i, s:i}", "namespace", ns, "dropped", dropped, "kept", (int)kept));
		return CTL_DONE;
	}
	printf("dropped %s block%s%s%s", output_count(dropped, a, sizeof(a)), dropped == 1 ? "" : "s", ns ? " of " : "",
	       ns ? ns : "");
	if (kept)
		printf(", kept %s that somebody holds or writes", output_count(kept, b, sizeof(b)));
	printf("\n");
	return CTL_DONE;
}

int verb_flush(struct ctl *ctl, int argc, char **argv)
{
	const char *ns;
	uint32_t kept = 0;
	int r = ctl_args(ctl, NULL, &argc, argv, 0, 1);

	if (r >= 0)
		return r;
	ns = argc ? argv[0] : NULL;
	r = ctl_open(ctl);
	if (r != 0)
		return r;
	r = kvbm_admin(ctl->kvbm, "flush", ns, NULL, 0, 0, &kept);
	if (r < 0)
		return ctl_failed(ctl, ns ? ns : "all namespaces", r);
	return drop_report(ctl, ns, r, kept);
}

int verb_drop(struct ctl *ctl, int argc, char **argv)
{
	const char *ns = NULL;
	const struct arg table[] = { { "namespace", 'n', ARG_STRING, &ns, "NAME", "whose blocks" }, { 0 } };
	uint8_t *keys = NULL;
	uint32_t len = 0, kept = 0;
	int r = ctl_args(ctl, table, &argc, argv, 0, (int)KVBM_MAX_KEYS);

	if (r >= 0)
		return r;
	if (!ns)
		return ctl_usage(ctl, "--namespace is missing");
	r = ctl_keys(ctl, argc, argv, &keys, &len);
	if (r != 0)
		return r;
	r = ctl_open(ctl);
	if (r == 0) {
		r = kvbm_admin(ctl->kvbm, "drop", ns, argc ? keys : NULL, len, (uint32_t)argc, &kept);
		r = r < 0 ? ctl_failed(ctl, ns, r) : drop_report(ctl, ns, r, kept);
	}
	free(keys);
	return r;
}
