/* SPDX-License-Identifier: Apache-2.0 */
/* adopt, store, load: an engine in one process, a client of kvbmd in this one, the daemon in a third.  The bytes of engine memory tell what they
 * are: a pattern of layer, outer index, block and place. */
#include <errno.h>
#include <kvbm_device.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/gpu/device.h"
#include "tests/gpu/peer.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"

#define LAYERS 2u
#define OUTER 2u
#define RUN 4096u
#define BLOCKS 64u
#define LANE_BYTES (LAYERS * OUTER * RUN)
#define MEMORY (2 * MIB)
#define PLANE (512u * 1024)
#define N 16u

static const char *const flags[] = { "--g2.size=16M", "--g2.region_size=2M", "--daemon.write_timeout=5s", NULL };

static struct daemon_proc d;
static struct peer peer;
static struct gpu_mem mem;
static struct kvbm *kvbm;
static struct kvbm_ns *ns;
static struct kvbm_adoption *adoption;
static char uuid[GPU_UUID_CHARS];
static uint8_t event[64];
static bool with_event;
static uint8_t *shown; /* the engine's memory, by way of a memfd */
static int shown_fd = -1;
static uint8_t keys[N * 16];

static uint8_t pattern(unsigned layer, unsigned outer, unsigned block, unsigned byte, unsigned salt)
{
	return (uint8_t)((layer * 131 + outer * 71 + block * 29 + (byte >> 8) * 7 + byte + salt * 13) ^ salt);
}

/* Where it is in engine memory. */
static size_t place(unsigned layer, unsigned outer, unsigned block)
{
	return (size_t)layer * PLANE + ((size_t)outer * BLOCKS + block) * RUN;
}

static void engine_fill(unsigned salt)
{
	for (unsigned l = 0; l < LAYERS; l++)
		for (unsigned o = 0; o < OUTER; o++)
			for (unsigned b = 0; b < BLOCKS; b++)
				for (unsigned i = 0; i < RUN; i++)
					shown[place(l, o, b) + i] = pattern(l, o, b, i, salt);
	peer_load(&peer, shown_fd, MEMORY);
}

static void engine_clear(void)
{
	memset(shown, 0, MEMORY);
	peer_load(&peer, shown_fd, MEMORY);
}

static void start(enum gpu_share share, const char *const *daemon_flags)
{
	/* This process asks for the devices only. */
	device_environment(NULL, 0);
	device_list();
	ck_assert_uint_ge(device.n_infos, 1);
	memcpy(uuid, device.infos[0].uuid, sizeof(uuid));
	shown_fd = memfd_create("engine", MFD_CLOEXEC);
	must(shown_fd >= 0 && ftruncate(shown_fd, MEMORY) == 0);
	shown = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, shown_fd, 0);
	must(shown != MAP_FAILED);
	peer_start(&peer);
	peer_alloc(&peer, MEMORY, share, &mem);
	daemon_start(&d, daemon_flags);
	for (unsigned i = 0; i < sizeof(keys); i++)
		keys[i] = (uint8_t)(i * 37 + 11);
}

static void client_open(void)
{
	struct kvbm_options options = { .socket = d.socket, .name = "engine", .timeout_ms = 20000 };
	struct kvbm_model model = { .name = "adopted",
		                    .num_layers = LAYERS,
		                    .outer_dim = OUTER,
		                    .page_size = 16,
		                    .inner_dim = RUN / 16 / 2,
		                    .dtype = KVBM_DTYPE_BF16 };

	must(kvbm_open(&options, &kvbm) == 0);
	must(kvbm_attach(kvbm, &model, &ns) == 0);
	must(kvbm_lane_bytes(ns) == LANE_BYTES);
}

