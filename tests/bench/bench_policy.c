/* SPDX-License-Identifier: Apache-2.0 */
/* P12, P15: what a live daemon keeps.  One client replays a request stream as an engine would, checking every byte of every hit; the limit
 * is exact leaf-LRU over as many blocks as the daemon has slots, computed here.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/log.h"
#include "client/kvbmctl/replay.h"
#include "client/kvbmctl/simulation.h"
#include "client/kvbmctl/trace.h"
#include "client/kvbmctl/workload.h"
#include "tests/bench/bench.h"
#include "tests/bench/fill.h"
#include "tests/lib/leaf_lru.h"

#define BLOCK_BYTES 4096u
#define GRAIN (UINT64_C(2) << 20)

/* All of @rs by one client, against a daemon with about @blocks slots.  Returns the blocks it held at the end. */
static uint64_t replay_live(struct requests *rs, uint64_t blocks, uint64_t *ret_slots, uint64_t *ret_hits)
{
	char size[40], no_hold[] = "--limits.slots_per_session=1048576";
	const char *flags[] = { size, no_hold, "--limits.slots_per_uid=1048576", NULL };
	struct replay replay = { .ns_name = "trace",
		                 .requests = rs,
		                 .total = rs->n,
		                 .block_bytes = BLOCK_BYTES,
		                 .lanes = 1,
		                 .n_clients = 1 };
	size_t bytes = sizeof(*replay.shared) + sizeof(struct replay_page);
	struct daemon_proc d;
	int go[2], stop[2];
	uint64_t used;

	snprintf(size, sizeof(size), "--g2.size=%llu",
	         (unsigned long long)((blocks * BLOCK_BYTES + GRAIN / 2) / GRAIN * GRAIN));
	daemon_start(&d, flags);
	replay.socket = d.socket;
	replay.shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(replay.shared != MAP_FAILED && pipe2(go, O_CLOEXEC) == 0 && pipe2(stop, O_CLOEXEC) == 0);
	close(go[1]); /* it may begin */
	replay.go_fd = go[0];
	replay.stop_fd = stop[0];
	replay.shared->start_ns = clock_now_ns();
	must_eq(replay_client(&replay, 0), 0);
	must_eq(replay_sum(&replay, REPLAY_WRONG_BYTES), 0);
	must_eq(replay_sum(&replay, REPLAY_ERRORS), 0);
	must_eq(replay_sum(&replay, REPLAY_REQUESTS), rs->n);
	*ret_hits = replay_sum(&replay, REPLAY_HITS_G2);
	*ret_slots = fill_ask(daemon_monitor(&d), "namespaces", "trace", "slots");
	used = fill_ask(daemon_monitor(&d), "namespaces", "trace", "used");
	close(go[0]);
	close(stop[0]);
	close(stop[1]);
	must(munmap(replay.shared, bytes) == 0);
	daemon_deinit(&d);
	return used;
}

static void rate_figure(struct requests *rs, const struct numbering *numbering, double percent)
{
	char variant[80];
	struct figure f = { .name = "P12",
		            .variant = variant,
		            .unit = "hit rate",
		            .limit_is = "exact leaf-LRU of as many blocks",
		            .goal = GOAL_RATIO_AT_LEAST,
		            .bound = 0.98 };
	uint64_t slots, hits, exact;

	(void)replay_live(rs, (uint64_t)(numbering->n_distinct * percent / 100), &slots, &hits);
	must(leaf_lru_hits(rs, numbering, (uint32_t)slots, &exact));
	snprintf(variant, sizeof(variant), "live daemon, %g %% of the blocks (%llu)", percent, (unsigned long long)slots);
	f.value = (double)hits / (double)rs->n_ids;
	f.limit = (double)exact / (double)rs->n_ids;
	f.ratio = f.value / f.limit;
	f.rounds = 1;
	bench_print(&f);
}

static void hint_figure(struct requests *rs, const struct numbering *numbering)
{
	struct simulation sim = { .requests = rs,
		                  .numbering = numbering,
		                  .capacity = (uint32_t)(numbering->n_distinct * 0.05 + 0.5),
		                  .release_recall = 0.5 };
	struct figure f = { .name = "P12",
		            .variant = "the daemon's policy, 5 %, release hints of 50 % recall",
		            .unit = "hit rate",
		            .goal = GOAL_VALUE_AT_LEAST,
		            .bound = 0.245 };
	struct simulation_result result;

	must_eq(simulation_run(&sim, &result), 0);
	f.value = (double)result.hits / (double)result.looked_up;
	bench_print(&f);
}

static void p12(void)
{
	static const double percents[] = { 5, 10, 25 };
	const char *path = getenv("KVBM_TRACE"), *source = getenv("KVBM_SOURCE");
	char beside[PATH_MAX], error[TRACE_ERROR_SIZE];
	struct numbering numbering;
	struct requests rs;

	snprintf(beside, sizeof(beside), "%s/../shared/traces/conversation_trace.jsonl", source ? source : ".");
	if (!path)
		path = beside;
	requests_init(&rs);
	if (trace_read(path, &rs, error) != 0) {
		bench_say("P12", "skipped, there is no conversation trace here ($KVBM_TRACE): %.200s", error);
		return;
	}
	must_eq(requests_number(&rs, &numbering), 0);
	for (size_t i = 0; i < sizeof(percents) / sizeof(*percents); i++)
		rate_figure(&rs, &numbering, percents[i]);
	hint_figure(&rs, &numbering);
	numbering_deinit(&numbering);
	requests_deinit(&rs);
}

/* Without reuse an engine computes, and has to keep somewhere, every block of every request. */
static void p15(void)
{
	struct figure f = { .name = "P15",
		            .variant = "held with reuse over computed without, workload chat",
		            .unit = "blocks",
		            .limit_is = "blocks of all requests" };
	char error[WORKLOAD_ERROR_SIZE];
	uint64_t slots, hits;
	struct requests rs;

	requests_init(&rs);
	must_eq(workload_make("chat", &rs, error), 0);
	f.value = (double)replay_live(&rs, rs.n_ids / 3, &slots, &hits);
	f.limit = (double)rs.n_ids;
	f.ratio = f.value / f.limit;
	f.rounds = 1;
	bench_print(&f);
	bench_say("P15", "%.1f %% less; hit rate %.3f", 100 * (1 - f.ratio), (double)hits / (double)rs.n_ids);
	requests_deinit(&rs);
}

int main(void)
{
	if (!bench_wanted("P12") && !bench_wanted("P15"))
		return 0;
	bench_init();
	must_eq(log_set_level("warn"), 0);
	if (bench_wanted("P12"))
		p12();
	if (bench_wanted("P15"))
		p15();
	return 0;
}
