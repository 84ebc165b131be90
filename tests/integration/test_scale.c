/* SPDX-License-Identifier: Apache-2.0 */
/* Scale: millions of small blocks, many namespaces and sessions, in one daemon.
 *
 * KVBM_SCALE=full: 10 M blocks, 64 sessions, 16 namespaces; it takes about 8 GiB and some minutes.  Otherwise a tenth of it, less under a sanitizer.  What takes
 * long is told on stderr and not judged: times are the benchmarks' business.  Judged are bytes, counts and answers.
 */
#include <check.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "proto/shm.h"
#include "tests/lib/cache.h"
#include "tests/lib/client_proc.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"
#include "tests/lib/raw.h"

#define LANE_BYTES 64u
#define KEY_BYTES 16u
#define BATCH 8192u
#define CHAIN 1024u
#define SLOTS_SMALL 32768u /* of the namespace that is filled to the brim: 2 MiB */
#define MAX_NS 16u
#define METADATA_MAX 128
#define METADATA_BLOCKS 1000000 /* fewer do not bear what a namespace costs by itself */

struct scale {
	uint64_t blocks; /* in all namespaces together */
	unsigned sessions, namespaces;
};

struct world {
	struct scale scale;
	struct daemon_proc d;
	char config[4096], size[40];
	const char *flags[8];
	struct kvbm *kvbm; /* owns */
	struct kvbm_ns *ns[MAX_NS];
	uint64_t start_ns; /* of what is timed */
};

static struct scale scale_wanted(void)
{
	const char *wanted = getenv("KVBM_SCALE");

	if (wanted && strcmp(wanted, "full") == 0)
		return (struct scale){ .blocks = 10000000, .sessions = 64, .namespaces = 16 };
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return (struct scale){ .blocks = 200000, .sessions = 8, .namespaces = 2 };
#else
	return (struct scale){ .blocks = 1000000, .sessions = 16, .namespaces = 8 };
#endif
}

static void tell(struct world *w, const char *what)
{
	uint64_t now = clock_now_ns();

	fprintf(stderr, "scale: %s: %.1f ms\n", what, (double)(now - w->start_ns) / 1e6);
	w->start_ns = clock_now_ns();
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
	x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
	return x ^ x >> 33;
}

/* Of block @number of namespace @which. */
static void scale_keys(unsigned which, uint64_t number, uint32_t n, uint8_t *ret_keys)
{
	for (uint32_t i = 0; i < n; i++) {
		uint64_t words[2] = { mix((uint64_t)(which + 1) << 40 | (number + i)), which + 1 };

		memcpy(ret_keys + (size_t)i * KEY_BYTES, words, KEY_BYTES);
	}
}

static uint64_t bytes_up(uint64_t bytes)
{
	return (bytes + (2u << 20) - 1) >> 21 << 21;
}

/* Each namespace may have its part of the pool, and what is left is for the small one. */
static void world_start(struct world *w, struct scale scale, bool many)
{
	unsigned n = many ? scale.namespaces : 1;
	uint64_t part = bytes_up(scale.blocks / n * LANE_BYTES);
	size_t at = 0;

	memset(w, 0, sizeof(*w));
	w->scale = scale;
	w->scale.namespaces = n;
	for (unsigned i = 0; i < n; i++)
		at += (size_t)snprintf(w->config + at, sizeof(w->config) - at, "[namespace s%u]\nmax = %" PRIu64 "\n",
		                       i, part);
	at += (size_t)snprintf(w->config + at, sizeof(w->config) - at, "[namespace small]\nmax = 2M\nshare = 2M\n");
	must(at < sizeof(w->config));
	snprintf(w->size, sizeof(w->size), "--g2.size=%" PRIu64, part * n + (4u << 20));
	w->flags[0] = w->size;
	w->flags[1] = "--g2.region_size=2M";
	w->flags[2] = "--limits.slots_per_session=1048576";
	w->flags[3] = "--limits.slots_per_uid=1048576";
	daemon_init(&w->d, w->config, w->flags);
	w->start_ns = clock_now_ns();
}

