/* SPDX-License-Identifier: Apache-2.0 */
/* P13: one thousand, then 4,096 requests in flight from 16 processes.  Each keeps its share of them under way: for every reply it sends
 * the next request, of a mix of matches, reservations and their aborts.
 */
#include <poll.h>
#include <stdlib.h>

#include "proto/shm.h"
#include "tests/bench/bench.h"
#include "tests/bench/fill.h"
#include "tests/lib/raw.h"

#define PROCESSES 16u
#define MATCH_KEYS 64u
#define RUN_NS (1500 * CLOCK_NS_PER_MS)
#define LANE_BYTES 64u
#define BLOCKS 100000u
#define WINDOW_MAX 256u
#define QUANTILES 2u

enum kind { KIND_MATCH, KIND_RESERVE, KIND_ABORT };

struct flight {
	uint64_t id, sent_ns;
	enum kind kind;
};

struct flood {
	struct client_proc proc;
	const char *socket;
	uint32_t window;
	/* in the child */
	struct raw raw;
	uint32_t ns;
	struct flight flights[WINDOW_MAX];
	uint32_t slot, generation; /* to abort next; slot SHM_NO_SLOT: none */
	uint64_t random;
	struct samples samples[2]; /* match, reserve */
};

struct flood_result {
	uint64_t requests;
	double p50[QUANTILES], p99[QUANTILES];
};

/* ---- in the child ---- */

static void flood_send_message(struct flood *f, struct flight *flight, uint16_t verb, const ProtobufCMessage *message)
{
	flight->sent_ns = clock_now_ns();
	must(raw_send(&f->raw, verb, message));
	flight->id = f->raw.id;
}

static void flood_send(struct flood *f, struct flight *flight)
{
	Kvbm__MatchRequest match = KVBM__MATCH_REQUEST__INIT;
	Kvbm__ReserveRequest reserve = KVBM__RESERVE_REQUEST__INIT;
	Kvbm__AbortRequest abort_request = KVBM__ABORT_REQUEST__INIT;
	uint8_t keys[MATCH_KEYS * FILL_KEY_BYTES];

	if (f->slot != SHM_NO_SLOT) {
		flight->kind = KIND_ABORT;
		abort_request.ns = f->ns;
		abort_request.lane = KVBM_ALL_LANES;
		abort_request.slots = &f->slot;
		abort_request.generations = &f->generation;
		abort_request.n_slots = abort_request.n_generations = 1;
		flood_send_message(f, flight, KVBM__VERB__VERB_ABORT, &abort_request.base);
		f->slot = SHM_NO_SLOT;
	} else if (bench_random(&f->random) % 2) {
		flight->kind = KIND_RESERVE;
		reserve.ns = f->ns;
		reserve.n = 1;
		reserve.lane = KVBM_ALL_LANES;
		flood_send_message(f, flight, KVBM__VERB__VERB_RESERVE, &reserve.base);
	} else {
		flight->kind = KIND_MATCH;
		fill_keys(bench_random(&f->random) % (BLOCKS - MATCH_KEYS), MATCH_KEYS, keys);
		match.ns = f->ns;
		match.keys = (ProtobufCBinaryData){ .data = keys, .len = sizeof(keys) };
		flood_send_message(f, flight, KVBM__VERB__VERB_MATCH, &match.base);
	}
}

static struct flight *flood_flight(struct flood *f, uint64_t id)
{
	for (uint32_t i = 0; i < f->window; i++)
		if (f->flights[i].id == id)
			return &f->flights[i];
	return NULL;
}

/* A reply ends a flight, which begins anew unless @ending. */
static void flood_reply(struct flood *f, const struct wire_frame *frame, bool ending)
{
	struct flight *flight = flood_flight(f, frame->head.id);
	Kvbm__Reply *reply = kvbm__reply__unpack(NULL, frame->length, frame->payload);
	uint64_t took = clock_now_ns();

	must(flight && reply);
	took -= flight->sent_ns;
	if (reply->code != 0)
		fprintf(stderr, "request of kind %d failed: %u %s\n", (int)flight->kind, reply->code, reply->error);
	must_eq(reply->code, 0);
	if (flight->kind == KIND_MATCH) {
		must(reply->match && reply->match->hits == MATCH_KEYS);
		samples_add(&f->samples[0], took);
	} else if (flight->kind == KIND_RESERVE) {
		must(reply->reserve && reply->reserve->n_slots == 1);
		f->slot = reply->reserve->slots[0];
		f->generation = reply->reserve->generations[0];
		samples_add(&f->samples[1], took);
	}
	flight->id = 0;
	if (!ending || f->slot != SHM_NO_SLOT)
		flood_send(f, flight);
	kvbm__reply__free_unpacked(reply, NULL);
}

