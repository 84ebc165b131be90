/* SPDX-License-Identifier: Apache-2.0 */
/* gpu_cuda_copy.c: every layout byte for byte in both directions, by batch and by kernel, as another process sees it;
 * order against peers by flag and by event; limits. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/gpu/device.h"
#include "tests/gpu/peer.h"

#define BLOCKS 6u

static struct peer peer;
static struct gpu_mem mem;
static struct device_copy copy;

static void teardown(void)
{
	if (device.loop)
		device_close();
	peer_stop(&peer, true);
}

static uint8_t pattern(uint64_t block, uint64_t byte)
{
	uint64_t x = (block + 1) * UINT64_C(0x9e3779b97f4a7c15) + byte * UINT64_C(0xbf58476d1ce4e5b9);

	return (uint8_t)(x >> 56 ^ x >> 29);
}

/* By the formula at the top of layout.h. */
static uint64_t where(const struct layout *layout, const uint64_t *planes, uint64_t block, uint64_t byte)
{
	uint64_t index = byte / layout->run_bytes, at = block * layout->block_stride + byte % layout->run_bytes, plane = 0;

	for (uint32_t i = layout->n_dims; i-- > 0; index /= layout->dims[i].extent)
		if (i == 0 && layout->planes > 1)
			plane = index % layout->dims[i].extent;
		else
			at += index % layout->dims[i].extent * layout->dims[i].stride;
	return planes[plane] + at;
}

struct golden {
	const char *name;
	struct layout layout;
	uint64_t planes[4];
	bool by_kernel;
};

/* Two layers, keys and values; small runs go by kernel, large ones by batch, odd ones by whatever words are left. */
static struct golden goldens[12];
static unsigned n_goldens;

static void golden_add(const char *name, struct layout layout, bool by_kernel)
{
	goldens[n_goldens++] = (struct golden){ .name = name, .layout = layout, .planes = { 4096 }, .by_kernel = by_kernel };
}

static void goldens_make(void)
{
	struct golden *g;

	n_goldens = 0;
	golden_add("contiguous", layout_contiguous(2, 2, 49152), false);
	golden_add("outer-contiguous, large", layout_outer_contiguous(2, 2, 49152, 8), false);
	golden_add("block-contiguous, large", layout_block_contiguous(2, 2, 49152, 8), false);
	golden_add("contiguous, small", layout_contiguous(2, 2, 512), true);
	golden_add("outer-contiguous, small", layout_outer_contiguous(2, 2, 4096, 8), true);
	golden_add("block-contiguous, small", layout_block_contiguous(2, 2, 4096, 8), true);
	golden_add("words of 4", layout_outer_contiguous(3, 2, 1204, 8), true);
	golden_add("bytes", layout_outer_contiguous(3, 2, 1001, 8), true);
	golden_add("four dimensions with gaps",
	           (struct layout){ .planes = 1,
	                            .n_dims = 4,
	                            .dims = { { 2, 65536 }, { 1, 77 }, { 3, 9000 }, { 4, 640 } },
	                            .run_bytes = 600,
	                            .block_stride = 131072 },
	           true);
	for (unsigned small = 0; small < 2; small++) {
		golden_add("layers of their own", layout_outer_contiguous(3, 2, small ? 1024 : 40960, 8), small);
		g = &goldens[n_goldens - 1];
		g->layout.planes = 3;
		g->planes[0] = 3 * MIB;
		g->planes[1] = 5 * MIB + 512;
		g->planes[2] = 1 * MIB;
	}
}

/* The device's memory as the peer sees it, in a memfd of the test's. */
static uint8_t *image;
static int image_fd;

static void image_make(void)
{
	image_fd = memfd_create("image", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(image_fd, (off_t)DEVICE_HOST_BYTES), 0);
	image = mmap(NULL, DEVICE_HOST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, image_fd, 0);
	ck_assert_ptr_ne(image, MAP_FAILED);
}