static struct kvbm_engine_blocks engine_blocks(struct kvbm_memory *memory, struct kvbm_plane planes[LAYERS])
{
	*memory = (struct kvbm_memory){ .handle = mem.share == GPU_SHARE_HANDLE ? mem.handle : NULL,
		                        .fd = mem.fd,
		                        .bytes = MEMORY };
	for (unsigned l = 0; l < LAYERS; l++)
		planes[l] = (struct kvbm_plane){ .memory = 0, .offset = (uint64_t)l * PLANE };
	return (struct kvbm_engine_blocks){ .device = uuid,
		                            .n_blocks = BLOCKS,
		                            .memories = memory,
		                            .planes = planes,
		                            .n_memories = 1,
		                            .n_planes = LAYERS,
		                            .n_dims = 2,
		                            .extents = { LAYERS, OUTER },
		                            .strides = { 0, (uint64_t)BLOCKS * RUN },
		                            .run_bytes = RUN,
		                            .block_stride = RUN,
		                            .events = event,
		                            .n_events = with_event };
}

/* The daemon may not have heard from the driver yet. */
static int adopt(void)
{
	struct kvbm_memory memory;
	struct kvbm_plane planes[LAYERS];
	struct kvbm_engine_blocks blocks = engine_blocks(&memory, planes);
	int r;

	do
		r = kvbm_adopt(ns, &blocks, &adoption);
	while (r == -KVBM_E_BUSY);
	return r;
}

static void setup_as(enum gpu_share share, const char *const *daemon_flags)
{
	start(share, daemon_flags);
	client_open();
	ck_assert_msg(adopt() == 0, "%s", kvbm_error(kvbm));
}

static void setup(void)
{
	setup_as(GPU_SHARE_HANDLE, flags);
}

static void teardown(void)
{
	kvbm_close(kvbm);
	kvbm = NULL;
	with_event = false;
	daemon_deinit(&d);
	peer_stop(&peer, true);
	if (device.loop)
		device_close();
}

static struct kvbm_copy copy_of(const uint32_t *blocks, uint32_t n)
{
	return (struct kvbm_copy){ .keys = keys, .blocks = blocks, .n = n };
}

/* Block i of the keys is engine block blocks[i], in host memory. */
static void host_is(const uint32_t *blocks, unsigned n, unsigned salt)
{
	struct kvbm_span spans[N];

	ck_assert_int_eq(kvbm_match(ns, keys, n, 0, spans), (int)n);
	for (unsigned i = 0; i < n; i++) {
		const uint8_t *p = kvbm_data(ns, &spans[i], 0);

		must(p);
		for (unsigned b = 0; b < LANE_BYTES; b++)
			if (p[b] != pattern(b / RUN / OUTER, b / RUN % OUTER, blocks[i], b % RUN, salt))
				ck_abort_msg("byte %u of key %u is wrong", b, i);
	}
	must(kvbm_release(ns, spans, n) == (int)n);
}

/* Engine block to[i] has what from[i] had under @salt; the others are zero. */
static void engine_is(const uint32_t *to, const uint32_t *from, unsigned n, unsigned salt)
{
	peer_dump(&peer, shown_fd, MEMORY);
	for (unsigned b = 0; b < BLOCKS; b++) {
		unsigned source = BLOCKS;

		for (unsigned i = 0; i < n; i++)
			source = to[i] == b ? from[i] : source;
		for (unsigned at = 0; at < LANE_BYTES; at++) {
			unsigned l = at / RUN / OUTER, o = at / RUN % OUTER;
			uint8_t wanted = source < BLOCKS ? pattern(l, o, source, at % RUN, salt) : 0;

			if (shown[place(l, o, b) + at % RUN] != wanted)
				ck_abort_msg("byte %u of engine block %u is wrong", at, b);
		}
	}
}

static const uint32_t some[N] = { 63, 0, 5, 6, 7, 8, 33, 12, 62, 1, 2, 3, 50, 49, 48, 20 };
static const uint32_t others[N] = { 10, 11, 12, 13, 40, 41, 0, 1, 2, 3, 4, 63, 62, 61, 30, 29 };