static bool flood_in_flight(const struct flood *f)
{
	for (uint32_t i = 0; i < f->window; i++)
		if (f->flights[i].id)
			return true;
	return false;
}

static void flood_take(struct flood *f, bool ending)
{
	struct wire_frame frame;
	int r;

	must(wire_wait(f->raw.fd, POLLIN, 60000) == 0);
	r = wire_in_read(&f->raw.in, f->raw.fd);
	must(r == 0 || r == WIRE_E_AGAIN);
	while ((r = wire_in_next(&f->raw.in, &frame)) == 0) {
		flood_reply(f, &frame, ending);
		wire_frame_close(&frame);
	}
	must_eq(r, WIRE_E_AGAIN);
}

static void flood_main(struct client_self *self, void *arg)
{
	struct flood *f = arg;
	struct flood_result result = { 0 };
	uint64_t end;

	samples_init(&f->samples[0], 400000);
	samples_init(&f->samples[1], 400000);
	raw_hello(&f->raw, f->socket);
	f->ns = raw_attach(&f->raw, "bench", LANE_BYTES, 0);
	client_at(self, "attached");
	f->slot = SHM_NO_SLOT;
	end = clock_now_ns() + RUN_NS;
	for (uint32_t i = 0; i < f->window; i++)
		flood_send(f, &f->flights[i]);
	while (clock_now_ns() < end)
		flood_take(f, false);
	while (flood_in_flight(f))
		flood_take(f, true);
	for (unsigned i = 0; i < QUANTILES; i++) {
		result.requests += f->samples[i].n;
		result.p50[i] = samples_quantile(&f->samples[i], 0.5);
		result.p99[i] = samples_quantile(&f->samples[i], 0.99);
	}
	client_pass(self, "done");
	client_tell(self, &result, sizeof(result));
}

/* ---- in the parent ---- */

static void flood_run(struct fill *fill, uint32_t in_flight)
{
	static struct flood floods[PROCESSES];
	double p99[QUANTILES][PROCESSES], requests = 0;

	for (unsigned i = 0; i < PROCESSES; i++) {
		floods[i] = (struct flood){ .socket = fill->daemon.socket, .window = in_flight / PROCESSES, .random = i };
		client_start(&floods[i].proc, flood_main, &floods[i]);
		client_await(&floods[i].proc, "attached");
	}
	for (unsigned i = 0; i < PROCESSES; i++)
		client_go(&floods[i].proc);
	for (unsigned i = 0; i < PROCESSES; i++) {
		struct flood_result result;

		client_await(&floods[i].proc, "done");
		client_result(&floods[i].proc, &result, sizeof(result));
		client_join(&floods[i].proc);
		requests += (double)result.requests;
		for (unsigned q = 0; q < QUANTILES; q++)
			p99[q][i] = result.p99[q];
	}
	for (unsigned q = 0; q < QUANTILES; q++) {
		char variant[80];
		struct figure f = { .name = "P13", .variant = variant, .unit = "us", .goal = GOAL_VALUE_AT_MOST, .bound = 1000 };

		snprintf(variant, sizeof(variant), "%s p99, %u requests in flight, 16 processes",
		         q ? "reserve" : "match of 64 keys", in_flight / PROCESSES * PROCESSES);
		bench_from(&f, NULL, p99[q], PROCESSES);
		bench_print(&f);
	}
	bench_say("P13", "%.0f matches and reservations a second, no error", requests * 1e9 / (double)RUN_NS);
}

int main(void)
{
	struct fill fill;

	if (!bench_wanted("P13"))
		return 0;
	bench_init();
	fill_start(&fill, 2 * BLOCKS, LANE_BYTES);
	fill_blocks(&fill, BLOCKS);
	fill_settle(&fill);
	flood_run(&fill, 1008);
	flood_run(&fill, 4096);
	fill_verify(fill.ns, 1000, 4096);
	fill_stop(&fill);
	return 0;
}