static void golden_run(const struct golden *g)
{
	struct gpu_plane planes[4];
	struct gpu_block blocks[BLOCKS];
	uint64_t bytes = layout_block_bytes(&g->layout), reach;
	struct gpu_stat before, after;

	/* Blocks 7, 5, 6, 0, 1, 3: some neighbours, at places of their own in host memory. */
	static const uint64_t names[BLOCKS] = { 7, 5, 6, 0, 1, 3 }, places[BLOCKS] = { 0, 2, 3, 5, 4, 7 };

	ck_assert_int_eq(layout_check(&g->layout, 8, &reach), 0);
	for (unsigned i = 0; i < 4; i++)
		planes[i] = (struct gpu_plane){ .mem = &mem, .offset = g->planes[i] };
	memset(image, 0xee, DEVICE_HOST_BYTES);
	memset(device.host, 0x11, DEVICE_HOST_BYTES);
	peer_load(&peer, image_fd, mem.bytes);
	for (unsigned i = 0; i < BLOCKS; i++) {
		blocks[i] = (struct gpu_block){ .block = names[i], .pin = &device.pin, .offset = places[i] * bytes };
		for (uint64_t k = 0; k < bytes; k++)
			device.host[blocks[i].offset + k] = pattern(names[i], k);
	}
	device_copy_init(&copy, GPU_UP, &mem, 0, 1);
	copy.copy.layout = &g->layout;
	copy.copy.planes = planes;
	copy.copy.blocks = blocks;
	copy.copy.n_blocks = BLOCKS;
	gpu_stat(device.gpu, &before);
	ck_assert_int_eq(device_copy_run(&copy), 0);
	gpu_stat(device.gpu, &after);
	ck_assert_msg((after.kernels > before.kernels) == g->by_kernel, "%s: by the wrong means", g->name);
	ck_assert_uint_eq(after.up_bytes - before.up_bytes, BLOCKS * bytes);

	/* Each byte where it belongs, and no other byte touched. */
	peer_dump(&peer, image_fd, mem.bytes);
	for (unsigned i = 0; i < BLOCKS; i++)
		for (uint64_t k = 0; k < bytes; k++) {
			uint8_t *byte = &image[where(&g->layout, g->planes, names[i], k)];

			if (*byte != pattern(names[i], k))
				ck_abort_msg("%s: block %u byte %u up", g->name, i, (unsigned)k);
			*byte = 0xee;
		}
	ck_assert_msg(device_are(image, 0xee, mem.bytes), "%s: a byte was touched", g->name);

	memset(device.host, 0x11, DEVICE_HOST_BYTES);
	copy.copy.direction = GPU_DOWN;
	ck_assert_int_eq(device_copy_run(&copy), 0);
	for (unsigned i = 0; i < BLOCKS; i++)
		for (uint64_t k = 0; k < bytes; k++) {
			uint8_t *byte = &device.host[blocks[i].offset + k];

			if (*byte != pattern(names[i], k))
				ck_abort_msg("%s: block %u byte %u down", g->name, i, (unsigned)k);
			*byte = 0x11;
		}
	ck_assert_msg(device_are(device.host, 0x11, DEVICE_HOST_BYTES), "%s: a host byte was touched", g->name);
}

static void layouts(enum gpu_share share)
{
	device_open(10000);
	ck_assert_int_eq(device_alloc(&mem, 8 * MIB, share), 0);
	peer_start(&peer);
	ck_assert(peer_open(&peer, &mem));
	image_make();
	goldens_make();
	for (unsigned i = 0; i < n_goldens; i++)
		golden_run(&goldens[i]);
	peer_stop(&peer, false);
	ck_assert_int_eq(device_mem_close(&mem), 0);
}

START_TEST(layouts_by_handle)
{
	layouts(GPU_SHARE_HANDLE);
}
END_TEST

START_TEST(layouts_by_descriptor)
{
	layouts(GPU_SHARE_FD);
}
END_TEST

