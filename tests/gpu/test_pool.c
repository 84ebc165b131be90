/* SPDX-License-Identifier: Apache-2.0 */
/* Granted device memory: clients with blocks in a pool, in this process and in others, the daemon in its own.  What is in a block follows from its key. */
#include <dlfcn.h>
#include <kvbm_cuda.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/gpu/device.h"
#include "tests/gpu/peer.h"
#include "tests/lib/client_proc.h"
#include "tests/lib/command.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"

#define BLOCK (128u * 1024)
#define POOL_MIB 8u
#define POOL_BLOCKS (POOL_MIB * 1024 * 1024 / BLOCK)
#define KEY 16u

static const char *const flags[] = { "--g2.size=32M",
	                             "--g2.region_size=2M",
	                             "--g1.size=8M",
	                             "--g1.region_size=2M",
	                             "--daemon.write_timeout=60s",
	                             "--namespace.other.g1_share=4M",
	                             NULL };

/* The same where a driver that hangs is to be seen soon. */
static const char *const impatient[] = { "--g2.size=32M",       "--g2.region_size=2M", "--g1.size=8M",
	                                 "--g1.region_size=2M", "--g1.timeout=2s",     NULL };

static struct daemon_proc d;
static const char *const *daemon_flags = flags;
static struct kvbm *kvbm;
static struct kvbm_ns *host, *pool;
static char uuid[KVBM_CUDA_UUID_CHARS];
static uint8_t bytes[2][BLOCK];

/* ---- the driver ---- */

static int (*copy_to_device)(unsigned long long to, const void *from, size_t bytes);
static int (*copy_to_host)(void *to, unsigned long long from, size_t bytes);

static void cuda_open(void)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW), *context;
	int (*find)(const char *, void *, int, unsigned long long, void *) = NULL;
	int (*init)(unsigned), (*retain)(void *, int), (*use)(void *);

	must(library);
	*(void **)&find = dlsym(library, "cuGetProcAddress_v2");
	must(find && !find("cuInit", &init, 2000, 0, NULL) && !find("cuDevicePrimaryCtxRetain", &retain, 7000, 0, NULL));
	must(!find("cuCtxSetCurrent", &use, 4000, 0, NULL) && !find("cuMemcpyHtoD", &copy_to_device, 3020, 0, NULL));
	must(!find("cuMemcpyDtoH", &copy_to_host, 3020, 0, NULL) && !init(0) && !retain(&context, 0) && !use(context));
}

/* ---- keys and bytes ---- */

static void key_of(unsigned i, uint8_t *ret)
{
	memset(ret, 0x4b, KEY);
	memcpy(ret, &i, sizeof(i));
}

static const uint8_t *keys_of(unsigned first, unsigned n)
{
	static uint8_t keys[256 * KEY];

	must(n <= 256);
	for (unsigned i = 0; i < n; i++)
		key_of(first + i, keys + (size_t)i * KEY);
	return keys;
}

static const uint8_t *pattern(unsigned key)
{
	for (unsigned i = 0; i < BLOCK; i++)
		bytes[0][i] = (uint8_t)(key * 41 + i / 7 + (i >> 12));
	return bytes[0];
}

static void write_block(const struct kvbm_span *span, unsigned key)
{
	unsigned long long at;

	ck_assert_msg(kvbm_cuda_data(pool, span, 0, &at) == 0, "%s", kvbm_error(kvbm));
	must(copy_to_device(at, pattern(key), BLOCK) == 0);
}

static void check_block(const struct kvbm_span *span, unsigned key)
{
	unsigned long long at;

	ck_assert_msg(kvbm_cuda_data(pool, span, 0, &at) == 0, "%s", kvbm_error(kvbm));
	must(copy_to_host(bytes[1], at, BLOCK) == 0);
	ck_assert_msg(memcmp(pattern(key), bytes[1], BLOCK) == 0, "block %u on the device is wrong", key);
}

