/* SPDX-License-Identifier: Apache-2.0 */
/* The composition root: makes the modules in the order of one table, and ends them in the reverse.
 *
 * Owns: all modules, by value or by pointer.  No module knows this file.
 *
 * Ending takes turns of the loop: sessions send what they have to send, workers finish.  So each step's end has two halves:
 * stop() begins it, is_stopped() is asked at the end of every turn until it says yes; then comes the step before.  A start
 * that fails half-way ends the same way.
 *
 *   STARTING -> SERVING      all steps started
 *   STARTING, SERVING -> STOPPING   a step failed; SIGTERM, SIGINT        (a second one: without waiting for clients)
 */
#include "daemon.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include <kvbm_version.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/size.h"
#include "block/table.h"
#include "base/thread.h"
#include "loop/loop.h"
#include "loop/mailbox.h"
#include "loop/worker.h"
#include "move/onboard.h"
#include "notify.h"
#include "pools.h"
#include "server/life.h"
#include "server/listener.h"
#include "server/service.h"
#include "server/session.h"
#include "settings.h"
#include "sums.h"
#include "tier/device.h"
#include "tier/host.h"
#include "tier/nvme.h"

#define TICK_NS CLOCK_NS_PER_S
#define TICK_MIN_NS (10 * CLOCK_NS_PER_MS)
#define REPROBE_NS (2 * CLOCK_NS_PER_S) /* between tries to get a lost GPU back */
#define JOBS_WAITING 256u

struct daemon {
	struct config config;
	const struct config_sources *sources; /* borrows */

	struct loop *loop; /* owns, as all below */
	struct notify notify;
	struct loop_signal on_term, on_int, on_hup;
	struct mailbox *mailbox;
	struct worker_pool *workers;
	struct tier *host;
	struct devices *devices;
	struct pools pools;
	struct tier_lower *lower; /* NULL: there is none */
	struct life life;
	struct store *store;
	struct store_policy policies[CONFIG_MAX_NAMESPACES];
	struct service service;
	struct sessions sessions;
	struct loop_timer tick;     /* the store's time; runs while there is somebody or something to look after */
	struct loop_timer patience; /* while clients may still take their replies */
	struct loop_timer stuck;    /* while a drive may still answer */
	struct loop_timer stuck_device;
	struct listener listener;

	struct loop_hook turn;
	unsigned n_started; /* steps */
	bool stopping, step_is_stopping;
	bool impatient, sessions_closed, drive_is_stuck, device_is_stuck;
	bool host_is_closed, workers_are_closed, mailbox_is_closed, devices_are_closed, lower_is_closing, lower_is_closed;
	enum daemon_exit code;
};

/* ---- from the configuration ---- */

static void daemon_on_region(void *ctx, const struct tier_region *region)
{
	devices_region_seen(ctx, region);
}

static void daemon_on_region_gone(void *ctx, const struct tier_region *region)
{
	devices_region_gone(ctx, region);
}

static struct store_config daemon_store_config(struct daemon *d)
{
	struct tier_lower_stat stat = { 0 };
	struct store_config config;

	if (d->lower)
		d->lower->ops->stat(d->lower, &stat);
	config = settings_of_store(&d->config, stat.size_bytes, d->policies);
	config.host = d->host;
	config.boot_id = d->life.boot_id;
	config.watch = (struct tier_watch){ daemon_on_region, daemon_on_region_gone, d->devices };
	config.lower = d->lower;
	config.calculator = sums_on(d->workers);
	return config;
}

/* ---- signals ---- */

static void daemon_stop(struct daemon *d)
{
	if (d->stopping) {
		d->impatient = true;
		return;
	}
	d->stopping = true; /* the rest is done at the end of this turn */
	notify_stopping(&d->notify);
}

static void daemon_on_term(struct loop_signal *s, int signum)
{
	struct daemon *d = signum == SIGINT ? container_of(s, struct daemon, on_int)
	                                    : container_of(s, struct daemon, on_term);

	log_info("%s: %s", strsignal(signum), d->stopping ? "not waiting for clients any more" : "stopping");
	daemon_stop(d);
}