START_TEST(there_and_back)
{
	struct kvbm_copy store = copy_of(some, N), load = copy_of(others, N);
	uint8_t states[N];

	setup();
	engine_fill(1);
	store.ret_states = load.ret_states = states;
	ck_assert_msg(kvbm_store(adoption, &store) == N, "%s", kvbm_error(kvbm));
	for (unsigned i = 0; i < N; i++)
		ck_assert_uint_eq(states[i], 1);
	host_is(some, N, 1);
	/* What the node has is not copied again. */
	engine_fill(2);
	ck_assert_int_eq(kvbm_store(adoption, &store), 0);
	for (unsigned i = 0; i < N; i++)
		ck_assert_uint_eq(states[i], 2);
	host_is(some, N, 1);
	engine_clear();
	ck_assert_msg(kvbm_load(adoption, &load) == N, "%s", kvbm_error(kvbm));
	for (unsigned i = 0; i < N; i++)
		ck_assert_uint_eq(states[i], KVBM_DONE);
	engine_is(others, some, N, 1);
}
END_TEST

START_TEST(a_hole_ends_the_prefix)
{
	struct kvbm_copy store = copy_of(some, 5), load = copy_of(others, N);
	uint8_t states[N];

	setup();
	engine_fill(3);
	ck_assert_int_eq(kvbm_store(adoption, &store), 5);
	engine_clear();
	load.ret_states = states;
	load.flags = KVBM_ALL;
	ck_assert_int_eq(kvbm_load(adoption, &load), 0);
	engine_is(NULL, NULL, 0, 0);
	load.flags = 0;
	ck_assert_int_eq(kvbm_load(adoption, &load), 5);
	ck_assert_uint_eq(states[4], KVBM_DONE);
	ck_assert_uint_eq(states[5], KVBM_MISSING);
	engine_is(others, some, 5, 3);
}
END_TEST

static void flag_await(unsigned index, uint64_t value)
{
	const _Atomic uint64_t *flag = (_Atomic uint64_t *)kvbm_adoption_flags(adoption) + index;

	while (atomic_load(flag) == 0)
		must(kvbm_ping(kvbm) == 0);
	ck_assert_uint_eq(atomic_load(flag), value);
}

static void flag_set(unsigned index, uint64_t value)
{
	atomic_store((_Atomic uint64_t *)kvbm_adoption_flags(adoption) + index, value);
}

/* Nothing is read before the engine has written it: its flag comes after the bytes. */
START_TEST(a_flag_is_waited_for)
{
	struct kvbm_copy store = copy_of(some, N);

	setup();
	engine_fill(4);
	store.flags = KVBM_NOWAIT;
	store.before = (struct kvbm_sync){ KVBM_SYNC_FLAG, 0, 9 };
	store.after = (struct kvbm_sync){ KVBM_SYNC_FLAG, 511, 77 };
	flag_set(0, 8);
	ck_assert_int_eq(kvbm_store(adoption, &store), 0);
	must(kvbm_ping(kvbm) == 0);
	ck_assert_int_eq(kvbm_match(ns, keys, N, KVBM_PEEK, NULL), 0);
	engine_fill(5);
	flag_set(0, 10); /* further than asked for */
	flag_await(511, 77);
	while (kvbm_match(ns, keys, N, KVBM_PEEK, NULL) < (int)N)
		must(kvbm_ping(kvbm) == 0); /* published in the turn after */
	host_is(some, N, 5);
}
END_TEST

START_TEST(a_flag_that_does_not_come)
{
	struct kvbm_copy store = copy_of(some, N);
	struct daemon_baseline before;

	setup();
	daemon_baseline(&d, &before);
	store.before = (struct kvbm_sync){ KVBM_SYNC_FLAG, 0, 1 };
	store.after = (struct kvbm_sync){ KVBM_SYNC_FLAG, 1, 5 };
	store.timeout_ms = 50;
	ck_assert_int_eq(kvbm_store(adoption, &store), -KVBM_E_BUSY);
	ck_assert_ptr_nonnull(strstr(kvbm_error(kvbm), "did not happen in time"));
	flag_await(1, KVBM_FLAG_FAILED);
	ck_assert_int_eq(kvbm_match(ns, keys, N, KVBM_PEEK, NULL), 0);
	daemon_check(&d, &before);
}
END_TEST

