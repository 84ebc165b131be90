/* SPDX-License-Identifier: Apache-2.0 */
/* The power goes at any moment, drives lie, and every operation fails in every way: what is served is right, or a miss.
 *
 * Drives are memfds under tests/lib/fault_uring.c.  Timers are real ones, so that a seed gives much the same run each time, not
 * the very same.
 */
#include <check.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/thread.h"
#include "tests/lib/fault_uring.h"
#include "tests/lib/must.h"
#include "tests/lib/nvme_owner.h"

#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)
#define CUTS 2400u
#define AREA (256 * KIB)
#define DRIVES_MAX 3u

static struct nvme_owner owner;
static struct fault_uring ring;
static int fds[DRIVES_MAX];
static char paths[DRIVES_MAX][32];
static const char *path_list[DRIVES_MAX];
static struct nvme_config config;
static uint64_t served, missed, cuts;
static bool killing; /* not the power goes, but the process */

static void drives_make(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		fds[i] = memfd_create("drive", MFD_CLOEXEC);
		must(fds[i] >= 0);
		must(snprintf(paths[i], sizeof(paths[i]), "/proc/self/fd/%d", fds[i]) > 0);
		path_list[i] = paths[i];
	}
	config = (struct nvme_config){ .paths = path_list,
		                       .n_paths = n,
		                       .size = n * (MIB + 4 * KIB) + 6 * AREA,
		                       .area_size = AREA,
		                       .grace_ns = UINT64_MAX,
		                       .record_delay_ns = 1,
		                       .depth = 8 };
}

static void drives_drop(void)
{
	for (uint32_t i = 0; i < config.n_paths; i++)
		must(close(fds[i]) == 0);
}

static void setup(void)
{
	thread_set_role(THREAD_LOOP);
	nvme_owner_init(&owner, 16 * MIB);
}

static void teardown(void)
{
	nvme_owner_deinit(&owner);
	thread_set_role(THREAD_NONE);
}

static void start(uint64_t seed)
{
	fault_uring_init(&ring, owner.loop, seed);
	config.ring = &ring.uring;
	must_eq(nvme_owner_open(&owner, &config), 0);
	must_eq(owner.n_strangers, 0);
}

/* ---- power cuts ---- */

struct cut_plan {
	uint64_t at;      /* the operation in whose place the power goes */
	unsigned percent; /* of operations that a lying drive gets wrong */
	struct rng rng;
};

static enum fault_kind cut_decide(void *ctx, const struct uring_op *op, uint64_t n)
{
	static const enum fault_kind lies[] = { FAULT_ERROR, FAULT_SHORT, FAULT_TEAR, FAULT_LOSE, FAULT_MISPLACE };
	struct cut_plan *plan = ctx;

	(void)op;
	if (n >= plan->at) {
		ring.dead = true;
		return FAULT_NONE;
	}
	if (owner.recovered && rng_chance(&plan->rng, plan->percent))
		return lies[rng_below(&plan->rng, 5)];
	if (owner.recovered && killing && rng_chance(&plan->rng, 30))
		return FAULT_DELAY; /* in any order */
	return FAULT_NONE;
}

static uint32_t pick_area(struct rng *rng)
{
	for (int i = 0; i < 8; i++) {
		uint32_t id = (uint32_t)rng_below(rng, 6);

		if (owner.areas[id].used)
			return id;
	}
	return UINT32_MAX;
}

static bool place_is_idle(uint32_t area, uint32_t place)
{
	return !nvme_owner_is_writing(&owner, area, place);
}