static void daemon_arm_tick(struct daemon *d);

static void daemon_apply(struct daemon *d, const struct config *config)
{
	struct sessions_config sessions;
	struct store_config store;

	/* In place: modules borrow lists of uids out of it. */
	d->config = *config;
	log_set_level(log_level_name((enum log_level)config->log));
	sessions = settings_of_sessions(&d->config);
	sessions_configure(&d->sessions, &sessions);
	store = daemon_store_config(d);
	store_configure(d->store, &store);
	daemon_arm_tick(d);
	d->service.n_admin_uids = config->admin_uids.n;
	d->service.wait_ns = config->g3_wait_ns;
}

static void daemon_on_hup(struct loop_signal *s, int signum)
{
	struct daemon *d = container_of(s, struct daemon, on_hup);
	struct config next, merged;
	struct config_error error;
	char kept[1024];

	(void)signum;
	if (d->stopping)
		return;
	notify_reloading();
	if (config_load(d->sources, &next, &error) != 0) {
		log_error("configuration not reloaded, all stays as it is: %s", error.text);
	} else if (config_reload(&d->config, &next, &merged, kept, sizeof(kept), &error) != 0) {
		log_error("configuration not reloaded, all stays as it is: %s", error.text);
	} else {
		daemon_apply(d, &merged);
		log_info("configuration reloaded%s%s", kept[0] ? "; these need a restart and keep their value: " : "",
		         kept);
	}
	notify_reloaded();
}

/* ---- time ---- */

static void daemon_on_tick(struct loop_timer *t);

/* Nothing ticks while there is nobody whose limits could be passed, and no deadline. */
static void daemon_arm_tick(struct daemon *d)
{
	uint64_t now = loop_now_ns(d->loop), next = store_next_ns(d->store), wait = UINT64_MAX;

	if (d->sessions.n > 0)
		wait = TICK_NS;
	if (next != UINT64_MAX)
		wait = next <= now ? 0 : next - now < wait ? next - now : wait;
	if (wait != UINT64_MAX)
		loop_timer_start(&d->tick, wait < TICK_MIN_NS ? TICK_MIN_NS : wait, 0, daemon_on_tick);
}

/* It does not run, or was started for something far away while there was nobody. */
static bool daemon_wants_tick(struct daemon *d)
{
	if (!loop_timer_is_running(&d->tick))
		return d->sessions.n > 0 || d->lower;
	return d->sessions.n > 0 && d->tick.due_ns > loop_now_ns(d->loop) + TICK_NS;
}

static void daemon_on_tick(struct loop_timer *t)
{
	struct daemon *d = container_of(t, struct daemon, tick);

	store_tick(d->store, loop_now_ns(d->loop));
	daemon_arm_tick(d);
}

/* ---- steps ---- */

static int start_notify(struct daemon *d)
{
	notify_start(&d->notify, d->loop);
	return 0;
}

static void stop_notify(struct daemon *d)
{
	notify_stop(&d->notify);
}

/* Before memory is made: a second daemon at the same place is refused without having taken any. */
static int start_socket(struct daemon *d)
{
	const struct config *c = &d->config;
	const struct config_where *where = &c->where[0]; /* of daemon.socket, the first row */
	struct listener_config config = {
		.path = c->socket,
		.group = c->socket_group,
		.mode = (mode_t)c->socket_mode,
		.make_directory = where->source == CONFIG_DEFAULT,
	};
	int r = listener_open(&d->listener, &config);

	return r == LISTENER_E_CONFIG ? DAEMON_REFUSED : r < 0 ? error_trace(r) : r;
}

static void stop_socket(struct daemon *d)
{
	listener_close(&d->listener);
}

