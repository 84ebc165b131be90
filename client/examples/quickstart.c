/* Stores a prefix of four blocks, finds it again and reads it where it lies.  A second run finds what the first one stored. */
#include <kvbm.h>
#include <stdio.h>
#include <string.h>

static int check(struct kvbm *kvbm, const char *what, int r)
{
	if (r < 0)
		fprintf(stderr, "%s: %s: %s\n", what, kvbm_strerror(r), kvbm ? kvbm_error(kvbm) : "is kvbmd running?");
	return r;
}

int main(void)
{
	struct kvbm_model model = { .name = "quickstart", .num_layers = 2, .page_size = 16, .inner_dim = 128 };
	char keys[4][16] = { "hash of tok 0-15", "hash of tok 0-31", "hash of tok 0-47", "hash of tok 0-63" };
	struct kvbm_span spans[4];
	struct kvbm *kvbm = NULL;
	struct kvbm_ns *ns;
	int hits, n, i;

	if (check(kvbm, "open", kvbm_open(NULL, &kvbm)) < 0 || check(kvbm, "attach", kvbm_attach(kvbm, &model, &ns)) < 0)
		return 1;
	hits = check(kvbm, "match", kvbm_match(ns, keys, 4, 0, spans)); /* held from here on */
	for (i = 0; i < hits; i++)
		printf("block %d is here: \"%.16s\"\n", i, (char *)kvbm_data(ns, &spans[i], 0));
	kvbm_release(ns, spans, hits > 0 ? (unsigned)hits : 0);
	n = hits < 0 ? hits : check(kvbm, "reserve", kvbm_reserve(ns, 0, keys[hits], 4 - (unsigned)hits, spans, NULL));
	for (i = 0; i < n; i++)
		memcpy(kvbm_data(ns, &spans[i], 0), keys[hits + i], 16); /* your KV data: kvbm_lane_bytes(ns) of it */
	if (n > 0)
		n = check(kvbm, "commit",
		          kvbm_commit(ns, 0, spans, keys[hits], (unsigned)n, hits ? keys[hits - 1] : NULL, 0));
	printf("%d found, %d stored\n", hits, n);
	kvbm_close(kvbm);
	return n < 0;
}