static struct kvbm *scale_open(const char *socket)
{
	struct kvbm_options options = { .socket = socket, .name = "scale", .timeout_ms = 120000 };
	struct kvbm *kvbm = NULL;

	must_eq(kvbm_open(&options, &kvbm), 0);
	return kvbm;
}

static struct kvbm_ns *scale_attach(struct kvbm *kvbm, const char *name)
{
	struct kvbm_model model = { .name = name, .block_bytes = LANE_BYTES, .lanes = 1, .key_bytes = KEY_BYTES };
	struct kvbm_ns *ns = NULL;
	int r = kvbm_attach(kvbm, &model, &ns);

	if (r != 0)
		fprintf(stderr, "attach %s: %s\n", name, kvbm_error(kvbm));
	must_eq(r, 0);
	return ns;
}

static struct kvbm_ns *scale_attach_number(struct kvbm *kvbm, unsigned which)
{
	char name[16];

	snprintf(name, sizeof(name), "s%u", which);
	return scale_attach(kvbm, name);
}

static void scale_store(struct kvbm_ns *ns, unsigned which, uint64_t first, uint32_t n)
{
	static uint8_t keys[BATCH * KEY_BYTES], parents[BATCH * KEY_BYTES];
	static struct kvbm_span spans[BATCH];

	scale_keys(which, first, n, keys);
	for (uint32_t i = 0; i < n; i++) {
		if ((first + i) % CHAIN == 0)
			memset(parents + (size_t)i * KEY_BYTES, 0, KEY_BYTES);
		else
			scale_keys(which, first + i - 1, 1, parents + (size_t)i * KEY_BYTES);
	}
	must_eq(kvbm_reserve(ns, KVBM_ALL_LANES, NULL, n, spans, NULL), n);
	for (uint32_t i = 0; i < n; i++) {
		uint8_t *data = kvbm_data(ns, &spans[i], 0);

		must(data);
		for (uint32_t at = 0; at < LANE_BYTES; at += KEY_BYTES)
			memcpy(data + at, keys + (size_t)i * KEY_BYTES, KEY_BYTES);
	}
	must_eq(kvbm_commit(ns, KVBM_ALL_LANES, spans, keys, n, parents, KVBM_PARENTS), n);
}

static void scale_check_block(struct kvbm_ns *ns, const struct kvbm_span *span, const uint8_t *key)
{
	const uint8_t *data = kvbm_data(ns, span, 0);

	must(data);
	for (uint32_t at = 0; at < LANE_BYTES; at += KEY_BYTES)
		must(memcmp(data + at, key, KEY_BYTES) == 0);
}

/* Looks @n blocks up, reads them, and lets go unless @hold. */
static void scale_verify(struct kvbm_ns *ns, unsigned which, uint64_t first, uint32_t n, bool hold)
{
	static uint8_t keys[BATCH * KEY_BYTES];
	static struct kvbm_span spans[BATCH];

	scale_keys(which, first, n, keys);
	must_eq(kvbm_match(ns, keys, n, 0, spans), n);
	for (uint32_t i = 0; i < n; i++)
		scale_check_block(ns, &spans[i], keys + (size_t)i * KEY_BYTES);
	if (!hold)
		must_eq(kvbm_release(ns, spans, n), n);
}

/* A number of the first element that @topic's answer has for @name. */
static uint64_t scale_ask(struct kvbm *kvbm, const char *topic, const char *name, const char *member)
{
	char *text = NULL;
	json_t *root;
	uint64_t value;

	must_cmp(kvbm_info(kvbm, topic, name, NULL, 0, &text), >=, 0);
	root = json_loads(text, 0, NULL);
	must(json_is_integer(json_object_get(json_array_get(root, 0), member)));
	value = (uint64_t)json_integer_value(json_object_get(json_array_get(root, 0), member));
	json_decref(root);
	free(text);
	return value;
}