START_TEST(driver_12_8_has_another_signature)
{
	const char *settings[] = { "FAKECUDA_DRIVER=12080" };

	device_environment(settings, 1);
	layouts(GPU_SHARE_HANDLE);
	if (device.control)
		ck_assert_uint_eq(device.infos[0].driver_version, 12080);
}
END_TEST

START_TEST(new_memory_is_zero)
{
	device_open(10000);
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), 0);
	memset(device.host, 0xaa, 2 * MIB);
	device_copy_init(&copy, GPU_DOWN, &mem, 0, 2 * MIB);
	ck_assert_int_eq(device_copy_run(&copy), 0);
	ck_assert(device_are(device.host, 0, 2 * MIB));
	ck_assert_int_eq(device_mem_close(&mem), 0);
}
END_TEST

/* More pieces than go into one part. */
START_TEST(large_copies_go_in_parts)
{
	struct gpu_block *blocks = calloc(64, sizeof(*blocks));
	struct gpu_plane plane = { .mem = &mem };
	struct layout layout = layout_outer_contiguous(160, 2, 64, 64);
	uint64_t bytes = layout_block_bytes(&layout);
	struct gpu_stat stat;

	device_open(10000);
	ck_assert_int_eq(device_alloc(&mem, 4 * MIB, GPU_SHARE_NONE), 0);
	for (unsigned i = 0; i < 64; i++) {
		blocks[i] = (struct gpu_block){ .block = 63 - i, .pin = &device.pin, .offset = i * bytes };
		for (uint64_t k = 0; k < bytes; k++)
			device.host[i * bytes + k] = pattern(i, k);
	}
	device_copy_init(&copy, GPU_UP, &mem, 0, 1);
	copy.copy.layout = &layout;
	copy.copy.planes = &plane;
	copy.copy.blocks = blocks;
	copy.copy.n_blocks = 64;
	ck_assert_int_eq(device_copy_run(&copy), 0);
	gpu_stat(device.gpu, &stat);
	ck_assert_uint_eq(stat.kernels, 10); /* 20480 pieces */
	memset(device.host, 0, DEVICE_HOST_BYTES);
	copy.copy.direction = GPU_DOWN;
	ck_assert_int_eq(device_copy_run(&copy), 0);
	for (unsigned i = 0; i < 64; i++)
		for (uint64_t k = 0; k < bytes; k++)
			if (device.host[i * bytes + k] != pattern(i, k))
				ck_abort_msg("block %u byte %u", i, (unsigned)k);
	free(blocks);
}
END_TEST

/* Registrations and allocations that lie side by side are still two. */
START_TEST(pieces_do_not_span_two_pins_or_two_memories)
{
	static struct gpu_pin halves[2];
	struct gpu_mem mems[2];
	struct gpu_plane planes[2] = { { .mem = &mems[0] }, { .mem = &mems[1] } };
	struct gpu_block blocks[2];
	struct layout layout = layout_contiguous(2, 1, 65536);
	uint8_t *base;

	device_open(10000);
	base = mmap(NULL, 262144, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(base, MAP_FAILED);
	for (unsigned i = 0; i < 2; i++) {
		gpu_pin(device.gpu, &halves[i], base + i * 131072, 131072);
		ck_assert_int_eq(device_alloc(&mems[i], 2 * MIB, GPU_SHARE_NONE), 0);
		blocks[i] = (struct gpu_block){ .block = i, .pin = &halves[i] };
	}
	device_copy_init(&copy, GPU_UP, &mems[0], 0, 1);
	copy.copy.layout = &layout;
	copy.copy.blocks = blocks;
	copy.copy.n_blocks = 2;
	for (unsigned round = 0; round < 2; round++) {
		memset(base, 0x42, 262144);
		copy.copy.direction = GPU_UP;
		ck_assert_int_eq(device_copy_run(&copy), 0);
		memset(base, 0, 262144);
		copy.copy.direction = GPU_DOWN;
		ck_assert_int_eq(device_copy_run(&copy), 0);
		ck_assert(device_are(base, 0x42, 262144));
		/* The second time each layer in a memory of its own. */
		layout.planes = 2;
		copy.copy.planes = planes;
	}
	device_unpin(device.gpu, &halves[0]);
	device_unpin(device.gpu, &halves[1]);
	ck_assert_int_eq(device_mem_close(&mems[0]), 0);
	ck_assert_int_eq(device_mem_close(&mems[1]), 0);
	ck_assert_uint_eq(device.n_lost, 0);
}
END_TEST

/* ---- order against a peer ---- */

/* A page that both register; the first word is the flag. */
static int flag_fd;
static _Atomic uint64_t *flag;
static struct gpu_pin flag_pin;

static void flag_make(void)
{
	flag_fd = memfd_create("flag", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(flag_fd, 4096), 0);
	flag = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, flag_fd, 0);
	ck_assert_ptr_ne(flag, MAP_FAILED);
	gpu_pin(device.gpu, &flag_pin, (void *)flag, 4096);
	peer_flag(&peer, flag_fd);
}