static int start_signals(struct daemon *d)
{
	int r = loop_signal_start(d->loop, &d->on_term, SIGTERM, daemon_on_term);

	assert(r == 0);
	r = loop_signal_start(d->loop, &d->on_int, SIGINT, daemon_on_term);
	assert(r == 0);
	r = loop_signal_start(d->loop, &d->on_hup, SIGHUP, daemon_on_hup);
	assert(r == 0);
	return r;
}

static void stop_signals(struct daemon *d)
{
	loop_signal_close(&d->on_term, NULL);
	loop_signal_close(&d->on_int, NULL);
	loop_signal_close(&d->on_hup, NULL);
}

static void set_true(void *arg)
{
	*(bool *)arg = true;
}

static int start_mailbox(struct daemon *d)
{
	return error_trace(mailbox_new(d->loop, &d->mailbox));
}

static void stop_mailbox(struct daemon *d)
{
	mailbox_close(d->mailbox, set_true, &d->mailbox_is_closed);
}

static bool mailbox_is_stopped(struct daemon *d)
{
	return d->mailbox_is_closed;
}

static int start_workers(struct daemon *d)
{
	return error_trace(worker_pool_new(d->mailbox, settings_n_workers(&d->config), JOBS_WAITING, &d->workers));
}

static void stop_workers(struct daemon *d)
{
	worker_pool_close(d->workers, set_true, &d->workers_are_closed);
}

static bool workers_are_stopped(struct daemon *d)
{
	return d->workers_are_closed;
}

static int start_host(struct daemon *d)
{
	static const enum host_huge huge[] = {
		[CONFIG_HUGE_AUTO] = HOST_HUGE_AUTO,
		[CONFIG_HUGE_REQUIRE] = HOST_HUGE_REQUIRE,
		[CONFIG_HUGE_NEVER] = HOST_HUGE_NEVER,
	};
	struct host_config config = {
		.size = d->config.g2_size_bytes,
		.region_size = d->config.g2_region_bytes,
		.huge = huge[d->config.g2_huge_pages],
		.numa = d->config.g2_numa != 0,
		.loop = d->loop,
		.workers = d->workers,
	};
	int r = host_new(&config, &d->host);

	return r == HOST_E_HUGE ? DAEMON_REFUSED : r;
}

static void stop_host(struct daemon *d)
{
	host_close(d->host, set_true, &d->host_is_closed);
}

static bool host_is_stopped(struct daemon *d)
{
	return d->host_is_closed;
}

static int start_devices(struct daemon *d)
{
	struct devices_config config = {
		.loop = d->loop,
		.mailbox = d->mailbox,
		.which = d->config.g1_devices,
		.max_copies = (uint32_t)d->config.g1_depth,
		.call_deadline_ns = d->config.g1_timeout_ns,
		.copy_deadline_ns = d->config.g1_timeout_ns,
		.reprobe_ns = REPROBE_NS,
	};

	/* Made when the GPUs are known, on a turn of the loop. */
	pools_init(&d->pools, d->loop, d->config.g1_size_bytes, d->config.g1_region_bytes);
	return error_trace(devices_new(&config, &d->devices));
}

static void stop_devices(struct daemon *d)
{
	pools_leave(&d->pools);
	devices_close(d->devices, set_true, &d->devices_are_closed);
}

static bool devices_are_stopped(struct daemon *d)
{
	if (d->devices_are_closed)
		pools_free(&d->pools);
	return d->devices_are_closed;
}

/* The kernel's id of this boot: what an earlier one of it left in flight may still land. */
static void daemon_boot_id(uint8_t ret_id[16])
{
	FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
	unsigned byte;

	memset(ret_id, 0, 16);
	for (int i = 0; f && i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			(void)fgetc(f);
		if (fscanf(f, "%2x", &byte) != 1)
			break;
		ret_id[i] = (uint8_t)byte;
	}
	if (f)
		fclose(f);
}