static uint64_t per_namespace(const struct world *w)
{
	return w->scale.blocks / w->scale.namespaces;
}

static void world_first_block(struct world *w)
{
	daemon_spawn(&w->d);
	w->kvbm = scale_open(w->d.socket); /* waits in the socket that the daemon inherits */
	w->ns[0] = scale_attach_number(w->kvbm, 0);
	scale_store(w->ns[0], 0, 0, 1);
	scale_verify(w->ns[0], 0, 0, 1, false);
	tell(w, "start to first block served");
}

static void world_fill(struct world *w)
{
	for (unsigned i = 0; i < w->scale.namespaces; i++) {
		if (!w->ns[i])
			w->ns[i] = scale_attach_number(w->kvbm, i);
		for (uint64_t at = i == 0; at < per_namespace(w);) {
			uint64_t left = per_namespace(w) - at;
			uint32_t n = left < BATCH ? (uint32_t)left : BATCH;

			scale_store(w->ns[i], i, at, n);
			at += n;
		}
	}
	tell(w, "all blocks stored");
}

static void world_check(struct world *w)
{
	uint64_t used = 0, metadata = 0;

	for (unsigned i = 0; i < w->scale.namespaces; i++) {
		char name[16];

		snprintf(name, sizeof(name), "s%u", i);
		must_eq(scale_ask(w->kvbm, "namespaces", name, "dropped"), 0);
		must_eq(scale_ask(w->kvbm, "namespaces", name, "used"), per_namespace(w));
		used += per_namespace(w);
		metadata += scale_ask(w->kvbm, "namespaces", name, "metadata_bytes");
		for (uint64_t at = 0; at + 512 <= per_namespace(w); at += per_namespace(w) / 16)
			scale_verify(w->ns[i], i, at / CHAIN * CHAIN, 512, false);
	}
	fprintf(stderr, "scale: %" PRIu64 " blocks, %.1f bytes of metadata each\n", used, (double)metadata / (double)used);
	if (used >= METADATA_BLOCKS)
		must_cmp(metadata, <=, METADATA_MAX * used);
	tell(w, "checked");
}

static void world_stop(struct world *w)
{
	kvbm_close(w->kvbm);
	daemon_deinit(&w->d);
}

/* ---- sessions ---- */

struct crowd {
	const char *socket;
	struct scale scale;
};

/* All sessions but one, each in every namespace, each holding something. */
static void crowd_main(struct client_self *self, void *arg)
{
	const struct crowd *c = arg;
	uint64_t each = c->scale.blocks / c->scale.namespaces;

	for (unsigned s = 1; s < c->scale.sessions; s++) {
		struct kvbm *kvbm = scale_open(c->socket);

		for (unsigned i = 0; i < c->scale.namespaces; i++) {
			struct kvbm_ns *ns = scale_attach_number(kvbm, i);

			for (unsigned k = 0; k < 8; k++)
				scale_verify(ns, i, mix(s * 1000 + k) % (each / CHAIN) * CHAIN, 256, k == 0);
		}
	}
	client_at(self, "attached");
}

/* A monitor that asks all the time: its longest answer is the longest the loop was busy. */
static double longest_answer_ms(struct world *w, const char *metric, uint64_t until)
{
	uint64_t longest = 0;

	for (bool more = true; more;) {
		uint64_t start = clock_now_ns(), took;

		more = daemon_metric(&w->d, metric) != until;
		took = clock_now_ns() - start;
		longest = took > longest ? took : longest;
		(void)poll(NULL, 0, 1);
	}
	return (double)longest / 1e6;
}

