/* SPDX-License-Identifier: Apache-2.0 */
/* Owns a daemon, a session and what they hold. */
#include "tests/bench/fill.h"

#include <jansson.h>
#include <poll.h>
#include <stdlib.h>

#include "tests/bench/bench.h"

#define FILL_BATCH 8192u

static void fill_ok(struct kvbm *kvbm, const char *what, int r)
{
	if (r >= 0)
		return;
	fprintf(stderr, "bench: %s: %s: %s\n", what, kvbm_strerror(r), kvbm ? kvbm_error(kvbm) : "no session");
	_exit(1);
}

void fill_attach(const char *socket, uint64_t lane_bytes, unsigned open_flags, struct kvbm **ret_kvbm,
                 struct kvbm_ns **ret_ns)
{
	struct kvbm_options options = { .socket = socket, .name = "bench", .timeout_ms = 60000, .flags = open_flags };
	struct kvbm_model model = { .name = "bench", .block_bytes = lane_bytes, .lanes = 1, .key_bytes = FILL_KEY_BYTES };
	struct kvbm *kvbm = NULL;

	fill_ok(NULL, "open", kvbm_open(&options, &kvbm));
	fill_ok(kvbm, "attach", kvbm_attach(kvbm, &model, ret_ns));
	*ret_kvbm = kvbm;
}

void fill_start(struct fill *f, uint64_t slots, uint64_t lane_bytes)
{
	static char size[40];
	static const char *flags[] = { size, "--limits.slots_per_session=1048576", "--limits.slots_per_uid=1048576",
		                       "--daemon.write_timeout=10m", NULL };
	uint64_t stride = lane_bytes < 4096 ? (lane_bytes + 63) / 64 * 64 : (lane_bytes + 4095) / 4096 * 4096;
	uint64_t bytes = slots * stride;

	memset(f, 0, sizeof(*f));
	snprintf(size, sizeof(size), "--g2.size=%llu",
	         (unsigned long long)((bytes + bytes / 64 + (UINT64_C(4) << 20)) >> 21 << 21));
	daemon_start(&f->daemon, flags);
	f->lane_bytes = lane_bytes;
	fill_attach(f->daemon.socket, lane_bytes, 0, &f->kvbm, &f->ns);
}

uint64_t fill_ask(struct kvbm *kvbm, const char *topic, const char *name, const char *member)
{
	char *text = NULL;
	json_t *root, *value;
	uint64_t number;

	fill_ok(kvbm, topic, kvbm_info(kvbm, topic, name, NULL, 0, &text));
	root = json_loads(text, 0, NULL);
	value = json_object_get(json_is_array(root) ? json_array_get(root, 0) : root, member);
	must(json_is_integer(value));
	number = (uint64_t)json_integer_value(value);
	json_decref(root);
	free(text);
	return number;
}

void fill_settle(struct fill *f)
{
	while (fill_ask(f->kvbm, "tiers", "g2", "touched_bytes") < fill_ask(f->kvbm, "tiers", "g2", "size_bytes"))
		(void)poll(NULL, 0, 5);
}

void fill_stop(struct fill *f)
{
	kvbm_close(f->kvbm);
	daemon_deinit(&f->daemon);
	memset(f, 0, sizeof(*f));
}

void fill_keys(uint64_t first, uint32_t n, uint8_t *ret_keys)
{
	for (uint32_t i = 0; i < n; i++) {
		uint64_t words[2] = { bench_mix(first + i + 1), bench_mix(first + i + 1) * UINT64_C(0x9e3779b97f4a7c15) };

		memcpy(ret_keys + (size_t)i * FILL_KEY_BYTES, words, FILL_KEY_BYTES);
	}
}

uint32_t fill_store(struct kvbm_ns *ns, uint64_t first, uint32_t n)
{
	static uint8_t chain[(FILL_BATCH + 1) * FILL_KEY_BYTES], parents[FILL_BATCH * FILL_KEY_BYTES];
	static struct kvbm_span spans[FILL_BATCH];
	uint8_t *keys = chain + FILL_KEY_BYTES;
	uint32_t dropped = 0;

	must(n <= FILL_BATCH);
	fill_keys(first - 1, 1, chain);
	fill_keys(first, n, keys);
	memcpy(parents, chain, (size_t)n * FILL_KEY_BYTES);
	for (uint32_t i = 0; i < n; i++)
		if ((first + i) % FILL_CHAIN == 0)
			memset(parents + (size_t)i * FILL_KEY_BYTES, 0, FILL_KEY_BYTES);
	must_eq(kvbm_reserve(ns, KVBM_ALL_LANES, NULL, n, spans, &dropped), n);
	for (uint32_t i = 0; i < n; i++) {
		uint8_t *data = kvbm_data(ns, &spans[i], 0);

		must(data);
		memcpy(data, keys + (size_t)i * FILL_KEY_BYTES, FILL_KEY_BYTES);
	}
	must_eq(kvbm_commit(ns, KVBM_ALL_LANES, spans, keys, n, parents, KVBM_PARENTS), n);
	return dropped;
}

void fill_blocks(struct fill *f, uint64_t n)
{
	uint64_t start = clock_now_ns();

	while (f->resident < n) {
		uint32_t batch = n - f->resident < FILL_BATCH ? (uint32_t)(n - f->resident) : FILL_BATCH;

		must_eq(fill_store(f->ns, f->resident, batch), 0);
		f->resident += batch;
	}
	f->seconds = (double)(clock_now_ns() - start) / 1e9;
}

void fill_verify(struct kvbm_ns *ns, uint64_t first, uint32_t n)
{
	static uint8_t keys[FILL_BATCH * FILL_KEY_BYTES];
	static struct kvbm_span spans[FILL_BATCH];

	must(n <= FILL_BATCH);
	fill_keys(first, n, keys);
	must_eq(kvbm_match(ns, keys, n, 0, spans), n);
	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *data = kvbm_data(ns, &spans[i], 0);

		must(data && memcmp(data, keys + (size_t)i * FILL_KEY_BYTES, FILL_KEY_BYTES) == 0);
	}
	must_eq(kvbm_release(ns, spans, n), n);
}

/* ---- the storer ---- */

static void storer_main(struct client_self *self, void *arg)
{
	struct fill_storer *s = arg;
	struct kvbm *kvbm;
	struct kvbm_ns *ns;

	fill_attach(s->socket, s->lane_bytes, 0, &kvbm, &ns);
	for (;;) {
		uint64_t stored = 0;

		client_at(self, "idle");
		while (!client_told(self)) {
			fill_store(ns, s->first, s->batch);
			s->first += s->batch;
			stored += s->batch;
		}
		client_pass(self, "halted");
		client_tell(self, &stored, sizeof(stored));
	}
}

void fill_storer_start(struct fill_storer *s)
{
	client_start(&s->proc, storer_main, s);
	client_await(&s->proc, "idle");
}

void fill_storer_go(struct fill_storer *s)
{
	client_go(&s->proc);
}

uint64_t fill_storer_halt(struct fill_storer *s)
{
	client_lead(&s->proc, "halted");
	client_result(&s->proc, &s->stored, sizeof(s->stored));
	client_await(&s->proc, "idle");
	return s->stored;
}

void fill_storer_end(struct fill_storer *s)
{
	client_kill(&s->proc);
}