static int start_lower(struct daemon *d)
{
	char paths[CONFIG_PATHS_SIZE], why[NVME_WHY_BYTES], *save = NULL;
	const char *list[CONFIG_MAX_PATHS];
	struct nvme_config config = {
		.paths = list,
		.size = d->config.g3_size_bytes,
		.depth = (uint32_t)d->config.g3_depth,
		.write_budget_bytes = d->config.g3_budget_bytes,
		.io_deadline_ns = d->config.g3_io_timeout_ns,
		.loop = d->loop,
	};
	int r;

	memcpy(paths, d->config.g3_path, sizeof(paths));
	for (char *p = strtok_r(paths, ",", &save); p; p = strtok_r(NULL, ",", &save))
		list[config.n_paths++] = p;
	if (config.n_paths == 0)
		return 0;
	daemon_boot_id(config.boot_id);
	r = nvme_new(&config, why, &d->lower);
	if (r <= 0)
		return error_trace(r);
	if (r == NVME_E_SPACE || r == NVME_E_IO || r == NVME_E_RING) {
		log_error("g3: %s: going on without it", why);
		return 0;
	}
	log_error("g3: %s", why);
	return DAEMON_REFUSED;
}

static int start_life(struct daemon *d)
{
	uint64_t secret;

	if (getrandom(&secret, sizeof(secret), 0) != (ssize_t)sizeof(secret))
		return error_origin(-EIO);
	table_seed(secret);
	return error_trace(life_init(&d->life));
}

static void stop_life(struct daemon *d)
{
	life_deinit(&d->life);
}

static int start_store(struct daemon *d)
{
	struct store_config config = daemon_store_config(d);

	return error_trace(store_new(&config, &d->store));
}

static void stop_store(struct daemon *d)
{
	/* Who was reading a block when we were told to stop reads on: the bytes stay until he unmaps them. */
	host_leave(d->host);
	d->store = store_free(d->store);
}

/* Blocks are read and written from here on. */
static int start_moving(struct daemon *d)
{
	uint64_t deadline;

	if (!d->lower)
		return 0;
	store_lower_user(d->store, &d->lower->user);
	nvme_start(d->lower);
	/* Nobody is served yet.  A client that attached before would make namespaces anew that are about to come back; blocks may come while
	 * we serve. */
	deadline = loop_refresh_ns(d->loop) + d->config.g3_io_timeout_ns;
	while (!nvme_knows_areas(d->lower) && loop_refresh_ns(d->loop) < deadline)
		loop_turn(d->loop, true);
	if (!nvme_knows_areas(d->lower))
		log_warn("g3: the drives have not said within %llu s whose their areas are: blocks of those who attach now are lost",
		         (unsigned long long)(d->config.g3_io_timeout_ns / CLOCK_NS_PER_S));
	return 0;
}

static void daemon_on_stuck(struct loop_timer *t)
{
	container_of(t, struct daemon, stuck)->drive_is_stuck = true;
}

static void stop_moving(struct daemon *d)
{
	uint64_t wait = d->lower ? d->config.g3_io_timeout_ns : 0;

	if (store_is_copying(d->store) && wait < 2 * d->config.g1_timeout_ns)
		wait = 2 * d->config.g1_timeout_ns;
	store_stop_moving(d->store);
	loop_timer_init(d->loop, &d->stuck);
	loop_timer_start(&d->stuck, wait, 0, daemon_on_stuck);
}

/* A drive or a GPU that does not answer has memory of ours, which only the end of this process takes from it.  Nobody is served any more, and our
 * socket is gone. */
static void daemon_leave(const struct daemon *d)
{
	if (store_is_copying(d->store))
		log_error("g1: a GPU does not answer: stopped without waiting for it");
	else
		log_error("g3: a drive does not answer: stopped without waiting for it; what it holds is looked at anew at the next start");
	_exit(DAEMON_OK);
}

static bool moving_is_stopped(struct daemon *d)
{
	if (store_is_moving(d->store)) {
		if (d->drive_is_stuck)
			daemon_leave(d);
		return false;
	}
	if (!d->lower) {
		loop_timer_close(&d->stuck, NULL);
		return true;
	}
	if (!d->lower_is_closing) {
		d->lower_is_closing = true;
		loop_timer_close(&d->stuck, NULL);
		nvme_close(d->lower, set_true, &d->lower_is_closed);
	}
	if (d->lower_is_closed)
		store_lower_gone(d->store);
	return d->lower_is_closed;
}