static void world_sessions(struct world *w)
{
	struct crowd c = { .socket = w->d.socket, .scale = w->scale };
	struct client_proc proc;
	uint64_t pins = (uint64_t)(w->scale.sessions - 1) * w->scale.namespaces * 256;

	(void)daemon_monitor(&w->d);
	client_start(&proc, crowd_main, &c);
	client_await(&proc, "attached");
	tell(w, "sessions attached, matched and verified");
	must_eq(daemon_metric(&w->d, "pins"), pins);
	tell(w, "one metrics report with all of them");
	client_kill(&proc);
	fprintf(stderr, "scale: longest answer meanwhile: %.1f ms\n", longest_answer_ms(w, "sessions", 2));
	tell(w, "all but one session cleared away after they died together");
	must_eq(daemon_metric(&w->d, "pins"), 0);
}

/* ---- what an administrator asks for ---- */

/* A flush whose client does not wait for the end has none. */
static void flush_and_go(struct world *w)
{
	Kvbm__AdminRequest q = KVBM__ADMIN_REQUEST__INIT;
	uint64_t sessions = daemon_metric(&w->d, "sessions");
	struct raw raw;

	raw_hello(&raw, w->d.socket);
	q.action = "flush";
	q.name = "s0";
	raw_send(&raw, KVBM__VERB__VERB_ADMIN, &q.base);
	raw_close(&raw);
	daemon_await_metric(&w->d, "sessions", sessions);
	tell(w, "flush of one namespace by somebody who leaves");
}

static void world_admin(struct world *w)
{
	uint8_t key[KEY_BYTES];
	char *text = NULL;
	uint64_t dropped;
	uint32_t kept = 0;

	scale_keys(0, 5, 1, key);
	must_cmp(kvbm_info(w->kvbm, "block", "s0", key, sizeof(key), &text), >=, 0);
	free(text);
	tell(w, "report of one block");
	flush_and_go(w);
	dropped = daemon_metric(&w->d, "blocks_dropped_total");
	must_eq(kvbm_admin(w->kvbm, "flush", "s0", NULL, 0, 0, &kept), per_namespace(w) - dropped);
	must_eq(kept, 0);
	tell(w, "flush of one namespace");
	scale_store(w->ns[0], 0, 0, BATCH / 2);
	scale_verify(w->ns[0], 0, 0, BATCH / 2, false);
}

START_TEST(ten_million_blocks_in_one_namespace)
{
	struct world w;

	world_start(&w, scale_wanted(), false);
	world_first_block(&w);
	world_fill(&w);
	world_check(&w);
	world_sessions(&w);
	world_admin(&w);
	world_stop(&w);
}
END_TEST

START_TEST(many_namespaces_and_sessions)
{
	struct world w;

	world_start(&w, scale_wanted(), true);
	world_first_block(&w);
	world_fill(&w);
	world_check(&w);
	world_sessions(&w);
	world_admin(&w);
	world_stop(&w);
}
END_TEST

/* ---- full ---- */

/* Every slot is being written: the answer to one more is "no", and nothing is lost by it. */
START_TEST(no_slot_left_is_an_answer)
{
	static struct kvbm_span spans[SLOTS_SMALL];
	struct world w;
	struct kvbm_ns *ns;

	world_start(&w, (struct scale){ .blocks = 100000, .sessions = 1, .namespaces = 1 }, false);
	daemon_spawn(&w.d);
	w.kvbm = scale_open(w.d.socket);
	ns = scale_attach(w.kvbm, "small");
	for (uint32_t at = 0; at < SLOTS_SMALL; at += BATCH)
		must_eq(kvbm_reserve(ns, KVBM_ALL_LANES, NULL, BATCH, spans + at, NULL), BATCH);
	must_eq(kvbm_reserve(ns, KVBM_ALL_LANES, NULL, 1, spans, NULL), -KVBM_E_NOSPACE);
	for (uint32_t at = 0; at < SLOTS_SMALL; at += BATCH)
		must_eq(kvbm_abort(ns, KVBM_ALL_LANES, spans + at, BATCH), BATCH);
	scale_store(ns, 0, 0, BATCH);
	scale_verify(ns, 0, 0, BATCH, false);
	world_stop(&w);
}
END_TEST