static void put(unsigned first, unsigned n)
{
	struct kvbm_span spans[256];
	int r = kvbm_reserve(pool, 0, keys_of(first, n), n, spans, NULL);

	ck_assert_msg(r == (int)n, "reserve: %d %s", r, kvbm_error(kvbm));
	for (unsigned i = 0; i < n; i++)
		write_block(&spans[i], first + i);
	ck_assert_int_eq(kvbm_commit(pool, 0, spans, keys_of(first, n), n, NULL, 0), (int)n);
}

static void await_tier(unsigned first, unsigned n, uint32_t tier)
{
	uint32_t tiers[256], have = 0;

	while (have < n) {
		must(kvbm_stat(pool, keys_of(first, n), n, tiers) >= 0);
		have = 0;
		for (unsigned i = 0; i < n; i++)
			have += (tiers[i] & tier) != 0;
	}
}

static void host_is(unsigned first, unsigned n)
{
	struct kvbm_span spans[256];

	ck_assert_int_eq(kvbm_match(host, keys_of(first, n), n, 0, spans), (int)n);
	for (unsigned i = 0; i < n; i++) {
		const void *p = kvbm_data(host, &spans[i], 0);

		must(p);
		ck_assert_msg(memcmp(pattern(first + i), p, BLOCK) == 0, "block %u in host memory is wrong", first + i);
	}
	must(kvbm_release(host, spans, n) == (int)n);
}

static void device_is(unsigned first, unsigned n)
{
	struct kvbm_span spans[256];

	ck_assert_int_eq(kvbm_match(pool, keys_of(first, n), n, 0, spans), (int)n);
	for (unsigned i = 0; i < n; i++) {
		ck_assert_uint_eq(spans[i].tiers, KVBM_TIER_G1);
		check_block(&spans[i], first + i);
	}
	must(kvbm_release(pool, spans, n) == (int)n);
}

/* ---- setup ---- */

static int attach(struct kvbm *k, const char *device_name, struct kvbm_ns **ret)
{
	struct kvbm_model model = { .name = "pool", .block_bytes = BLOCK, .device = device_name };
	int r;

	/* The daemon may not have heard from the driver yet. */
	do
		r = kvbm_attach(k, &model, ret);
	while (r == -KVBM_E_BUSY);
	return r;
}

static struct kvbm *client(const char *name)
{
	struct kvbm_options options = { .socket = d.socket, .name = name, .timeout_ms = 20000 };
	struct kvbm *k;

	must(kvbm_open(&options, &k) == 0);
	return k;
}

static void setup_with(const char *const *settings, unsigned n)
{
	device_environment(settings, n);
	device_list();
	ck_assert_uint_ge(device.n_infos, 1);
	cuda_open();
	must(kvbm_cuda_uuid(0, uuid) == 0);
	ck_assert_str_eq(uuid, device.infos[0].uuid);
	daemon_start(&d, daemon_flags);
	kvbm = client("test");
	must(attach(kvbm, uuid, &pool) == 0);
	must(attach(kvbm, NULL, &host) == 0);
}

static void setup(void)
{
	setup_with(NULL, 0);
}

static void teardown(void)
{
	kvbm_close(kvbm);
	kvbm = NULL;
	daemon_deinit(&d);
	device_close();
}

/* ---- tests ---- */

START_TEST(down_and_up)
{
	struct kvbm_span spans[8];
	uint8_t status[8];
	struct kvbm_onboard_options hold = { .flags = KVBM_HOLD };

	setup();
	put(1, 8);
	device_is(1, 8);
	await_tier(1, 8, KVBM_TIER_G2);
	host_is(1, 8);
	/* The whole pool is others', and back. */
	put(1001, POOL_BLOCKS);
	await_tier(1001, POOL_BLOCKS, KVBM_TIER_G2);
	ck_assert_int_eq(kvbm_match(pool, keys_of(1, 8), 8, KVBM_PEEK, NULL), 0);
	ck_assert_msg(kvbm_onboard(pool, keys_of(1, 8), 8, &hold, status, spans) == 8, "%s", kvbm_error(kvbm));
	for (unsigned i = 0; i < 8; i++) {
		ck_assert_uint_eq(status[i], KVBM_DONE);
		check_block(&spans[i], 1 + i);
	}
	must(kvbm_release(pool, spans, 8) == 8);
	ck_assert_ptr_null(kvbm_data(pool, &spans[0], 0));
	ck_assert_ptr_nonnull(strstr(kvbm_error(kvbm), "kvbm_cuda_data"));
	teardown();
}
END_TEST