static int start_service(struct daemon *d)
{
	d->service = (struct service){
		.store = d->store,
		.host = d->host,
		.devices = d->devices,
		.pools_are_made = &d->pools.made,
		.life = &d->life,
		.socket = d->listener.path,
		.admin_uids = d->config.admin_uids.uid,
		.n_admin_uids = d->config.admin_uids.n,
		.start_ns = loop_now_ns(d->loop),
		.wait_ns = d->config.g3_wait_ns,
		.lower = d->lower,
		.lower_paths = d->config.g3_path,
	};
	return error_trace(service_init(&d->service));
}

static void stop_service(struct daemon *d)
{
	service_deinit(&d->service);
}

static void daemon_on_stuck_device(struct loop_timer *t)
{
	container_of(t, struct daemon, stuck_device)->device_is_stuck = true;
}

/* Sessions have ended; what copied for them ends by itself, and gives back what it opened. */
static void stop_adoptions(struct daemon *d)
{
	loop_timer_init(d->loop, &d->stuck_device);
	loop_timer_start(&d->stuck_device, 2 * d->config.g1_timeout_ns, 0, daemon_on_stuck_device);
}

static bool adoptions_are_stopped(struct daemon *d)
{
	if (!list_empty(&d->service.adoptions)) {
		if (!d->device_is_stuck)
			return false;
		/* It may write to host memory as long as this process lives. */
		log_error("g1: a GPU does not answer: stopped without waiting for it");
		_exit(DAEMON_OK);
	}
	loop_timer_close(&d->stuck_device, NULL);
	return true;
}

static int start_sessions(struct daemon *d)
{
	struct sessions_config config = settings_of_sessions(&d->config);

	sessions_init(&d->sessions, d->loop, &d->service, &config);
	loop_timer_init(d->loop, &d->tick);
	loop_timer_init(d->loop, &d->patience);
	return 0;
}

static void daemon_on_patience(struct loop_timer *t)
{
	container_of(t, struct daemon, patience)->impatient = true;
}

static void stop_sessions(struct daemon *d)
{
	loop_timer_close(&d->tick, NULL);
	loop_timer_start(&d->patience, d->config.stop_timeout_ns, 0, daemon_on_patience);
	sessions_drain(&d->sessions);
}

static bool sessions_are_stopped(struct daemon *d)
{
	if (d->sessions.n > 0 && !d->impatient && d->config.stop_timeout_ns > 0)
		return false;
	if (!d->sessions_closed) {
		if (d->sessions.n > 0)
			log_warn("%u clients had to be disconnected", d->sessions.n);
		d->sessions_closed = true;
		loop_timer_close(&d->patience, NULL);
		sessions_close(&d->sessions);
	}
	if (d->sessions.n_all > 0)
		return false;
	sessions_deinit(&d->sessions);
	return true;
}

static int start_listener(struct daemon *d)
{
	return error_trace(listener_start(&d->listener, d->loop, &d->sessions));
}

/* start() returns 0, a fault, or a DAEMON_* that it has logged; after the last two there is nothing to stop. */
static const struct step {
	int (*start)(struct daemon *d);       /* may be NULL */
	void (*stop)(struct daemon *d);       /* may be NULL */
	bool (*is_stopped)(struct daemon *d); /* NULL: stop() was all */
} steps[] = {
	{ start_notify, stop_notify, NULL },
	{ start_socket, stop_socket, NULL },
	{ start_signals, stop_signals, NULL },
	{ start_mailbox, stop_mailbox, mailbox_is_stopped },
	{ start_workers, stop_workers, workers_are_stopped },
	{ start_host, stop_host, host_is_stopped },
	{ start_devices, stop_devices, devices_are_stopped },
	{ start_lower, NULL, NULL }, /* ended by the step of moving, while the store can still be asked */
	{ start_life, stop_life, NULL },
	{ start_store, stop_store, NULL },
	{ start_moving, stop_moving, moving_is_stopped },
	{ start_service, stop_service, NULL },
	{ NULL, stop_adoptions, adoptions_are_stopped },
	{ start_sessions, stop_sessions, sessions_are_stopped },
	{ start_listener, stop_socket, NULL }, /* the socket first: nobody new */
};
#define N_STEPS (sizeof(steps) / sizeof(steps[0]))

