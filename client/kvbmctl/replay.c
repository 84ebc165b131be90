/* The verb replay: options, the client processes, and their end.  Owns the mapping that all of them share and the pipes that steer them.
 *
 * The clients are forked before anything is opened: a session does not survive fork.  They begin only when the parent has seen that
 * the daemon is there and has the namespace, so that what is wrong with either is said once.
 */
#include "replay.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "ctl.h"
#include "output.h"

#define REPLAY_LOOK_MS 200 /* between two looks at how far they are */

struct replay_run {
	struct ctl *ctl;
	struct replay replay;
	const char *trace, *workload;
	struct requests requests; /* owns */
	uint32_t limit, passes;
	int go_end, stop_end; /* own; the parent's ends of the pipes; -1: closed */
	pid_t *pids;          /* owns; 0: ended */
	uint32_t n_running;
	sigset_t signals, old_signals;
	struct replay_outcome outcome;
};

static size_t replay_shared_size(const struct replay *replay)
{
	return sizeof(*replay->shared) + replay->n_clients * sizeof(replay->shared->clients[0]);
}

static void replay_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static int replay_check(struct ctl *ctl, const struct replay_run *run)
{
	const struct replay *replay = &run->replay;

	if (replay->n_clients < 1 || replay->n_clients > REPLAY_MAX_CLIENTS)
		return ctl_usage(ctl, "--clients is 1 to %u", REPLAY_MAX_CLIENTS);
	if (replay->lanes < 1 || replay->lanes > KVBM_MAX_LANES)
		return ctl_usage(ctl, "--lanes is 1 to %u", KVBM_MAX_LANES);
	if (replay->block_bytes < 1)
		return ctl_usage(ctl, "--block-bytes must not be 0");
	if (run->passes < 1)
		return ctl_usage(ctl, "--passes must not be 0");
	return 0;
}

/* ---- the clients ---- */