/* By handles, where the driver has no descriptors for others. */
START_TEST(by_handle)
{
	static const char *const settings[] = { "FAKECUDA_FDS=0" };

	setup_with(settings, 1);
	ck_assert(!device.control || !device.infos[0].fds);
	put(1, 20);
	await_tier(1, 20, KVBM_TIER_G2);
	device_is(1, 20);
	host_is(1, 20);
	teardown();
}
END_TEST

/* A reader reads, and cannot write. */
START_TEST(a_reader_maps_it_read_only)
{
	struct kvbm_model model = { .name = "pool", .block_bytes = BLOCK, .device = uuid, .flags = KVBM_NS_READONLY };
	struct kvbm_span spans[4];
	struct kvbm_ns *ns;
	struct kvbm *k;
	unsigned long long at;

	setup();
	put(1, 4);
	k = client("reader");
	must(kvbm_attach(k, &model, &ns) == 0);
	ck_assert_int_eq(kvbm_match(ns, keys_of(1, 4), 4, 0, spans), 4);
	for (unsigned i = 0; i < 4; i++) {
		ck_assert_msg(kvbm_cuda_data(ns, &spans[i], 0, &at) == 0, "%s", kvbm_error(k));
		must(copy_to_host(bytes[1], at, BLOCK) == 0);
		ck_assert(memcmp(pattern(1 + i), bytes[1], BLOCK) == 0);
	}
	must(kvbm_release(ns, spans, 4) == 4);
	ck_assert_int_eq(kvbm_reserve(ns, 0, keys_of(9, 1), 1, spans, NULL), -KVBM_E_PERM);
	kvbm_close(k);
	device_is(1, 4);
	teardown();
}
END_TEST

/* Copies are late: what is not there yet is not shown. */
START_TEST(a_late_copy_is_not_seen_early)
{
	struct kvbm_span spans[8];

	setup();
	if (!device.control) {
		teardown();
		return;
	}
	atomic_store(&device.control->held, 1);
	put(1, 8);
	must(kvbm_ping(kvbm) == 0);
	ck_assert_int_eq(kvbm_match(host, keys_of(1, 8), 8, KVBM_PEEK, NULL), 0);
	atomic_store(&device.control->held, 0);
	await_tier(1, 8, KVBM_TIER_G2);
	host_is(1, 8);
	/* And up. */
	put(1001, POOL_BLOCKS);
	await_tier(1001, POOL_BLOCKS, KVBM_TIER_G2);
	atomic_store(&device.control->held, 1);
	ck_assert_int_eq(
		kvbm_onboard(pool, keys_of(1, 8), 8, &(struct kvbm_onboard_options){ .timeout_ms = 50 }, NULL, NULL), 0);
	ck_assert_int_eq(kvbm_match(pool, keys_of(1, 8), 8, KVBM_PEEK, spans), 0);
	atomic_store(&device.control->held, 0);
	await_tier(1, 8, KVBM_TIER_G1);
	device_is(1, 8);
	teardown();
}
END_TEST

START_TEST(engines_share_a_prefix)
{
	struct command c;

	setup();
	(void)setenv("KVBM_SOCKET", d.socket, 1);
	command_run(&c, (const char *const[]){ "examples/paged_engine", NULL });
	command_expect(&c, 0);
	ck_assert_msg(strcmp(c.out, "alice: 8 pages: 0 found, 8 computed\nbob: 8 pages: 6 found, 2 computed\n") == 0,
	              "%s", c.out);
	command_deinit(&c);
	teardown();
}
END_TEST