static void one_thing(struct rng *rng)
{
	static const uint32_t lanes[] = { 1, 1, 2, 4 };
	uint64_t what = rng_below(rng, 100);
	uint32_t area = pick_area(rng), place;

	if (what < 6 && owner.t->ops->areas_free(owner.t) > 0 && owner.online) {
		(void)nvme_owner_area(&owner, 4096 << rng_below(rng, 2), lanes[rng_below(rng, 4)]);
		return;
	}
	if (area == UINT32_MAX)
		return;
	place = (uint32_t)rng_below(rng, owner.areas[area].n_slots);
	if (what < 9 && owner.in_flight == 0) {
		nvme_owner_drop(&owner, area);
	} else if (what < 20) {
		if (place_is_idle(area, place))
			nvme_owner_forget(&owner, area, place);
	} else if (what < 80 && owner.in_flight < 16 && place_is_idle(area, place)) {
		uint64_t lane_bytes = owner.areas[area].shape.lane_bytes;
		uint32_t at = 0;

		/* In flight at once: each has memory of its own. */
		while (!nvme_owner_is_idle(&owner, at * lane_bytes, lane_bytes))
			at++;
		(void)nvme_owner_write(&owner, area, place, nvme_owner_seed(&owner), at);
	}
}

static void check_and_count(void)
{
	uint32_t present = 0, right;

	for (uint32_t i = 0; i < NVME_OWNER_AREAS; i++)
		for (uint32_t p = 0; owner.areas[i].used && p < owner.areas[i].n_slots; p++)
			present += owner.areas[i].slots[p].present;
	must_eq(owner.n_strangers, 0);
	ring.decide = NULL;
	right = nvme_owner_check_all(&owner);
	/* A place is not overwritten while a record says what was in it. */
	if (killing)
		must_eq(right, present);
	served += right;
	missed += present;
}

static void one_life(struct rng *rng, unsigned percent)
{
	struct cut_plan plan = { .percent = percent };
	uint32_t n = 20 + (uint32_t)rng_below(rng, 120);

	rng_init(&plan.rng, rng_next(rng));
	start(rng_next(rng));
	check_and_count();
	ring.decide = cut_decide;
	ring.ctx = &plan;
	plan.at = ring.n_ops + 1 + rng_below(rng, 200);
	for (uint32_t i = 0; i < n && !ring.dead; i++) {
		one_thing(rng);
		if (rng_chance(rng, 30))
			loop_turn(owner.loop, false);
		if (rng_chance(rng, 5) && !ring.dead)
			fault_uring_release(&ring);
	}
	if (!ring.dead && rng_chance(rng, 40)) {
		ring.decide = NULL;
		fault_uring_release(&ring);
		nvme_owner_wait(&owner);
		nvme_owner_close(&owner);
		return;
	}
	if (killing)
		fault_uring_kill(&ring);
	else
		fault_uring_cut(&ring);
	nvme_owner_die(&owner);
	cuts++;
}

static void lives(uint64_t seed, unsigned n, unsigned percent)
{
	struct rng rng;

	rng_init(&rng, seed);
	drives_make(1 + (uint32_t)rng_below(&rng, DRIVES_MAX));
	for (unsigned i = 0; i < n; i++)
		one_life(&rng, percent);
	start(seed);
	check_and_count();
	nvme_owner_close(&owner);
	drives_drop();
}

static void many_lives(uint64_t first_seed, unsigned percent)
{
	owner.keeps_past = true;
	for (uint64_t seed = first_seed; cuts < CUTS / 2; seed++)
		lives(seed, 24, percent);
	printf("%llu %s, %llu of %llu slots found and right, no wrong byte\n", (unsigned long long)cuts,
	       killing ? "kills" : "power cuts", (unsigned long long)served, (unsigned long long)missed);
	ck_assert_uint_gt(served, cuts); /* it did find things */
}

START_TEST(power_cuts)
{
	many_lives(1, 0);
}
END_TEST

START_TEST(power_cuts_of_lying_drives)
{
	many_lives(100000, 4);
}
END_TEST

START_TEST(kills)
{
	killing = true;
	many_lives(200000, 0);
}
END_TEST

/* ---- every operation, every fault ---- */

struct fault_plan {
	uint64_t at;
	enum fault_kind kind;
};

static enum fault_kind fault_decide(void *ctx, const struct uring_op *op, uint64_t n)
{
	const struct fault_plan *plan = ctx;

	(void)op;
	return n == plan->at ? plan->kind : FAULT_NONE;
}

static void on_release(struct loop_timer *t)
{
	(void)t;
	fault_uring_release(&ring);
}

