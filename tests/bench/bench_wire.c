/* SPDX-License-Identifier: Apache-2.0 */
/* P3, P4, P5, P8: requests by message, against a bare AF_UNIX ping-pong of the same sizes and placement, and against each other. */
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "tests/bench/bench.h"
#include "tests/bench/fill.h"
#include "tests/lib/raw.h"

#define ROUND_NS (40 * CLOCK_NS_PER_MS)
#define ROUNDS 15u
#define LANE_BYTES 64u
#define BLOCKS 16384u
#define STORED 16u /* blocks in one reservation of P5 */

struct wire {
	struct fill fill;
	struct kvbm *by_socket; /* owns */
	struct kvbm_ns *ns_by_socket;
	int fd; /* of the bare ping-pong */
	pid_t echo;
	size_t request_bytes, reply_bytes;
	struct samples samples;
	const char *placement;
	uint64_t next;       /* block to store next */
	uint32_t match_keys; /* of P4 */
	unsigned commit_flags;
	uint8_t *keys; /* owns; BLOCKS */
	struct kvbm_span *spans;
};

/* ---- the bare ping-pong ---- */

static void echo_main(int fd, size_t request_bytes, size_t reply_bytes, pid_t parent)
{
	uint8_t buffer[256];

	must(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == parent);
	while (read(fd, buffer, sizeof(buffer)) == (ssize_t)request_bytes)
		must(write(fd, buffer, reply_bytes) == (ssize_t)reply_bytes);
	_exit(0);
}

/* A no-op's request is a header; its reply a header and what every reply says. */
static void echo_start(struct wire *w)
{
	pid_t parent = getpid();
	struct raw raw;
	int pair[2];

	raw_hello(&raw, w->fill.daemon.socket);
	must_eq(raw_call(&raw, KVBM__VERB__VERB_PING, NULL), 0);
	w->request_bytes = WIRE_HEADER_BYTES;
	w->reply_bytes = WIRE_HEADER_BYTES + kvbm__reply__get_packed_size(raw.reply);
	raw_close(&raw);
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	fflush(NULL);
	w->echo = fork();
	must(w->echo >= 0);
	if (w->echo == 0) {
		close(pair[0]);
		echo_main(pair[1], w->request_bytes, w->reply_bytes, parent);
	}
	close(pair[1]);
	w->fd = pair[0];
}

static void echo_stop(struct wire *w)
{
	close(w->fd);
	must(waitpid(w->echo, NULL, 0) == w->echo);
}

static void bare_once(struct wire *w)
{
	uint8_t buffer[256] = { 0 };

	must(write(w->fd, buffer, w->request_bytes) == (ssize_t)w->request_bytes);
	must(read(w->fd, buffer, sizeof(buffer)) == (ssize_t)w->reply_bytes);
}

/* ---- rounds ---- */

static double round_of(struct wire *w, void (*once)(struct wire *), double quantile)
{
	uint64_t end = clock_now_ns() + ROUND_NS, from, to;

	samples_clear(&w->samples);
	do {
		from = clock_now_ns();
		once(w);
		to = clock_now_ns();
		samples_add(&w->samples, to - from);
	} while (to < end);
	return samples_quantile(&w->samples, quantile);
}

static void ping_once(struct wire *w)
{
	must_eq(kvbm_ping(w->fill.kvbm), 0);
}

static double bare_round(void *ctx)
{
	return round_of(ctx, bare_once, 0.5);
}

static double ping_round(void *ctx)
{
	return round_of(ctx, ping_once, 0.5);
}

static double ping_p99_round(void *ctx)
{
	return round_of(ctx, ping_once, 0.99);
}

/* Letting go is a request of its own, and not part of the figure. */
static double match_round(void *ctx)
{
	struct wire *w = ctx;
	uint64_t end = clock_now_ns() + ROUND_NS, from, to;

	samples_clear(&w->samples);
	do {
		from = clock_now_ns();
		must_eq(kvbm_match(w->ns_by_socket, w->keys, w->match_keys, 0, w->spans), w->match_keys);
		to = clock_now_ns();
		samples_add(&w->samples, to - from);
		must_eq(kvbm_release(w->ns_by_socket, w->spans, w->match_keys), w->match_keys);
	} while (to < end);
	return samples_quantile(&w->samples, 0.5);
}

