/* SPDX-License-Identifier: Apache-2.0 */
/* base/layout.c: golden pieces of every layout, neighbours taken together, and descriptions that cannot be. */
#include "base/layout.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

#define HOST UINT64_C(1000000)

static struct layout_piece got[66]; /* 4 x 4 x 4 runs at most, and what the end is asked for */
static unsigned n_got;

static void walk_blocks(const struct layout *layout, const uint64_t *planes, const uint64_t *blocks, unsigned n)
{
	struct layout_walk walk;

	n_got = 0;
	layout_walk_init(&walk, layout, planes);
	for (unsigned i = 0; i < n; i++) {
		layout_walk_block(&walk, blocks[i], HOST + i * layout_block_bytes(layout));
		while (layout_walk_next(&walk, &got[n_got]))
			ck_assert_uint_le(++n_got, 64);
	}
	if (layout_walk_end(&walk, &got[n_got]))
		n_got++;
	ck_assert(!layout_walk_end(&walk, &got[n_got]));
}

static void expect(const struct layout_piece *want, unsigned n)
{
	ck_assert_uint_eq(n_got, n);
	for (unsigned i = 0; i < n; i++) {
		ck_assert_uint_eq(got[i].device, want[i].device);
		ck_assert_uint_eq(got[i].host, want[i].host);
		ck_assert_uint_eq(got[i].bytes, want[i].bytes);
	}
}

/* 2 layers, keys and values, 100 bytes each, 10 blocks; block 3. */

START_TEST(contiguous_is_one_piece)
{
	struct layout layout = layout_contiguous(2, 2, 100);
	uint64_t plane = 50, blocks[] = { 3, 4, 6 }, reach;

	ck_assert_int_eq(layout_check(&layout, 10, &reach), 0);
	ck_assert_uint_eq(reach, 4000);
	ck_assert_uint_eq(layout_block_bytes(&layout), 400);
	ck_assert_uint_eq(layout_block_pieces(&layout), 1);
	walk_blocks(&layout, &plane, blocks, 1);
	expect((struct layout_piece[]){ { 1250, HOST, 400 } }, 1);
	/* Blocks that are neighbours at both ends are one piece. */
	walk_blocks(&layout, &plane, blocks, 3);
	expect((struct layout_piece[]){ { 1250, HOST, 800 }, { 2450, HOST + 800, 400 } }, 2);
}
END_TEST

START_TEST(outer_contiguous_is_a_piece_for_each_layer_and_outer)
{
	struct layout layout = layout_outer_contiguous(2, 2, 100, 10);
	uint64_t plane = 0, blocks[] = { 3 }, reach;

	ck_assert_int_eq(layout_check(&layout, 10, &reach), 0);
	ck_assert_uint_eq(reach, 4000);
	walk_blocks(&layout, &plane, blocks, 1);
	expect((struct layout_piece[]){ { 300, HOST, 100 },
	                                { 1300, HOST + 100, 100 },
	                                { 2300, HOST + 200, 100 },
	                                { 3300, HOST + 300, 100 } },
	       4);
}
END_TEST

START_TEST(block_contiguous_is_a_piece_for_each_layer)
{
	struct layout layout = layout_block_contiguous(2, 2, 100, 10);
	uint64_t plane = 0, blocks[] = { 3 }, reach;

	ck_assert_int_eq(layout_check(&layout, 10, &reach), 0);
	ck_assert_uint_eq(reach, 4000);
	walk_blocks(&layout, &plane, blocks, 1);
	expect((struct layout_piece[]){ { 600, HOST, 200 }, { 2600, HOST + 200, 200 } }, 2);
}
END_TEST

START_TEST(planes_have_bases_of_their_own)
{
	struct layout layout = layout_outer_contiguous(2, 2, 100, 10);
	uint64_t planes[] = { 70000, 20000 }, blocks[] = { 3 }, reach;

	layout.planes = 2;
	ck_assert_int_eq(layout_check(&layout, 10, &reach), 0);
	ck_assert_uint_eq(reach, 2000);
	walk_blocks(&layout, planes, blocks, 1);
	expect((struct layout_piece[]){ { 70300, HOST, 100 },
	                                { 71300, HOST + 100, 100 },
	                                { 20300, HOST + 200, 100 },
	                                { 21300, HOST + 300, 100 } },
	       4);
	/* Planes that happen to be neighbours at both ends are two all the same. */
	layout = layout_contiguous(2, 2, 100);
	layout.planes = 2;
	layout.block_stride = 200;
	planes[0] = 5000;
	planes[1] = 5200;
	walk_blocks(&layout, planes, (uint64_t[]){ 0 }, 1);
	expect((struct layout_piece[]){ { 5000, HOST, 200 }, { 5200, HOST + 200, 200 } }, 2);
}
END_TEST

/* Four dimensions with gaps: [2 layers, 4096][1 outer][3 heads, 512][2 tokens, 64 of 128 bytes]. */
START_TEST(any_strides)
{
	struct layout layout = {
		.planes = 1,
		.n_dims = 4,
		.dims = { { 2, 4096 }, { 1, 77 }, { 3, 512 }, { 2, 128 } },
		.run_bytes = 64,
		.block_stride = 16384,
	};
	struct layout_piece want[12];
	uint64_t plane = 8, reach;
	unsigned n = 0;

	for (uint64_t layer = 0; layer < 2; layer++)
		for (uint64_t head = 0; head < 3; head++)
			for (uint64_t token = 0; token < 2; token++, n++)
				want[n] = (struct layout_piece){ 8 + 16384 + layer * 4096 + head * 512 + token * 128,
					                         HOST + n * 64, 64 };
	ck_assert_int_eq(layout_check(&layout, 2, &reach), 0);
	ck_assert_uint_eq(reach, 16384 + 4096 + 1024 + 128 + 64);
	ck_assert_uint_eq(layout_block_pieces(&layout), 12);
	walk_blocks(&layout, &plane, (uint64_t[]){ 1 }, 1);
	expect(want, 12);
}
END_TEST