static void script(void)
{
	uint32_t a = nvme_owner_area(&owner, 8192, 2), b = nvme_owner_area(&owner, 4096, 1);

	for (uint32_t i = 0; i < 6; i++) {
		(void)nvme_owner_write(&owner, a, i, nvme_owner_seed(&owner), i);
		(void)nvme_owner_write(&owner, b, 3 * i, nvme_owner_seed(&owner), 8 + i);
	}
	nvme_owner_wait(&owner);
	(void)nvme_owner_check_all(&owner);
	nvme_owner_forget(&owner, a, 1);
	nvme_owner_forget(&owner, a, 2);
	(void)nvme_owner_put(&owner, a, 2, nvme_owner_seed(&owner));
	nvme_owner_drop(&owner, b);
	b = nvme_owner_area(&owner, 4096, 4);
	(void)nvme_owner_put(&owner, b, 0, nvme_owner_seed(&owner));
}

/* Returns the number of operations. */
static uint64_t script_with(uint64_t at, enum fault_kind kind)
{
	struct fault_plan plan = { .at = at, .kind = kind };
	struct loop_timer release;
	uint64_t n;

	drives_make(2);
	fault_uring_init(&ring, owner.loop, at);
	ring.decide = fault_decide;
	ring.ctx = &plan;
	config.ring = &ring.uring;
	loop_timer_init(owner.loop, &release);
	if (kind == FAULT_DELAY)
		loop_timer_start(&release, CLOCK_NS_PER_MS, CLOCK_NS_PER_MS, on_release);
	must_eq(nvme_owner_open(&owner, &config), 0);
	script();
	must_eq(owner.in_flight, 0);
	nvme_owner_close(&owner);
	must_eq(fault_uring_held(&ring), 0);
	n = ring.n_ops;
	must(at > n || kind == FAULT_NONE || ring.n_faults == 1);
	/* What is left, seen by a ring that does not lie. */
	loop_timer_stop(&release);
	start(at);
	(void)nvme_owner_check_all(&owner);
	nvme_owner_close(&owner);
	loop_timer_close(&release, NULL);
	loop_turn(owner.loop, false);
	drives_drop();
	return n;
}

START_TEST(every_operation_fails_in_every_way)
{
	uint64_t n;

	owner.keeps_past = true;
	n = script_with(0, FAULT_NONE);
	ck_assert_uint_gt(n, 60);
	for (int kind = FAULT_ERROR; kind < FAULT_KINDS; kind++)
		for (uint64_t at = 1; at <= n; at++)
			(void)script_with(at, (enum fault_kind)kind);
}
END_TEST

/* ---- health ---- */

static enum fault_kind decide_all(void *ctx, const struct uring_op *op, uint64_t n)
{
	(void)op;
	(void)n;
	return *(const enum fault_kind *)ctx;
}

START_TEST(a_drive_that_stops_answering)
{
	enum fault_kind kind = FAULT_DELAY;
	uint32_t area, depth;

	drives_make(2);
	config.depth = 4;
	depth = 2 * config.depth;
	config.io_deadline_ns = 20 * CLOCK_NS_PER_MS;
	config.probe_ns = 5 * CLOCK_NS_PER_MS;
	start(1);
	owner.keeps_past = true;
	area = nvme_owner_area(&owner, 4096, 1);
	for (uint32_t i = 0; i < 16; i++)
		ck_assert_int_eq(nvme_owner_put(&owner, area, i, nvme_owner_seed(&owner)), 0);
	owner.n_ok = 0;
	ring.decide = decide_all;
	ring.ctx = &kind;
	for (uint32_t i = 0; i < 12; i++)
		ck_assert_int_eq(nvme_owner_write(&owner, area, 16 + i, nvme_owner_seed(&owner), 1 + i), 0);
	while (owner.online)
		loop_turn(owner.loop, true);
	/* Those that waited know; those the kernel has are still its. */
	ck_assert_uint_eq(owner.n_gone, 12 - depth);
	ck_assert_uint_eq(owner.in_flight, depth);
	ck_assert_str_eq(nvme_owner_stat(&owner).state, "offline");
	must_contain(nvme_owner_stat(&owner).note, "does not answer");
	ck_assert_int_eq(nvme_owner_put(&owner, area, 40, nvme_owner_seed(&owner)), TIER_E_GONE);
	ck_assert_int_eq(nvme_owner_get(&owner, area, 0), TIER_E_GONE);
	kind = FAULT_NONE;
	fault_uring_release(&ring);
	ck_assert_uint_eq(owner.in_flight, 0);
	ck_assert_uint_eq(owner.n_ok, depth);
	while (!owner.online)
		loop_turn(owner.loop, true);
	ck_assert_str_eq(nvme_owner_stat(&owner).state, "online");
	ck_assert_ptr_eq(strstr(nvme_owner_stat(&owner).note, "does not answer"), NULL);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 16 + depth);
	nvme_owner_close(&owner);
	start(2);
	ck_assert(owner.clean);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 16 + depth);
	nvme_owner_close(&owner);
	drives_drop();
}
END_TEST