/* A miss is told by the flag as well, when nobody waits for the reply. */
START_TEST(a_miss_is_signalled)
{
	struct kvbm_copy load = copy_of(others, N);

	setup();
	load.flags = KVBM_NOWAIT | KVBM_ALL;
	load.after = (struct kvbm_sync){ KVBM_SYNC_FLAG, 2, 5 };
	ck_assert_int_eq(kvbm_load(adoption, &load), 0);
	flag_await(2, KVBM_FLAG_FAILED);
	load.flags = KVBM_NOWAIT;
	load.n = 0;
	load.after.index = 3;
	ck_assert_int_eq(kvbm_load(adoption, &load), 0);
	flag_await(3, 5);
	/* A request that is refused, too. */
	load = copy_of((const uint32_t[]){ BLOCKS }, 1);
	load.flags = KVBM_NOWAIT;
	load.after = (struct kvbm_sync){ KVBM_SYNC_FLAG, 4, 5 };
	ck_assert_int_eq(kvbm_load(adoption, &load), 0);
	flag_await(4, KVBM_FLAG_FAILED);
}
END_TEST

START_TEST(what_is_wrong_is_said)
{
	struct kvbm_memory memory;
	struct kvbm_plane planes[LAYERS];
	struct kvbm_engine_blocks blocks;
	struct kvbm_adoption *none = NULL;
	struct kvbm_copy copy = copy_of(some, N);
	static const uint32_t beyond[] = { BLOCKS };
	uint8_t stale[64];

	setup();
	blocks = engine_blocks(&memory, planes);
	blocks.device = "GPU-00000000-0000-0000-0000-000000000000";
	ck_assert_int_eq(kvbm_adopt(ns, &blocks, &none), -KVBM_E_NOENT);
	blocks.device = uuid;
	blocks.lane = 1;
	ck_assert_int_eq(kvbm_adopt(ns, &blocks, &none), -KVBM_E_INVAL);
	blocks.lane = 0;
	blocks.run_bytes = RUN / 2;
	ck_assert_int_eq(kvbm_adopt(ns, &blocks, &none), -KVBM_E_INVAL);
	ck_assert_ptr_nonnull(strstr(kvbm_error(kvbm), "a lane's slice"));
	blocks.run_bytes = RUN;
	planes[1].offset = MEMORY - PLANE * 2 + RUN + 1;
	blocks.n_blocks = 3 * BLOCKS;
	ck_assert_int_eq(kvbm_adopt(ns, &blocks, &none), -KVBM_E_INVAL);
	ck_assert_ptr_nonnull(strstr(kvbm_error(kvbm), "does not lie in its memory"));
	planes[1].offset = PLANE;
	blocks.n_blocks = BLOCKS;
	memset(stale, 0x5a, sizeof(stale));
	memory.handle = stale;
	ck_assert_int_eq(kvbm_adopt(ns, &blocks, &none), -KVBM_E_INVAL);
	memory.handle = mem.handle;
	memory.bytes = MEMORY * 2; /* more than there is */
	ck_assert_int_eq(kvbm_adopt(ns, &blocks, &none), -KVBM_E_INVAL);
	ck_assert_ptr_null(none);

	copy.after = (struct kvbm_sync){ KVBM_SYNC_FLAG, 512, 1 };
	ck_assert_int_eq(kvbm_store(adoption, &copy), -KVBM_E_INVAL);
	copy.after = (struct kvbm_sync){ KVBM_SYNC_EVENT, 0, 0 };
	ck_assert_int_eq(kvbm_load(adoption, &copy), -KVBM_E_INVAL);
	copy.after = (struct kvbm_sync){ KVBM_SYNC_NONE, 0, 0 };
	copy.flags = KVBM_NOWAIT;
	ck_assert_int_eq(kvbm_load(adoption, &copy), -KVBM_E_INVAL);
	copy = copy_of(beyond, 1);
	ck_assert_int_eq(kvbm_store(adoption, &copy), -KVBM_E_INVAL);
	ck_assert_int_eq(kvbm_disown(adoption), 0);
	adoption = NULL;
}
END_TEST