/* Keys that all have their home in one line of the index, as a client that reads the salt can make them.  Returns how many. */
static uint32_t crowded_keys(const struct world *w, uint32_t n, uint8_t *ret_keys)
{
	struct raw raw;
	const struct shm_ns *header;
	uint32_t found = 0;

	raw_hello(&raw, w->d.socket);
	raw_attach(&raw, "small", LANE_BYTES, 0);
	header = mmap(NULL, SHM_ALIGN, PROT_READ, MAP_SHARED, raw.fds[0], 0);
	must(header != MAP_FAILED);
	for (uint64_t i = 0; found < n; i++) {
		uint8_t key[KEY_BYTES];

		scale_keys(7, i, 1, key);
		if (shm_hash_key(key, KEY_BYTES, header->salt, header->n_lines).line == 77)
			memcpy(ret_keys + (size_t)found++ * KEY_BYTES, key, KEY_BYTES);
	}
	must(munmap((void *)header, SHM_ALIGN) == 0);
	raw_close(&raw);
	return found;
}

/* Where no line that a look-up would reach has room the block is not kept, and that is all that happens. */
START_TEST(index_full_is_an_answer)
{
	enum { N = SHM_MAX_PROBE * SHM_LINE_ENTRIES + 64 };
	static uint8_t keys[N * KEY_BYTES];
	static struct kvbm_span spans[N];
	struct world w;
	struct kvbm_ns *ns;
	uint32_t fits = SHM_MAX_PROBE * SHM_LINE_ENTRIES;

	world_start(&w, (struct scale){ .blocks = 100000, .sessions = 1, .namespaces = 1 }, false);
	daemon_spawn(&w.d);
	w.kvbm = scale_open(w.d.socket);
	ns = scale_attach(w.kvbm, "small");
	crowded_keys(&w, N, keys);
	must_eq(kvbm_reserve(ns, KVBM_ALL_LANES, keys, N, spans, NULL), N);
	for (uint32_t i = 0; i < N; i++) {
		uint8_t *data = kvbm_data(ns, &spans[i], 0);

		must(data);
		for (uint32_t at = 0; at < LANE_BYTES; at += KEY_BYTES)
			memcpy(data + at, keys + (size_t)i * KEY_BYTES, KEY_BYTES);
	}
	must_eq(kvbm_commit(ns, KVBM_ALL_LANES, spans, keys, N, NULL, 0), N); /* those without room are dropped at once */
	for (uint32_t i = 0; i < N; i++)
		must_eq(spans[i].slot == UINT32_MAX, i >= fits);
	must_eq(kvbm_match(ns, keys, N, 0, spans), fits);
	for (uint32_t i = 0; i < fits; i++)
		scale_check_block(ns, &spans[i], keys + (size_t)i * KEY_BYTES);
	must_eq(kvbm_release(ns, spans, fits), fits);
	must_eq(scale_ask(w.kvbm, "namespaces", "small", "used"), fits);
	must_eq(scale_ask(w.kvbm, "namespaces", "small", "writing"), 0);
	must_eq(kvbm_admin(w.kvbm, "flush", "small", NULL, 0, 0, NULL), fits);
	scale_store(ns, 0, 0, BATCH);
	scale_verify(ns, 0, 0, BATCH, false);
	world_stop(&w);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("scale");
	TCase *tc = tcase_create("scale");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_set_timeout(tc, 900);
	tcase_add_test(tc, no_slot_left_is_an_answer);
	tcase_add_test(tc, index_full_is_an_answer);
	tcase_add_test(tc, ten_million_blocks_in_one_namespace);
	tcase_add_test(tc, many_namespaces_and_sessions);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