/* Memory that goes to another namespace is made anew; who had it open opens what comes in its place. */
START_TEST(a_region_goes_to_another_namespace)
{
	struct kvbm_model model = { .name = "other", .block_bytes = BLOCK, .device = uuid };
	struct kvbm_ns *other;
	struct kvbm_span spans[8];
	uint32_t tiers[POOL_BLOCKS];
	unsigned long long at;

	setup();
	put(1, POOL_BLOCKS);
	await_tier(1, POOL_BLOCKS, KVBM_TIER_G2);
	must(kvbm_attach(kvbm, &model, &other) == 0);
	ck_assert_msg(kvbm_reserve(other, 0, keys_of(1, 8), 8, spans, NULL) == 8, "%s", kvbm_error(kvbm));
	for (unsigned i = 0; i < 8; i++) {
		static const uint8_t zero[BLOCK];

		must(kvbm_cuda_data(other, &spans[i], 0, &at) == 0);
		must(copy_to_host(bytes[1], at, BLOCK) == 0);
		ck_assert_msg(memcmp(bytes[1], zero, BLOCK) == 0, "another namespace's bytes");
		must(copy_to_device(at, pattern(5000 + i), BLOCK) == 0);
	}
	ck_assert_int_eq(kvbm_commit(other, 0, spans, keys_of(1, 8), 8, NULL, 0), 8);
	for (unsigned round = 0; round < 3; round++) {
		unsigned here = 0;

		ck_assert_int_ge(kvbm_onboard(pool, keys_of(1, 40), 40, NULL, NULL, NULL), 40);
		must(kvbm_stat(pool, keys_of(1, 40), 40, tiers) == 40);
		for (unsigned i = 0; i < 40; i++)
			here += (tiers[i] & KVBM_TIER_G1) != 0;
		ck_assert_uint_eq(here, 40);
		device_is(1, 40);
		put(3001 + 100 * round, 40);
		await_tier(3001 + 100 * round, 40, KVBM_TIER_G2);
	}
	teardown();
}
END_TEST

/* ---- a client dies ---- */

enum { DIES_RESERVED, DIES_COMMITTED, DIES_HOLDING, DIES_ONBOARDING, N_DEATHS };

static void dying_client(struct client_self *self, void *arg)
{
	int step = *(int *)arg;
	struct kvbm_span spans[8];

	kvbm = client("dying");
	must(attach(kvbm, uuid, &pool) == 0);
	if (step == DIES_RESERVED || step == DIES_COMMITTED)
		must(kvbm_reserve(pool, 0, keys_of(501, 8), 8, spans, NULL) == 8);
	if (step == DIES_COMMITTED) /* on its way down; what is in it nobody wrote */
		must(kvbm_commit(pool, 0, spans, keys_of(501, 8), 8, NULL, KVBM_NOWAIT) >= 0 && kvbm_ping(kvbm) == 0);
	if (step == DIES_HOLDING)
		must(kvbm_match(pool, keys_of(1, 8), 8, 0, spans) == 8);
	if (step == DIES_ONBOARDING)
		must(kvbm_prefetch(pool, keys_of(1, 8), 8) == 8 && kvbm_ping(kvbm) == 0);
	client_at(self, "there");
}

START_TEST(a_client_dies)
{
	struct client_proc c;
	struct daemon_baseline before;
	int step = _i;

	setup();
	put(1, 8);
	await_tier(1, 8, KVBM_TIER_G2);
	if (step == DIES_ONBOARDING) {
		put(1001, POOL_BLOCKS);
		await_tier(1001, POOL_BLOCKS, KVBM_TIER_G2);
	}
	daemon_baseline(&d, &before);
	if (device.control)
		atomic_store(&device.control->held, step != DIES_HOLDING);
	client_start(&c, dying_client, &step);
	client_await(&c, "there");
	client_kill(&c);
	if (device.control)
		atomic_store(&device.control->held, 0);
	daemon_check(&d, &before);
	/* All of the pool can be had. */
	put(2001, POOL_BLOCKS);
	device_is(2001, POOL_BLOCKS);
	teardown();
}
END_TEST

/* ---- the device goes ---- */