START_TEST(closing_does_not_wait_for_a_drive_that_does_not_answer)
{
	enum fault_kind kind = FAULT_DELAY;
	uint32_t area;

	drives_make(1);
	config.io_deadline_ns = 20 * CLOCK_NS_PER_MS;
	start(1);
	owner.keeps_past = true;
	area = nvme_owner_area(&owner, 4096, 1);
	ck_assert_int_eq(nvme_owner_put(&owner, area, 0, nvme_owner_seed(&owner)), 0);
	ring.decide = decide_all;
	ring.ctx = &kind;
	ck_assert_int_eq(nvme_owner_write(&owner, area, 1, nvme_owner_seed(&owner), 1), 0);
	loop_turn(owner.loop, false);
	nvme_owner_die(&owner);
	start(1);
	ck_assert(!owner.clean);
	nvme_owner_close(&owner);
	drives_drop();
}
END_TEST

START_TEST(too_many_errors_take_it_offline_and_it_comes_back)
{
	enum fault_kind kind = FAULT_ERROR;
	uint32_t area, failed = 0;

	drives_make(1);
	config.probe_ns = 5 * CLOCK_NS_PER_MS;
	start(1);
	owner.keeps_past = true;
	area = nvme_owner_area(&owner, 4096, 1);
	ck_assert_int_eq(nvme_owner_put(&owner, area, 0, nvme_owner_seed(&owner)), 0);
	nvme_owner_settle(&owner);
	ring.decide = decide_all;
	ring.ctx = &kind;
	while (owner.online) {
		ck_assert_int_ne(nvme_owner_put(&owner, area, 1, nvme_owner_seed(&owner)), 0);
		failed++;
	}
	ck_assert_uint_le(failed, 11);
	must_contain(nvme_owner_stat(&owner).note, "errors in a minute");
	/* Probes fail too. */
	for (uint64_t n = ring.n_ops; ring.n_ops < n + 3;)
		loop_turn(owner.loop, true);
	ck_assert(!owner.online);
	kind = FAULT_NONE;
	while (!owner.online)
		loop_turn(owner.loop, true);
	ck_assert_uint_eq(owner.n_offline, 1);
	ck_assert_int_eq(nvme_owner_get(&owner, area, 0), 0);
	ck_assert_int_eq(nvme_owner_put(&owner, area, 1, nvme_owner_seed(&owner)), 0);
	nvme_owner_close(&owner);
	start(2);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 2);
	nvme_owner_close(&owner);
	drives_drop();
}
END_TEST

