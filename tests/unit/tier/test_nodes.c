/* SPDX-License-Identifier: Apache-2.0 */
/* tier/nodes.c: lanes divide a region without gaps, at whole pages; on one node nothing is done. */
#include "tier/nodes.h"

#include <check.h>
#include <numaif.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "tier/tier.h"

#define MIB (UINT64_C(1) << 20)

START_TEST(lanes_cover_a_region)
{
	const uint64_t units[] = { 4096, 2 * MIB };

	for (unsigned u = 0; u < 2; u++) {
		for (uint32_t lanes = 1; lanes <= TIER_MAX_LANES; lanes++) {
			struct nodes_map map = { .size = 14 * MIB, .unit = units[u], .lanes = lanes };

			map.lane_area = map.size / lanes / 4096 * 4096;
			ck_assert_uint_eq(nodes_lane_start(&map, 0), 0);
			ck_assert_uint_eq(nodes_lane_start(&map, lanes), map.size);
			for (uint32_t l = 0; l < lanes; l++) {
				uint64_t at = nodes_lane_start(&map, l);

				ck_assert_uint_eq(at % map.unit, 0);
				ck_assert_uint_le(at, l * map.lane_area);
				ck_assert_uint_lt(l * map.lane_area - at, map.unit);
				ck_assert_uint_le(at, nodes_lane_start(&map, l + 1));
			}
		}
	}
}
END_TEST

START_TEST(there_is_a_node)
{
	struct nodes nodes;

	nodes_find(&nodes);
	ck_assert_uint_ge(nodes.n, 1);
	ck_assert_uint_le(nodes.n, NODES_MAX);
}
END_TEST

/* The kernel is asked only if there is more than one node, so on a machine with one the same node stands for two. */
START_TEST(policy_of_each_lane)
{
	struct nodes found, nodes = { .n = 2 };
	struct nodes_map map = { .size = 8 * MIB, .unit = 4096, .lanes = 2, .lane_area = 4 * MIB };
	int mode = -1;

	nodes_find(&found);
	nodes.ids[0] = found.ids[0];
	nodes.ids[1] = found.ids[found.n - 1];
	map.base = mmap(NULL, map.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(map.base, MAP_FAILED);
	if (get_mempolicy(&mode, NULL, 0, map.base, MPOL_F_ADDR) == 0) { /* else: a kernel without NUMA */
		nodes_interleave(&nodes, &map);
		ck_assert_int_eq(get_mempolicy(&mode, NULL, 0, map.base, MPOL_F_ADDR), 0);
		ck_assert_int_eq(mode, MPOL_INTERLEAVE);
		map.base[0] = map.base[6 * MIB] = 1;
		nodes_bind(&nodes, &map, 0, map.size / 2, false);
		ck_assert_int_eq(get_mempolicy(&mode, NULL, 0, map.base + 4 * MIB - 4096, MPOL_F_ADDR), 0);
		ck_assert_int_eq(mode, MPOL_PREFERRED);
		ck_assert_int_eq(get_mempolicy(&mode, NULL, 0, map.base + 4 * MIB, MPOL_F_ADDR), 0);
		ck_assert_int_eq(mode, MPOL_INTERLEAVE);
		nodes_bind(&nodes, &map, 0, map.size, true);
		ck_assert_int_eq(get_mempolicy(&mode, NULL, 0, map.base + 6 * MIB, MPOL_F_ADDR), 0);
		ck_assert_int_eq(mode, MPOL_PREFERRED);
		ck_assert_uint_eq(map.base[6 * MIB], 1);
	}
	munmap(map.base, map.size);
}
END_TEST

START_TEST(one_node_is_left_alone)
{
	struct nodes nodes = { .n = 1 };
	struct nodes_map map = { .size = 2 * MIB, .unit = 4096, .lanes = 1, .lane_area = 2 * MIB };

	/* Would fail, and say so, if the kernel were asked: there is no memory there. */
	nodes_interleave(&nodes, &map);
	nodes_bind(&nodes, &map, 0, map.size, true);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("nodes");
	TCase *tc = tcase_create("nodes");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_test(tc, lanes_cover_a_region);
	tcase_add_test(tc, there_is_a_node);
	tcase_add_test(tc, policy_of_each_lane);
	tcase_add_test(tc, one_node_is_left_alone);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