START_TEST(a_lost_device_comes_back)
{
	struct kvbm_span spans[8];
	struct kvbm *looking;
	struct kvbm_ns *reader;
	unsigned long long at;
	int r;

	setup();
	if (!device.control) {
		teardown();
		return;
	}
	looking = client("reader");
	must(attach(looking, uuid, &reader) == 0);
	put(1, 8);
	await_tier(1, 8, KVBM_TIER_G2);
	ck_assert_int_eq(kvbm_match(reader, keys_of(1, 8), 8, KVBM_PEEK, NULL), 8);
	ck_assert_int_eq(kvbm_match(pool, keys_of(1, 8), 8, 0, spans), 8);
	atomic_store(&device.control->gone, 1);
	/* Somebody uses it, and it shows. */
	r = kvbm_reserve(pool, 0, keys_of(101, 1), 1, spans + 7, NULL);
	if (r == 1)
		(void)kvbm_commit(pool, 0, spans + 7, keys_of(101, 1), 1, NULL, 0);
	while (kvbm_match(pool, keys_of(1, 8), 8, KVBM_PEEK, NULL) > 0)
		must(kvbm_ping(kvbm) == 0);
	ck_assert_int_eq(kvbm_reserve(pool, 0, keys_of(201, 8), 8, spans, NULL), -KVBM_E_BUSY);
	ck_assert_int_eq(kvbm_cuda_data(pool, &spans[0], 0, &at), -KVBM_E_STALE);
	host_is(1, 8); /* host memory serves on */
	atomic_store(&device.control->gone, 0);
	do
		r = kvbm_onboard(pool, keys_of(1, 8), 8, NULL, NULL, NULL);
	while (r == -KVBM_E_BUSY);
	ck_assert_msg(r == 8, "%d %s", r, kvbm_error(kvbm));
	/* Somebody who only looks finds its way back too. */
	while (kvbm_match(reader, keys_of(1, 8), 8, KVBM_PEEK, NULL) < 8)
		must(kvbm_ping(looking) == 0);
	kvbm_close(looking);
	teardown();
}
END_TEST

/* One driver call of the daemon fails, whichever it is, with an error that ends its context, or one that does not. */
START_TEST(every_call_may_fail)
{
	static const char *const calls[] = { "cuMemCreate",        "cuMemExportToShareableHandle",
		                             "cuMemcpyBatchAsync", "cuLaunchKernel",
		                             "cuEventRecord",      "cuEventQuery",
		                             "cuMemHostRegister",  "cuStreamQuery" };
	struct fakecuda_control *control;
	uint32_t error = _i % 2 ? 700 : 2;
	int r;

	setup();
	control = device.control;
	if (!control) {
		teardown();
		return;
	}
	put(1, 8);
	await_tier(1, 8, KVBM_TIER_G2);
	snprintf(control->call, sizeof(control->call), "%s", calls[_i / 2]);
	atomic_store(&control->pid, d.pid);
	atomic_store(&control->countdown, 1);
	atomic_store(&control->error, error);
	atomic_store(&control->armed, FAKECUDA_FAIL);
	for (unsigned i = 0; i < 4; i++) {
		struct kvbm_span spans[8];

		r = kvbm_reserve(pool, 0, keys_of(101 + 8 * i, 8), 8, spans, NULL);
		if (r == 8) /* what is in them is of no interest */
			(void)kvbm_commit(pool, 0, spans, keys_of(101 + 8 * i, 8), 8, NULL, 0);
		ck_assert_msg(r == 8 || r == -KVBM_E_BUSY || r == -KVBM_E_NOENT, "%d %s", r, kvbm_error(kvbm));
		must(kvbm_ping(kvbm) == 0);
	}
	host_is(1, 8);
	atomic_store(&control->armed, 0);
	do
		r = kvbm_onboard(pool, keys_of(1, 8), 8, NULL, NULL, NULL);
	while (r < 8 && r != -KVBM_E_GONE);
	ck_assert_int_eq(r, 8);
	teardown();
}
END_TEST