static void store_once(struct wire *w)
{
	struct kvbm_span spans[STORED];
	uint8_t keys[STORED * FILL_KEY_BYTES];

	fill_keys(w->next, STORED, keys);
	w->next += STORED;
	must_eq(kvbm_reserve(w->fill.ns, KVBM_ALL_LANES, keys, STORED, spans, NULL), STORED);
	must(kvbm_commit(w->fill.ns, KVBM_ALL_LANES, spans, keys, STORED, NULL, w->commit_flags) >= 0);
}

static double store_round(void *ctx)
{
	return round_of(ctx, store_once, 0.5);
}

/* The part that is the commit's: what the client waits for. */
static double commit_round(void *ctx)
{
	struct wire *w = ctx;
	uint64_t end = clock_now_ns() + ROUND_NS, from, to;
	struct kvbm_span spans[STORED];
	uint8_t keys[STORED * FILL_KEY_BYTES];

	samples_clear(&w->samples);
	do {
		fill_keys(w->next, STORED, keys);
		w->next += STORED;
		must_eq(kvbm_reserve(w->fill.ns, KVBM_ALL_LANES, keys, STORED, spans, NULL), STORED);
		from = clock_now_ns();
		must(kvbm_commit(w->fill.ns, KVBM_ALL_LANES, spans, keys, STORED, NULL, w->commit_flags) >= 0);
		to = clock_now_ns();
		samples_add(&w->samples, to - from);
	} while (to < end);
	return samples_quantile(&w->samples, 0.5);
}

/* ---- figures ---- */

static void wire_place(struct wire *w, bool one_core)
{
	w->placement = one_core ? "one core" : "two cores";
	bench_place(0, 0);
	bench_place(w->echo, one_core ? 0 : 1);
	bench_place(w->fill.daemon.pid, one_core ? 0 : 1);
}

static void p3(struct wire *w)
{
	struct figure f = { .name = "P3",
		            .variant = "no-op request",
		            .unit = "us",
		            .limit_is = "bare AF_UNIX ping-pong",
		            .placement = w->placement,
		            .goal = GOAL_RATIO_AT_MOST,
		            .bound = 1.3 };

	bench_compare(&f, ROUNDS, bare_round, ping_round, w);
	bench_print(&f);
}

static void p4(struct wire *w)
{
	static const struct {
		uint32_t n;
		const char *variant;
		double bound;
	} table[] = { { 512, "match of 512 keys by socket", 1.5 }, { 8192, "match of 8192 keys by socket", 4 } };

	fill_keys(0, BLOCKS, w->keys);
	for (size_t i = 0; i < 2; i++) {
		struct figure f = { .name = "P4",
			            .variant = table[i].variant,
			            .unit = "us",
			            .limit_is = "P3",
			            .placement = w->placement,
			            .goal = GOAL_RATIO_AT_MOST,
			            .bound = table[i].bound };

		w->match_keys = table[i].n;
		bench_compare(&f, ROUNDS, ping_round, match_round, w);
		bench_print(&f);
	}
}

static void p5(struct wire *w, const char *pool)
{
	static const struct {
		const char *text;
		bench_round *ours;
		unsigned flags;
		bool goal;
	} table[] = {
		{ "reserve 16 + commit 16 without waiting", store_round, KVBM_NOWAIT, true },
		{ "reserve 16 + commit 16", store_round, 0, false },
		{ "commit 16 without waiting, alone", commit_round, KVBM_NOWAIT, false },
	};

	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		char variant[96];
		struct figure f = { .name = "P5",
			            .variant = variant,
			            .unit = "us",
			            .limit_is = "P3",
			            .placement = w->placement,
			            .goal = table[i].goal ? GOAL_RATIO_AT_MOST : GOAL_NONE,
			            .bound = 2.5 };

		snprintf(variant, sizeof(variant), "%s, %s", table[i].text, pool);
		w->commit_flags = table[i].flags;
		bench_compare(&f, ROUNDS, ping_round, table[i].ours, w);
		bench_print(&f);
	}
}