/* The slots of a copy under way come back when both the engine and the device are through with them. */
START_TEST(a_client_dies_in_a_copy)
{
	struct daemon_baseline before;
	struct kvbm_copy store = copy_of(some, N);
	pid_t child;
	int status;

	setup();
	if (!device.control)
		return; /* a device cannot be told to wait */
	engine_fill(6);
	ck_assert_int_eq(kvbm_store(adoption, &store), N); /* so that there are slots */
	daemon_baseline(&d, &before);
	atomic_store(&device.control->held, 1);
	child = fork();
	must(child >= 0);
	if (child == 0) {
		keys[0] ^= 0xff; /* a prefix of its own, to be copied */
		client_open();
		if (adopt() != 0)
			_exit(1);
		store.flags = KVBM_NOWAIT;
		store.after = (struct kvbm_sync){ KVBM_SYNC_FLAG, 0, 1 };
		if (kvbm_store(adoption, &store) != 0 || kvbm_ping(kvbm) != 0)
			_exit(1);
		raise(SIGKILL);
	}
	must(waitpid(child, &status, 0) == child);
	ck_assert(WIFSIGNALED(status));
	daemon_await_metric(&d, "sessions", 2);
	atomic_store(&device.control->held, 0);
	daemon_check(&d, &before);
	keys[0] ^= 0xff;
	ck_assert_int_eq(kvbm_match(ns, keys, 1, KVBM_PEEK, NULL), 0);
}
END_TEST

START_TEST(a_lost_device_comes_back)
{
	struct kvbm_copy store = copy_of(some, N);
	int r;

	setup();
	if (!device.control)
		return;
	engine_fill(7);
	atomic_store(&device.control->gone, 1);
	ck_assert_int_eq(kvbm_store(adoption, &store), -KVBM_E_STALE);
	/* Host memory serves on. */
	must(kvbm_ping(kvbm) == 0);
	ck_assert_int_eq(kvbm_match(ns, keys, N, KVBM_PEEK, NULL), 0);
	atomic_store(&device.control->gone, 0);
	do
		r = adopt();
	while (r == -KVBM_E_BUSY);
	/* The engine's own memory may have gone with its device, or not. */
	ck_assert_msg(r == 0 || r == -KVBM_E_INVAL, "%s", kvbm_error(kvbm));
	if (r == 0)
		ck_assert_msg(kvbm_store(adoption, &store) == N, "%s", kvbm_error(kvbm));
}
END_TEST

START_TEST(the_daemon_stops_in_a_copy)
{
	struct kvbm_copy store = copy_of(some, N);

	setup();
	if (!device.control)
		return;
	atomic_store(&device.control->held, 1);
	store.flags = KVBM_NOWAIT;
	store.after = (struct kvbm_sync){ KVBM_SYNC_FLAG, 0, 1 };
	ck_assert_int_eq(kvbm_store(adoption, &store), 0);
	must(kvbm_ping(kvbm) == 0);
	must(kill(d.pid, SIGTERM) == 0);
	atomic_store(&device.control->held, 0);
	ck_assert_int_eq(daemon_wait(&d), 0);
}
END_TEST

START_TEST(a_new_daemon_is_adopted_anew)
{
	struct kvbm_copy store = copy_of(some, N);

	setup();
	engine_fill(8);
	daemon_kill(&d);
	daemon_run(&d);
	ck_assert_int_eq(kvbm_store(adoption, &store), -KVBM_E_STALE);
	must(kvbm_disown(adoption) == 0);
	ck_assert_msg(adopt() == 0, "%s", kvbm_error(kvbm));
	ck_assert_msg(kvbm_store(adoption, &store) == N, "%s", kvbm_error(kvbm));
	host_is(some, N, 8);
}
END_TEST

/* ---- by descriptor, by event, from disk ---- */

START_TEST(memory_by_descriptor)
{
	struct kvbm_copy store = copy_of(some, N), load = copy_of(others, N);

	device_environment(NULL, 0);
	device_list();
	if (!device.infos[0].fds)
		return; /* this driver has none */
	device_close();
	setup_as(GPU_SHARE_FD, flags);
	engine_fill(9);
	ck_assert_msg(kvbm_store(adoption, &store) == N, "%s", kvbm_error(kvbm));
	host_is(some, N, 9);
	engine_clear();
	ck_assert_int_eq(kvbm_load(adoption, &load), N);
	engine_is(others, some, N, 9);
}
END_TEST