START_TEST(no_dimensions_is_one_run)
{
	struct layout layout = { .planes = 1, .run_bytes = 64, .block_stride = 128 };
	uint64_t plane = 0, reach;

	ck_assert_int_eq(layout_check(&layout, 3, &reach), 0);
	ck_assert_uint_eq(reach, 320);
	walk_blocks(&layout, &plane, (uint64_t[]){ 2, 0 }, 2);
	expect((struct layout_piece[]){ { 256, HOST, 64 }, { 0, HOST + 64, 64 } }, 2);
}
END_TEST

START_TEST(what_cannot_be_is_refused)
{
	const struct layout good = layout_contiguous(2, 2, 100);
	struct layout bad;
	uint64_t reach;

#define REFUSED(change) \
	do { \
		bad = good; \
		change; \
		ck_assert_int_eq(layout_check(&bad, 10, &reach), LAYOUT_E_BAD); \
	} while (0)
	ck_assert_int_eq(layout_check(&good, 0, &reach), LAYOUT_E_BAD);
	ck_assert_int_eq(layout_check(&good, UINT64_MAX, &reach), LAYOUT_E_BAD);
	REFUSED(bad.run_bytes = 0);
	REFUSED(bad.run_bytes = UINT64_MAX);
	REFUSED(bad.n_dims = LAYOUT_MAX_DIMS + 1);
	REFUSED(bad.planes = 0);
	REFUSED(bad.planes = 3);
	REFUSED((bad.planes = 2, bad.n_dims = 0));
	REFUSED(bad.planes = bad.dims[0].extent = LAYOUT_MAX_PLANES + 1);
	REFUSED(bad.dims[1].extent = 0);
	REFUSED(bad.dims[1].extent = UINT64_MAX);
	REFUSED(bad.dims[0].stride = UINT64_MAX);
	REFUSED(bad.dims[0].stride = UINT64_C(1) << 62);
	REFUSED(bad.block_stride = UINT64_C(1) << 60);
	REFUSED((bad.dims[0].extent = UINT64_C(1) << 32, bad.dims[1].extent = UINT64_C(1) << 32));
	REFUSED((bad.dims[0].extent = LAYOUT_MAX_PIECES + 1, bad.dims[0].stride = 1000));
#undef REFUSED
}
END_TEST

/* Random layouts against the formula of the header, byte by byte. */
START_TEST(walks_agree_with_the_formula)
{
	static uint64_t where[4096]; /* of each host byte of a block */
	struct rng rng;

	rng_init(&rng, (uint64_t)_i + 1);
	for (int round = 0; round < 500; round++) {
		struct layout layout = { .planes = 1,
			                 .n_dims = (uint32_t)rng_below(&rng, 4),
			                 .run_bytes = 1 + rng_below(&rng, 8) };
		uint64_t stride = layout.run_bytes, planes[4] = { 10000, 20000, 30000, 30100 }, n = 1, reach;

		for (uint32_t i = layout.n_dims; i-- > 0;) {
			layout.dims[i].extent = 1 + rng_below(&rng, 4);
			layout.dims[i].stride = stride + (rng_below(&rng, 2) ? rng_below(&rng, 16) : 0);
			stride = layout.dims[i].stride * layout.dims[i].extent;
			n *= layout.dims[i].extent;
		}
		if (layout.n_dims > 0 && rng_below(&rng, 2))
			layout.planes = (uint32_t)layout.dims[0].extent;
		layout.block_stride = stride;
		ck_assert_int_eq(layout_check(&layout, 5, &reach), 0);
		for (uint64_t byte = 0; byte < n * layout.run_bytes; byte++) {
			uint64_t index = byte / layout.run_bytes, plane = 0;

			where[byte] = 4 * layout.block_stride + byte % layout.run_bytes;
			for (uint32_t i = layout.n_dims; i-- > 0; index /= layout.dims[i].extent)
				if (i == 0 && layout.planes > 1)
					plane = index % layout.dims[i].extent;
				else
					where[byte] += index % layout.dims[i].extent * layout.dims[i].stride;
			ck_assert_uint_lt(where[byte], reach);
			where[byte] += planes[plane];
		}
		walk_blocks(&layout, planes, (uint64_t[]){ 4 }, 1);
		ck_assert_uint_le(n_got, layout_block_pieces(&layout));
		for (unsigned i = 0; i < n_got; i++)
			for (uint64_t k = 0; k < got[i].bytes; k++)
				ck_assert_uint_eq(where[got[i].host - HOST + k], got[i].device + k);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("layout");
	TCase *tcase = tcase_create("layout");
	SRunner *sr;
	int failed;

	tcase_add_test(tcase, contiguous_is_one_piece);
	tcase_add_test(tcase, outer_contiguous_is_a_piece_for_each_layer_and_outer);
	tcase_add_test(tcase, block_contiguous_is_a_piece_for_each_layer);
	tcase_add_test(tcase, planes_have_bases_of_their_own);
	tcase_add_test(tcase, any_strides);
	tcase_add_test(tcase, no_dimensions_is_one_run);
	tcase_add_test(tcase, what_cannot_be_is_refused);
	tcase_add_loop_test(tcase, walks_agree_with_the_formula, 0, 4);
	suite_add_tcase(suite, tcase);
	sr = srunner_create(suite);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