START_TEST(a_read_is_tried_twice_and_a_flush_that_fails_is_no_success)
{
	struct fault_plan plan = { .kind = FAULT_ERROR };
	uint32_t area;

	drives_make(1);
	start(1);
	owner.keeps_past = true;
	area = nvme_owner_area(&owner, 4096, 1);
	ck_assert_int_eq(nvme_owner_put(&owner, area, 0, nvme_owner_seed(&owner)), 0);
	nvme_owner_settle(&owner);
	plan.at = ring.n_ops + 1;
	ring.decide = fault_decide;
	ring.ctx = &plan;
	ck_assert_int_eq(nvme_owner_get(&owner, area, 0), 0);
	plan.kind = FAULT_SHORT;
	plan.at = ring.n_ops + 1;
	ck_assert_int_eq(nvme_owner_get(&owner, area, 0), 0);
	ck_assert_uint_eq(ring.n_faults, 2);
	plan.at = ring.n_ops + 1;
	ck_assert_int_eq(nvme_owner_put(&owner, area, 1, nvme_owner_seed(&owner)), TIER_E_IO);
	nvme_owner_settle(&owner);
	/* The flush: records first, then that. */
	plan.kind = FAULT_ERROR;
	plan.at = ring.n_ops + 1;
	nvme_owner_close(&owner);
	ck_assert_uint_eq(ring.n_faults, 4);
	start(2);
	ck_assert(!owner.clean);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 1);
	nvme_owner_close(&owner);
	drives_drop();
}
END_TEST

/* As the ring of a dead daemon holds it while its operations are under way. */
static int drive_hold(void)
{
	struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd = open(config.paths[0], O_RDWR | O_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(fcntl(fd, F_OFD_SETLK, &all), 0);
	return fd;
}

START_TEST(after_a_crash_nothing_is_written_while_it_may_still_land)
{
	uint8_t boot[16] = { 9 };
	uint32_t area;
	int fd;

	drives_make(1);
	memcpy(config.boot_id, boot, sizeof(boot));
	config.grace_ns = 3600 * CLOCK_NS_PER_S;
	start(1);
	owner.keeps_past = true;
	area = nvme_owner_area(&owner, 4096, 1);
	ck_assert_int_eq(nvme_owner_put(&owner, area, 0, nvme_owner_seed(&owner)), 0);
	nvme_owner_settle(&owner);
	ring.dead = true;
	nvme_owner_die(&owner);
	fd = drive_hold();
	start(1);
	ck_assert(!owner.clean);
	/* What is found is served at once. */
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 1);
	/* And nobody's write waits, in the place of reads. */
	ck_assert_int_eq(nvme_owner_put(&owner, area, 1, nvme_owner_seed(&owner)), TIER_E_FULL);
	close(fd); /* the last of it has landed */
	while (nvme_owner_put(&owner, area, 1, nvme_owner_seed(&owner)) != 0)
		loop_turn(owner.loop, true);
	ring.dead = true;
	nvme_owner_die(&owner);
	/* Nothing is in flight: nothing to wait for. */
	start(1);
	ck_assert(!owner.clean);
	ck_assert_int_eq(nvme_owner_put(&owner, area, 2, nvme_owner_seed(&owner)), 0);
	ring.dead = true;
	nvme_owner_die(&owner);
	/* Nothing of a dead daemon's survives a boot, whoever holds the drive. */
	fd = drive_hold();
	config.boot_id[0] = 10;
	start(1);
	ck_assert(!owner.clean);
	ck_assert_int_eq(nvme_owner_put(&owner, area, 3, nvme_owner_seed(&owner)), 0);
	nvme_owner_close(&owner);
	close(fd);
	drives_drop();
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("nvme_power");
	TCase *tc = tcase_create("power");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 250);
	tcase_add_test(tc, power_cuts);
	tcase_add_test(tc, power_cuts_of_lying_drives);
	tcase_add_test(tc, kills);
	tcase_add_test(tc, every_operation_fails_in_every_way);
	tcase_add_test(tc, a_drive_that_stops_answering);
	tcase_add_test(tc, closing_does_not_wait_for_a_drive_that_does_not_answer);
	tcase_add_test(tc, too_many_errors_take_it_offline_and_it_comes_back);
	tcase_add_test(tc, a_read_is_tried_twice_and_a_flush_that_fails_is_no_success);
	tcase_add_test(tc, after_a_crash_nothing_is_written_while_it_may_still_land);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	SRunner *sr = srunner_create(suite());
	int failed;

	(void)log_set_level("warn");
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