static struct gpu_event event;

static void peers_memory(void)
{
	device_open(10000);
	peer_start(&peer);
	peer_alloc(&peer, 4 * MIB, GPU_SHARE_HANDLE, &mem);
	ck_assert_int_eq(device_import(&mem), 0);
}

/* The peer's writes are under way when the copy is started; its bytes, not those before. */
static void store_is_after(bool by_event)
{
	peers_memory();
	flag_make();
	peer_event(&peer, event.handle);
	ck_assert_int_eq(device_event_import(&event), 0);
	for (unsigned round = 1; round <= 40; round++) {
		peer_fill_later(&peer, 4 * MIB, (uint8_t)round, by_event ? 0 : round);
		device_copy_init(&copy, GPU_DOWN, &mem, 0, 4 * MIB);
		copy.copy.before = (struct gpu_sync){ .kind = by_event ? GPU_SYNC_EVENT : GPU_SYNC_FLAG,
			                              .pin = &flag_pin,
			                              .value = round,
			                              .event = &event };
		ck_assert_int_eq(device_copy_run(&copy), 0);
		ck_assert(device_are(device.host, (uint8_t)round, 4 * MIB));
	}
	ck_assert_int_eq(device_event_close(&event), 0);
	device_unpin(device.gpu, &flag_pin);
	ck_assert_int_eq(device_mem_close(&mem), 0);
}

START_TEST(nothing_is_read_before_the_flag)
{
	store_is_after(false);
}
END_TEST

START_TEST(nothing_is_read_before_the_event)
{
	store_is_after(true);
}
END_TEST

/* The peer's stream waits; when it goes on, all bytes are there. */
static void load_is_before(bool by_event)
{
	peers_memory();
	flag_make();
	peer_event(&peer, event.handle);
	ck_assert_int_eq(device_event_import(&event), 0);
	for (unsigned round = 1; round <= 40; round++) {
		memset(device.host, (int)round, 4 * MIB);
		device_copy_init(&copy, GPU_UP, &mem, 0, 4 * MIB);
		copy.copy.after = (struct gpu_sync){ .kind = by_event ? GPU_SYNC_EVENT : GPU_SYNC_FLAG,
			                             .pin = &flag_pin,
			                             .value = round,
			                             .event = &event };
		if (by_event) {
			/* An event is waited for once it was recorded, and that the reply tells. */
			ck_assert_int_eq(device_copy_run(&copy), 0);
			ck_assert(peer_wait_and_compare(&peer, 4 * MIB, (uint8_t)round, 0));
		} else {
			ck_assert_int_eq(device_copy_start(&copy), 0);
			ck_assert(peer_wait_and_compare(&peer, 4 * MIB, (uint8_t)round, round));
			ck_assert_int_eq(device_copy_wait(&copy), 0);
		}
	}
	ck_assert_int_eq(device_event_close(&event), 0);
	device_unpin(device.gpu, &flag_pin);
	ck_assert_int_eq(device_mem_close(&mem), 0);
}

START_TEST(the_flag_comes_after_the_bytes)
{
	load_is_before(false);
}
END_TEST

