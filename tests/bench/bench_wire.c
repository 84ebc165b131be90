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

/* A bare ping-pong: a process that reads so many bytes and writes so many. */
struct echo {
	int fd; /* owns */
	pid_t pid;
	size_t request_bytes, reply_bytes;
	uint8_t *buffer; /* owns */
};

struct wire {
	struct fill fill;
	struct kvbm *by_socket; /* owns */
	struct kvbm_ns *ns_by_socket;
	struct echo bare;    /* as a no-op */
	struct echo carried; /* as a match of P4 */
	struct samples samples;
	const char *placement;
	uint64_t next;       /* block to store next */
	uint32_t match_keys; /* of P4 */
	unsigned commit_flags;
	uint8_t *keys; /* owns; BLOCKS */
	struct kvbm_span *spans;
};

/* ---- the bare ping-pong ---- */

static void echo_read(int fd, uint8_t *buffer, size_t size)
{
	ssize_t n;

	for (size_t done = 0; done < size; done += (size_t)n) {
		n = read(fd, buffer + done, size - done);
		if (n == 0)
			_exit(0); /* in the child: that is its end */
		must(n > 0);
	}
}

static void echo_write(int fd, const uint8_t *buffer, size_t size)
{
	must(write(fd, buffer, size) == (ssize_t)size); /* a blocking socket takes all of it */
}

static void echo_start(struct echo *e, size_t request_bytes, size_t reply_bytes)
{
	pid_t parent = getpid();
	int pair[2];

	*e = (struct echo){ .request_bytes = request_bytes, .reply_bytes = reply_bytes };
	e->buffer = calloc(1, request_bytes + reply_bytes);
	must(e->buffer && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	fflush(NULL);
	e->pid = fork();
	must(e->pid >= 0);
	if (e->pid == 0) {
		close(pair[0]);
		must(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == parent);
		for (;;) {
			echo_read(pair[1], e->buffer, request_bytes);
			echo_write(pair[1], e->buffer, reply_bytes);
		}
	}
	close(pair[1]);
	e->fd = pair[0];
}

static void echo_stop(struct echo *e)
{
	close(e->fd);
	must(waitpid(e->pid, NULL, 0) == e->pid);
	free(e->buffer);
}

static void echo_once(struct echo *e)
{
	echo_write(e->fd, e->buffer, e->request_bytes);
	echo_read(e->fd, e->buffer, e->reply_bytes);
}

/* A no-op's request is a header; its reply a header and what every reply says. */
static void bare_start(struct wire *w)
{
	struct raw raw;
	size_t reply_bytes;

	raw_hello(&raw, w->fill.daemon.socket);
	must_eq(raw_call(&raw, KVBM__VERB__VERB_PING, NULL), 0);
	reply_bytes = WIRE_HEADER_BYTES + kvbm__reply__get_packed_size(raw.reply);
	raw_close(&raw);
	echo_start(&w->bare, WIRE_HEADER_BYTES, reply_bytes);
}

static void bare_once(struct wire *w)
{
	echo_once(&w->bare);
}

static void carried_once(struct wire *w)
{
	echo_once(&w->carried);
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

static double carried_round(void *ctx)
{
	return round_of(ctx, carried_once, 0.5);
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
	bench_place(w->bare.pid, one_core ? 0 : 1);
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

/* What the socket alone takes for as many bytes: the keys there, a slot and a generation for each back. */
static void p4_carried(struct wire *w, const char *text, bool one_core)
{
	char variant[96];
	struct figure f = { .name = "P4",
		            .variant = variant,
		            .unit = "us",
		            .limit_is = "bare socket, as many bytes",
		            .placement = w->placement };

	snprintf(variant, sizeof(variant), "%s, against its bytes", text);
	echo_start(&w->carried, (size_t)w->match_keys * FILL_KEY_BYTES, (size_t)w->match_keys * 2 * sizeof(uint32_t));
	bench_place(w->carried.pid, one_core ? 0 : 1);
	bench_compare(&f, ROUNDS, carried_round, match_round, w);
	bench_print(&f);
	echo_stop(&w->carried);
}

static void p4(struct wire *w, bool one_core)
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
		p4_carried(w, table[i].variant, one_core);
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
	bare_start(w);
}

static void wire_stop(struct wire *w)
{
	bench_place(0, BENCH_ANY_CPU);
	echo_stop(&w->bare);
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
			p4(&w, one);
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