/* A driver call that does not return stops its device, and nobody else. */
START_TEST(a_call_that_hangs)
{
	static const char *const calls[] = { "cuMemcpyBatchAsync", "cuEventQuery", "cuMemUnmap" };
	struct fakecuda_control *control;
	struct kvbm_span spans[8];
	struct kvbm_ns *other;
	int r;

	daemon_flags = impatient;
	setup();
	control = device.control;
	if (!control) {
		teardown();
		return;
	}
	put(1, POOL_BLOCKS);
	await_tier(1, POOL_BLOCKS, KVBM_TIER_G2);
	snprintf(control->call, sizeof(control->call), "%s", calls[_i]);
	atomic_store(&control->pid, d.pid);
	atomic_store(&control->countdown, 1);
	atomic_store(&control->error, 0);
	atomic_store(&control->armed, FAKECUDA_HANG);
	if (_i == 2) { /* memory that goes from one to another is unmapped */
		struct kvbm_model model = { .name = "other", .block_bytes = BLOCK, .device = uuid };

		must(kvbm_attach(kvbm, &model, &other) == 0);
		r = kvbm_reserve(other, 0, keys_of(1, 4), 4, spans, NULL);
	} else {
		r = kvbm_reserve(pool, 0, keys_of(501, 8), 8, spans, NULL);
		if (r == 8)
			(void)kvbm_commit(pool, 0, spans, keys_of(501, 8), 8, NULL, 0);
	}
	ck_assert_msg(r == 4 || r == 8 || r == -KVBM_E_BUSY || r == -KVBM_E_NOENT || r == -KVBM_E_NOSPACE, "%d %s", r,
	              kvbm_error(kvbm));
	host_is(1, 8);
	while (kvbm_match(pool, keys_of(1, 8), 8, KVBM_PEEK, NULL) > 0)
		must(kvbm_ping(kvbm) == 0);
	host_is(1, 8);
	r = kvbm_reserve(pool, 0, keys_of(601, 8), 8, spans, NULL);
	ck_assert_msg(r == -KVBM_E_BUSY, "%d %s", r, kvbm_error(kvbm));
	atomic_store(&control->release, 1);
	fakecuda_wake(&control->release);
	do
		r = kvbm_onboard(pool, keys_of(1, 8), 8, NULL, NULL, NULL);
	while (r < 8 && r != -KVBM_E_GONE);
	ck_assert_int_eq(r, 8);
	device_is(1, 8);
	teardown();
}
END_TEST

START_TEST(the_daemon_stops_in_a_copy)
{
	setup();
	if (device.control)
		atomic_store(&device.control->held, 1);
	put(1, 8);
	must(kill(d.pid, SIGTERM) == 0);
	if (device.control)
		atomic_store(&device.control->held, 0);
	kvbm_close(kvbm);
	kvbm = NULL;
	ck_assert_int_eq(daemon_wait(&d), 0);
	teardown();
}
END_TEST

START_TEST(a_new_daemon_has_new_pools)
{
	setup();
	put(1, 8);
	daemon_kill(&d);
	daemon_run(&d);
	while (kvbm_onboard(pool, keys_of(1, 8), 8, NULL, NULL, NULL) < 0)
		;
	ck_assert_int_eq(kvbm_match(pool, keys_of(1, 8), 8, KVBM_PEEK, NULL), 0);
	put(1, 8);
	device_is(1, 8);
	teardown();
}
END_TEST

static void add(TCase *tcase)
{
	tcase_set_timeout(tcase, 120);
	tcase_add_test(tcase, down_and_up);
	tcase_add_test(tcase, by_handle);
	tcase_add_test(tcase, a_reader_maps_it_read_only);
	tcase_add_test(tcase, a_late_copy_is_not_seen_early);
	tcase_add_test(tcase, engines_share_a_prefix);
	tcase_add_test(tcase, a_region_goes_to_another_namespace);
	tcase_add_loop_test(tcase, a_client_dies, 0, N_DEATHS);
	tcase_add_test(tcase, a_lost_device_comes_back);
	tcase_add_loop_test(tcase, every_call_may_fail, 0, 16);
	tcase_add_loop_test(tcase, a_call_that_hangs, 0, 3);
	tcase_add_test(tcase, the_daemon_stops_in_a_copy);
	tcase_add_test(tcase, a_new_daemon_has_new_pools);
}

int main(int argc, char **argv)
{
	return device_suite(argc, argv, "pool", add);
}