static void daemon_end_steps(struct daemon *d)
{
	while (d->n_started > 0) {
		const struct step *step = &steps[d->n_started - 1];

		if (!d->step_is_stopping && step->stop)
			step->stop(d);
		d->step_is_stopping = true;
		if (step->is_stopped && !step->is_stopped(d))
			return;
		d->step_is_stopping = false;
		d->n_started--;
	}
	loop_hook_remove(&d->turn);
	loop_stop(d->loop);
}

static void daemon_on_turn(struct loop_hook *hook)
{
	struct daemon *d = container_of(hook, struct daemon, turn);

	if (d->stopping)
		daemon_end_steps(d);
	else if (d->n_started == N_STEPS && pools_make(&d->pools, d->devices, d->store) < 0)
		d->stopping = d->impatient = true, d->code = DAEMON_FAILED;
	else if (d->n_started == N_STEPS && daemon_wants_tick(d))
		daemon_arm_tick(d);
}

/* ---- the whole ---- */

/* What holds for the process: nobody of our uid may look into it, nobody ends it by closing a pipe. */
static void daemon_prepare_process(void)
{
	struct rlimit files;

	thread_set_role(THREAD_LOOP);
	(void)signal(SIGPIPE, SIG_IGN);
	if (prctl(PR_SET_DUMPABLE, 0) != 0)
		log_warn("other processes of our uid could look into this one: %s", strerror(errno));
	if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
		files.rlim_cur = files.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &files) != 0)
			log_warn("the limit of descriptors stays low: %s", strerror(errno));
	}
}

static void daemon_say_start(const struct daemon *d)
{
	char size[SIZE_TEXT_MAX];
	struct tier_stat stat;

	d->host->ops->stat(d->host, &stat);
	log_info("kvbmd " KVBM_VERSION " serves on %s%s: g2 %s on pages of kind %s, %u workers%s%s", d->listener.path,
	         d->listener.inherited ? " (handed over)" : "", size_format(stat.size_bytes, size, sizeof(size)),
	         stat.page_kind, settings_n_workers(&d->config), d->config.file[0] ? ", settings of " : "",
	         d->config.file);
}

static void daemon_start(struct daemon *d)
{
	int r = 0;

	while (d->n_started < N_STEPS && r == 0) {
		r = steps[d->n_started].start ? steps[d->n_started].start(d) : 0;
		d->n_started += r == 0;
	}
	if (r == 0) {
		daemon_say_start(d);
		notify_ready(&d->notify, d->host);
		return;
	}
	d->code = r > 0 ? (enum daemon_exit)r : DAEMON_FAILED;
	d->stopping = d->impatient = true;
}

enum daemon_exit daemon_run(const struct config *config, const struct config_sources *sources)
{
	static struct daemon daemon; /* large, and there is one */
	struct daemon *d = &daemon;

	*d = (struct daemon){ .config = *config, .sources = sources, .code = DAEMON_OK };
	log_set_level(log_level_name((enum log_level)config->log));
	daemon_prepare_process();
	if (loop_new(&d->loop) != 0)
		return DAEMON_FAILED;
	daemon_start(d);
	/* From here on, so that it sees all modules or none. */
	loop_on_turn_end(d->loop, &d->turn, daemon_on_turn);
	loop_run(d->loop);
	assert(d->n_started == 0);
	d->loop = loop_free(d->loop);
	if (d->code == DAEMON_OK)
		log_info("stopped");
	return d->code;
}