static int replay_prepare(struct replay_run *run)
{
	struct replay *replay = &run->replay;
	int go[2], stop[2];

	run->pids = calloc(replay->n_clients, sizeof(*run->pids));
	replay->shared = mmap(NULL, replay_shared_size(replay), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (replay->shared == MAP_FAILED)
		replay->shared = NULL;
	if (!run->pids || !replay->shared)
		return -ENOMEM;
	if (pipe2(go, O_CLOEXEC) != 0)
		return -errno;
	replay->go_fd = go[0];
	run->go_end = go[1];
	if (pipe2(stop, O_CLOEXEC) != 0)
		return -errno;
	replay->stop_fd = stop[0];
	run->stop_end = stop[1];
	sigemptyset(&run->signals);
	sigaddset(&run->signals, SIGCHLD);
	sigaddset(&run->signals, SIGINT);
	sigaddset(&run->signals, SIGTERM);
	sigaddset(&run->signals, SIGHUP);
	sigprocmask(SIG_BLOCK, &run->signals, &run->old_signals);
	return 0;
}

/* A terminal's ^C goes to all of them; the parent tells them through the pipe, when their request is done. */
static void replay_child(struct replay_run *run, uint32_t which)
{
	replay_close(&run->go_end);
	replay_close(&run->stop_end);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigprocmask(SIG_SETMASK, &run->old_signals, NULL);
	_exit(replay_client(&run->replay, which));
}

static int replay_fork(struct replay_run *run)
{
	fflush(NULL); /* or each child would have a copy of what is not yet written */
	for (uint32_t i = 0; i < run->replay.n_clients; i++) {
		pid_t pid = fork();

		if (pid < 0)
			return -errno;
		if (pid == 0)
			replay_child(run, i);
		run->pids[i] = pid;
		run->n_running++;
	}
	return 0;
}

static void replay_reap(struct replay_run *run)
{
	for (uint32_t i = 0; i < run->replay.n_clients; i++) {
		int status;

		if (run->pids[i] == 0 || waitpid(run->pids[i], &status, WNOHANG) != run->pids[i])
			continue;
		if (WIFSIGNALED(status)) {
			ctl_progress_end();
			fprintf(stderr, "kvbmctl replay: client %u (process %d) was killed: %s\n", i + 1,
			        (int)run->pids[i], strsignal(WTERMSIG(status)));
			run->outcome.clients_killed++;
		}
		run->pids[i] = 0;
		run->n_running--;
	}
}

static void replay_progress(const struct replay_run *run)
{
	const struct replay *replay = &run->replay;
	uint64_t done = replay_sum(replay, REPLAY_REQUESTS), looked_up = replay_sum(replay, REPLAY_LOOKED_UP), hits = 0;
	char detail[96];

	for (int i = 0; i < 4; i++)
		hits += replay_sum(replay, (enum replay_count)(REPLAY_HITS_G1 + i));
	snprintf(detail, sizeof(detail), "%llu requests, hit rate %.1f %%, wrong bytes %llu", (unsigned long long)done,
	         looked_up ? 100.0 * (double)hits / (double)looked_up : 0,
	         (unsigned long long)replay_sum(replay, REPLAY_WRONG_BYTES));
	ctl_progress("replay", replay->total ? (double)done / (double)replay->total : 1, detail);
}

/* The first signal asks them to end, the second one ends them. */
static void replay_interrupt(struct replay_run *run)
{
	bool again = run->outcome.interrupted;

	run->outcome.interrupted = true;
	replay_close(&run->stop_end);
	if (!again)
		return;
	for (uint32_t i = 0; i < run->replay.n_clients; i++)
		if (run->pids[i])
			kill(run->pids[i], SIGKILL);
}

/* Until all have ended. */
static void replay_wait(struct replay_run *run)
{
	const struct timespec look = { .tv_nsec = REPLAY_LOOK_MS * 1000000l };

	for (replay_reap(run); run->n_running > 0; replay_reap(run)) {
		int signal = sigtimedwait(&run->signals, NULL, &look);

		if (signal > 0 && signal != SIGCHLD)
			replay_interrupt(run);
		replay_progress(run);
	}
	ctl_progress_end();
}

/* ---- the daemon, as the parent sees it ---- */

static void replay_hang_up(struct ctl *ctl)
{
	kvbm_close(ctl->kvbm);
	ctl->kvbm = NULL;
}

/* How many slots the namespace may have in each tier. */
static void replay_slots(struct replay_run *run)
{
	json_t *list, *one;
	size_t i;

	if (ctl_info_try(run->ctl->kvbm, "namespaces", run->replay.ns_name, NULL, 0, &list) != 0)
		return;
	json_array_foreach(list, i, one)
	{
		run->outcome.g2_slots = (uint64_t)json_integer_value(json_object_get(one, "max_slots"));
		run->outcome.g3_slots = (uint64_t)json_integer_value(json_object_get(one, "g3_max_slots"));
	}
	json_decref(list);
	run->replay.shared->has_g3 = run->outcome.g3_slots > 0;
}

/* Is it there, and does it take the namespace?  0, or the exit code after saying why not. */
static int replay_look(struct replay_run *run)
{
	struct kvbm_model model;
	struct kvbm_ns *ns;
	int r = ctl_open(run->ctl);

	if (r != 0)
		return r;
	replay_model(&run->replay, &model);
	r = kvbm_attach(run->ctl->kvbm, &model, &ns);
	if (r == -KVBM_E_MISMATCH)
		fprintf(stderr,
		        "Blocks of another size or shape are in that namespace: choose another one with --namespace, or kvbmctl drop -n %s\n",
		        run->replay.ns_name);
	if (r >= 0)
		replay_slots(run);
	r = r < 0 ? ctl_failed(run->ctl, run->replay.ns_name, r) : 0;
	replay_hang_up(run->ctl);
	return r;
}

/* ---- the whole ---- */

static int replay_result(struct replay_run *run)
{
	const struct replay *replay = &run->replay;
	bool wrong = replay_sum(replay, REPLAY_WRONG_BYTES) > 0, failed = replay_sum(replay, REPLAY_ERRORS) > 0;

	if (run->ctl->json)
		ctl_print(run->ctl, replay_report(replay, &run->outcome));
	else
		replay_print(replay, &run->outcome);
	if (!wrong && replay_sum(replay, REPLAY_GAVE_UP) > 0)
		return CTL_UNREACHABLE;
	return wrong || failed || run->outcome.clients_killed || run->outcome.interrupted ? CTL_NO : CTL_DONE;
}

static int replay_start(struct replay_run *run)
{
	int r = replay_prepare(run);

	if (r == 0)
		r = replay_fork(run);
	if (r != 0)
		fprintf(stderr, "kvbmctl replay: cannot start %u clients: %s\n", run->replay.n_clients, strerror(-r));
	return r == 0 ? 0 : CTL_NO;
}

static int replay_run(struct replay_run *run)
{
	uint64_t start_ns;
	int r = replay_start(run);

	if (r == 0)
		r = replay_look(run);
	if (r != 0) {
		replay_close(&run->stop_end); /* nobody begins */
		if (run->pids && run->replay.shared)
			replay_wait(run);
		return r;
	}
	start_ns = clock_now_ns();
	run->replay.shared->start_ns = start_ns;
	replay_close(&run->go_end);
	replay_wait(run);
	run->outcome.seconds = (double)(clock_now_ns() - start_ns) / 1e9;
	return replay_result(run);
}

static void replay_deinit(struct replay_run *run)
{
	replay_close(&run->go_end);
	replay_close(&run->stop_end);
	replay_close(&run->replay.go_fd);
	replay_close(&run->replay.stop_fd);
	if (run->replay.shared)
		munmap(run->replay.shared, replay_shared_size(&run->replay));
	free(run->pids);
	requests_deinit(&run->requests);
}

int verb_replay(struct ctl *ctl, int argc, char **argv)
{
	struct replay_run run = {
		.ctl = ctl,
		.replay = { .ns_name = "replay", .block_bytes = 65536, .lanes = 1, .n_clients = 1, .go_fd = -1, .stop_fd = -1 },
		.passes = 1,
		.go_end = -1,
		.stop_end = -1
	};
	struct replay *replay = &run.replay;
	const struct arg table[] = {
		{ "trace", 't', ARG_STRING, &run.trace, "FILE", "a request trace (JSONL); -: standard input" },
		{ "workload", 'w', ARG_STRING, &run.workload, "KIND", "chat, agent or document[:key=value,...]" },
		{ "clients", 'c', ARG_U32, &replay->n_clients, "N", "client processes (1)" },
		{ "block-bytes", 'b', ARG_SIZE, &replay->block_bytes, "SIZE", "of one lane of a block (64K)" },
		{ "lanes", 'l', ARG_U32, &replay->lanes, "N", "lanes of a block, all written by one client (1)" },
		{ "requests", 'n', ARG_U32, &run.limit, "N", "only the first so many (0: all)" },
		{ "passes", 'p', ARG_U32, &run.passes, "N", "the whole stream so many times (1)" },
		{ "namespace", 0, ARG_STRING, &replay->ns_name, "NAME", "(replay)" },
		{ "rate", 'r', ARG_REAL, &replay->rate, "R", "requests a second, all clients together (0: no limit)" },
		{ "by-socket", 0, ARG_FLAG, &replay->by_socket, "", "match and release by message, not in shared memory" },
		{ "seed", 0, ARG_U64, &replay->seed, "N", "other keys: another seed's blocks are not found (0)" },
		{ 0 },
	};
	int r = ctl_args(ctl, table, &argc, argv, 0, 0);

	if (r >= 0)
		return r;
	r = replay_check(ctl, &run);
	if (r == 0)
		r = ctl_requests(ctl, run.trace, run.workload, run.limit, &run.requests);
	if (r != 0)
		return r;
	replay->socket = ctl->socket;
	replay->requests = &run.requests;
	replay->total = (uint64_t)run.requests.n * run.passes;
	r = replay_run(&run);
	replay_deinit(&run);
	return r;
}