START_TEST(the_event_comes_after_the_bytes)
{
	load_is_before(true);
}
END_TEST

/* ---- limits ---- */

START_TEST(what_leaves_its_memory_is_refused)
{
	_Atomic uint64_t *words;

	device_open(10000);
	words = (_Atomic uint64_t *)device.host;
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), 0);
#define REFUSED(change) \
	do { \
		device_copy_init(&copy, GPU_DOWN, &mem, 0, MIB); \
		change; \
		ck_assert_int_eq(device_copy_run(&copy), GPU_E_REFUSED); \
	} while (0)
	REFUSED(copy.plane.offset = MIB + 1);
	REFUSED(copy.plane.offset = UINT64_MAX);
	REFUSED(copy.block.block = 2);
	REFUSED(copy.block.block = UINT64_MAX);
	REFUSED(copy.block.block = UINT64_MAX - 1);
	REFUSED(copy.block.offset = DEVICE_HOST_BYTES - MIB + 1);
	REFUSED(copy.block.offset = UINT64_MAX);
	REFUSED(copy.block.pin = NULL);
	REFUSED((copy.copy.before = (struct gpu_sync){ .kind = GPU_SYNC_FLAG, .pin = &device.pin, .offset = 4 }));
	REFUSED((copy.copy.before = (struct gpu_sync){ .kind = GPU_SYNC_FLAG,
	                                               .pin = &device.pin,
	                                               .offset = DEVICE_HOST_BYTES }));
	REFUSED((copy.copy.after = (struct gpu_sync){ .kind = GPU_SYNC_EVENT, .event = &event }));
	/* And its flag says so, so that nobody waits for ever. */
	words[0] = 0;
	REFUSED((copy.plane.offset = 2 * MIB,
	         copy.copy.after = (struct gpu_sync){ .kind = GPU_SYNC_FLAG, .pin = &device.pin, .value = 5 }));
	ck_assert_uint_eq(words[0], GPU_FLAG_FAILED);
	device_copy_init(&copy, GPU_DOWN, &mem, 0, 2 * MIB);
	ck_assert_int_eq(device_copy_run(&copy), 0);
	ck_assert_int_eq(device_mem_close(&mem), 0);
	ck_assert_int_eq(device_copy_run(&copy), GPU_E_REFUSED);
	ck_assert_uint_eq(device.n_lost, 0);
}
END_TEST

/* What a peer's stream waits for comes even if the copy cannot be made. */
START_TEST(a_failed_copy_lets_its_peer_go_on)
{
	peers_memory();
	flag_make();
	peer_fill_later(&peer, 4 * MIB, 0x21, 1);
	while (atomic_load(flag) != 1)
		sched_yield();
	device_copy_init(&copy, GPU_UP, &mem, 0, 4 * MIB);
	copy.plane.offset = MIB; /* beyond the end */
	copy.copy.after = (struct gpu_sync){ .kind = GPU_SYNC_FLAG, .pin = &flag_pin, .value = 1000 };
	ck_assert_int_eq(device_copy_run(&copy), GPU_E_REFUSED);
	ck_assert(peer_wait_and_compare(&peer, 4 * MIB, 0x21, 1000));
	device_unpin(device.gpu, &flag_pin);
	ck_assert_int_eq(device_mem_close(&mem), 0);
}
END_TEST