/* The engine's stream fills its memory and records the event, late; the copy is of what it filled. */
START_TEST(an_event_is_waited_for)
{
	struct kvbm_copy store = copy_of(some, N);
	struct kvbm_span spans[N];

	with_event = true;
	start(GPU_SHARE_HANDLE, flags);
	peer_event(&peer, event);
	client_open();
	ck_assert_msg(adopt() == 0, "%s", kvbm_error(kvbm));
	engine_clear();
	peer_fill_later(&peer, MEMORY, 0xab, 0);
	store.before = (struct kvbm_sync){ KVBM_SYNC_EVENT, 0, 0 };
	ck_assert_msg(kvbm_store(adoption, &store) == N, "%s", kvbm_error(kvbm));
	ck_assert_int_eq(kvbm_match(ns, keys, N, 0, spans), N);
	for (unsigned i = 0; i < N; i++) {
		const uint8_t *p = kvbm_data(ns, &spans[i], 0);

		for (unsigned b = 0; b < LANE_BYTES; b++)
			ck_assert_uint_eq(p[b], 0xab);
	}
	must(kvbm_release(ns, spans, N) == (int)N);
}
END_TEST

/* What is only on disk any more comes up through host memory. */
START_TEST(from_disk)
{
	static char path[256];
	static const char *on_disk[] = { "--g2.size=2M",  "--g2.region_size=2M", path,
		                         "--g3.size=64M", "--g3.write=through",  NULL };
	struct kvbm_copy store = copy_of(some, N), load = copy_of(others, N);
	uint32_t tiers[N] = { 0 };
	uint8_t first[sizeof(keys)];
	char folder[] = "/tmp/kvbm-test-disk-XXXXXX";

	must(mkdtemp(folder));
	snprintf(path, sizeof(path), "--g3.path=%s/g3", folder);
	setup_as(GPU_SHARE_HANDLE, on_disk);
	engine_fill(10);
	ck_assert_msg(kvbm_store(adoption, &store) == N, "%s", kvbm_error(kvbm));
	memcpy(first, keys, sizeof(keys));
	/* Others take its place: host memory has 128 slots. */
	for (unsigned i = 1; i < 16 || (kvbm_stat(ns, first, 1, tiers) == 1 && tiers[0] & KVBM_TIER_G2); i++) {
		ck_assert_uint_lt(i, 1000);
		for (unsigned j = 0; j < N; j++)
			memcpy(keys + 16 * j + 8, &(uint32_t){ i * N + j }, 4);
		ck_assert_msg(kvbm_store(adoption, &store) >= 0, "%s", kvbm_error(kvbm));
	}
	memcpy(keys, first, sizeof(keys));
	engine_clear();
	ck_assert_msg(kvbm_load(adoption, &load) == N, "%s", kvbm_error(kvbm));
	engine_is(others, some, N, 10);
	daemon_stop(&d);
	d.pid = 0;
	must(unlink(path + sizeof("--g3.path=") - 1) == 0 && rmdir(folder) == 0);
}
END_TEST

static void add(TCase *tcase)
{
	tcase_add_checked_fixture(tcase, NULL, teardown);
	tcase_set_timeout(tcase, 120);
	tcase_add_test(tcase, there_and_back);
	tcase_add_test(tcase, a_hole_ends_the_prefix);
	tcase_add_test(tcase, a_flag_is_waited_for);
	tcase_add_test(tcase, a_flag_that_does_not_come);
	tcase_add_test(tcase, a_miss_is_signalled);
	tcase_add_test(tcase, what_is_wrong_is_said);
	tcase_add_test(tcase, a_client_dies_in_a_copy);
	tcase_add_test(tcase, a_lost_device_comes_back);
	tcase_add_test(tcase, the_daemon_stops_in_a_copy);
	tcase_add_test(tcase, a_new_daemon_is_adopted_anew);
	tcase_add_test(tcase, memory_by_descriptor);
	tcase_add_test(tcase, an_event_is_waited_for);
	tcase_add_test(tcase, from_disk);
}

int main(int argc, char **argv)
{
	return device_suite(argc, argv, "adopt", add);
}