/* Another client stores and makes room, which is what the loop can stall on as long as there is no G3. */
static void p8(struct wire *w)
{
	struct fill_storer storer = { .socket = w->fill.daemon.socket,
		                      .lane_bytes = LANE_BYTES,
		                      .first = UINT64_C(1) << 40,
		                      .batch = 16 };
	struct figure f = { .name = "P8",
		            .variant = "no-op p99 while another client stores and evicts",
		            .unit = "us",
		            .limit_is = "p99 when idle",
		            .placement = "free",
		            .goal = GOAL_RATIO_AT_MOST,
		            .bound = 3 };
	double quiet[ROUNDS], busy[ROUNDS];
	uint64_t stored = 0;

	bench_place(0, BENCH_ANY_CPU);
	bench_place(w->fill.daemon.pid, BENCH_ANY_CPU);
	fill_storer_start(&storer);
	bench_place(storer.proc.pid, BENCH_ANY_CPU);
	for (unsigned i = 0; i < ROUNDS; i++) {
		quiet[i] = ping_p99_round(w);
		fill_storer_go(&storer);
		busy[i] = ping_p99_round(w);
		stored += fill_storer_halt(&storer);
	}
	fill_storer_end(&storer);
	bench_from(&f, quiet, busy, ROUNDS);
	bench_print(&f);
	bench_say("P8", "the other client stored %.0f blocks/s meanwhile, in batches of %u",
	          (double)stored * 1e9 / (double)(ROUNDS * ROUND_NS), storer.batch);
}

static void wire_start(struct wire *w, uint64_t slots, uint64_t blocks)
{
	fill_start(&w->fill, slots, LANE_BYTES);
	fill_blocks(&w->fill, blocks);
	fill_settle(&w->fill);
	fill_attach(w->fill.daemon.socket, LANE_BYTES, KVBM_OPEN_BY_SOCKET, &w->by_socket, &w->ns_by_socket);
	w->next = UINT64_C(1) << 32;
	echo_start(w);
}

static void wire_stop(struct wire *w)
{
	bench_place(0, BENCH_ANY_CPU);
	echo_stop(w);
	kvbm_close(w->by_socket);
	fill_stop(&w->fill);
}

int main(void)
{
	struct wire w = { .keys = malloc(BLOCKS * FILL_KEY_BYTES), .spans = malloc(BLOCKS * sizeof(struct kvbm_span)) };

	if (!bench_wanted("P3") && !bench_wanted("P4") && !bench_wanted("P5") && !bench_wanted("P8"))
		return 0;
	must(w.keys && w.spans);
	bench_init();
	samples_init(&w.samples, 200000);
	/* Room for all that P5 stores meanwhile; then a pool that is full, where each reservation drops as much. */
	wire_start(&w, 4000000, BLOCKS);
	for (int one = 1; one >= 0; one--) {
		wire_place(&w, one);
		if (bench_wanted("P3"))
			p3(&w);
		if (bench_wanted("P4"))
			p4(&w);
		if (bench_wanted("P5"))
			p5(&w, "room left");
	}
	wire_stop(&w);
	if (bench_wanted("P5") || bench_wanted("P8")) {
		wire_start(&w, BLOCKS, BLOCKS);
		while (fill_store(w.fill.ns, w.next, 1024) == 0)
			w.next += 1024;
		w.next += 1024;
		for (int one = 1; one >= 0 && bench_wanted("P5"); one--) {
			wire_place(&w, one);
			p5(&w, "pool full");
		}
		if (bench_wanted("P8"))
			p8(&w);
		wire_stop(&w);
	}
	samples_deinit(&w.samples);
	free(w.keys);
	free(w.spans);
	return 0;
}