START_TEST(who_stays_away_holds_up_nobody_else)
{
	_Atomic uint64_t *words;
	struct device_copy late, cancelled;

	device_open(10000);
	words = (_Atomic uint64_t *)device.host;
	words[0] = words[1] = 0;
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), 0);
	device_copy_init(&late, GPU_UP, &mem, 4096, 4096);
	late.copy.before = (struct gpu_sync){ .kind = GPU_SYNC_FLAG, .pin = &device.pin, .value = 1 };
	late.copy.after = (struct gpu_sync){ .kind = GPU_SYNC_FLAG, .pin = &device.pin, .offset = 8, .value = 1 };
	cancelled = late;
	cancelled.copy.layout = &cancelled.layout;
	cancelled.copy.planes = &cancelled.plane;
	cancelled.copy.blocks = &cancelled.block;
	late.copy.wait_ns = 50 * MS;
	ck_assert_int_eq(device_copy_start(&late), 0);
	ck_assert_int_eq(device_copy_start(&cancelled), 0);
	for (unsigned i = 0; i < 20; i++) {
		device_copy_init(&copy, GPU_DOWN, &mem, 8192, 4096);
		ck_assert_int_eq(device_copy_run(&copy), 0);
	}
	ck_assert_int_eq(device_copy_wait(&late), GPU_E_LATE);
	ck_assert_uint_eq(words[1], GPU_FLAG_FAILED);
	ck_assert(!cancelled.done);
	gpu_copy_cancel(&cancelled.copy);
	ck_assert_int_eq(device_copy_wait(&cancelled), GPU_E_LATE);
}
END_TEST

START_TEST(as_many_as_the_limit)
{
	static struct device_copy copies[64];

	device_open(10000);
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), 0);
	for (unsigned i = 0; i < 64; i++) {
		device_copy_init(&copies[i], GPU_DOWN, &mem, 64 * 1024 * (uint64_t)i, 64 * 1024);
		ck_assert_int_eq(device_copy_start(&copies[i]), 0);
	}
	device_copy_init(&copy, GPU_DOWN, &mem, 0, 4096);
	ck_assert_int_eq(device_copy_start(&copy), GPU_E_FULL);
	for (unsigned i = 0; i < 64; i++)
		ck_assert_int_eq(device_copy_wait(&copies[i]), 0);
	ck_assert_int_eq(device_copy_run(&copy), 0);
}
END_TEST

/* Copies under way when the device is closed end well; those that wait do not begin. */
START_TEST(closing_waits_for_what_runs)
{
	struct device_copy waiting;

	device_open(10000);
	memset(device.host, 0, 8);
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), 0);
	device_copy_init(&waiting, GPU_DOWN, &mem, 4096, 4096);
	waiting.copy.before = (struct gpu_sync){ .kind = GPU_SYNC_FLAG, .pin = &device.pin, .value = 1 };
	ck_assert_int_eq(device_copy_start(&waiting), 0);
	device_copy_init(&copy, GPU_DOWN, &mem, 4 * MIB, 2 * MIB);
	ck_assert_int_eq(device_copy_start(&copy), 0);
	device_close();
	ck_assert(copy.done && waiting.done);
	ck_assert_int_eq(waiting.r, GPU_E_LOST);
	ck_assert(copy.r == 0 || copy.r == GPU_E_LOST);
}
END_TEST

static void add(TCase *tcase)
{
	tcase_add_checked_fixture(tcase, NULL, teardown);
	tcase_add_test(tcase, layouts_by_handle);
	tcase_add_test(tcase, layouts_by_descriptor);
	tcase_add_test(tcase, driver_12_8_has_another_signature);
	tcase_add_test(tcase, new_memory_is_zero);
	tcase_add_test(tcase, large_copies_go_in_parts);
	tcase_add_test(tcase, pieces_do_not_span_two_pins_or_two_memories);
	tcase_add_test(tcase, nothing_is_read_before_the_flag);
	tcase_add_test(tcase, nothing_is_read_before_the_event);
	tcase_add_test(tcase, the_flag_comes_after_the_bytes);
	tcase_add_test(tcase, the_event_comes_after_the_bytes);
	tcase_add_test(tcase, what_leaves_its_memory_is_refused);
	tcase_add_test(tcase, a_failed_copy_lets_its_peer_go_on);
	tcase_add_test(tcase, who_stays_away_holds_up_nobody_else);
	tcase_add_test(tcase, as_many_as_the_limit);
	tcase_add_test(tcase, closing_waits_for_what_runs);
}

int main(int argc, char **argv)
{
	return device_suite(argc, argv, "gpu copies", add);
}
