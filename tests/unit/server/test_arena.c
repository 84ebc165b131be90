/* SPDX-License-Identifier: Apache-2.0 */
/* server/arena.c: a bounded memory for decoded requests. */
#include "server/arena.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static struct arena arena;

static void setup(void)
{
	ck_assert_int_eq(arena_init(&arena, 4096), 0);
}

static void teardown(void)
{
	arena_deinit(&arena);
	ck_assert_ptr_null(arena.base);
	arena_deinit(&arena); /* harmless twice */
}

START_TEST(gives_aligned_memory_until_it_is_full)
{
	size_t n = 0;
	uint8_t *p, *last = NULL;

	while ((p = arena_alloc(&arena, 17))) {
		ck_assert_uint_eq((uintptr_t)p % 16, 0);
		ck_assert(!last || p >= last + 17);
		memset(p, 0xa5, 17);
		last = p;
		n++;
	}
	ck_assert_uint_eq(n, 4096 / 32);
	ck_assert_ptr_null(arena_alloc(&arena, 1));
	arena_reset(&arena);
	ck_assert_ptr_nonnull(arena_alloc(&arena, 4096));
	ck_assert_ptr_null(arena_alloc(&arena, 1));
}
END_TEST

START_TEST(a_refusal_takes_nothing)
{
	ck_assert_ptr_null(arena_alloc(&arena, 4097));
	ck_assert_ptr_null(arena_alloc(&arena, SIZE_MAX));
	ck_assert_ptr_null(arena_alloc(&arena, SIZE_MAX - 7));
	ck_assert_ptr_nonnull(arena_alloc(&arena, 4096));
}
END_TEST

START_TEST(decodes_into_itself_and_no_further)
{
	Kvbm__MatchRequest m = KVBM__MATCH_REQUEST__INIT, *got;
	uint8_t keys[1024] = { 7 }, packed[2048];
	size_t size;

	m.keys = (ProtobufCBinaryData){ sizeof(keys), keys };
	size = kvbm__match_request__pack(&m, packed);
	got = kvbm__match_request__unpack(&arena.allocator, size, packed);
	ck_assert_ptr_nonnull(got);
	ck_assert((uint8_t *)got >= arena.base && (uint8_t *)got < arena.base + arena.size);
	ck_assert_mem_eq(got->keys.data, keys, sizeof(keys));
	kvbm__match_request__free_unpacked(got, &arena.allocator); /* does nothing */
	ck_assert_ptr_nonnull(kvbm__match_request__unpack(&arena.allocator, size, packed));
	ck_assert_ptr_nonnull(kvbm__match_request__unpack(&arena.allocator, size, packed));
	ck_assert_ptr_null(kvbm__match_request__unpack(&arena.allocator, size, packed));
	arena_reset(&arena);
	ck_assert_ptr_nonnull(kvbm__match_request__unpack(&arena.allocator, size, packed));
}
END_TEST

/* A field that comes again replaces what it was; protobuf-c frees that, the arena does not: bounded all the same. */
START_TEST(repeated_fields_end_in_a_refusal)
{
	uint8_t packed[4000];

	for (size_t i = 0; i + 4 <= sizeof(packed); i += 4)
		memcpy(packed + i, "\x12\x02zz", 4); /* field 2, two bytes */
	ck_assert_ptr_null(kvbm__match_request__unpack(&arena.allocator, sizeof(packed), packed));
	ck_assert_uint_le(arena.used, arena.size);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("arena");
	TCase *tc = tcase_create("arena");
	SRunner *runner;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, gives_aligned_memory_until_it_is_full);
	tcase_add_test(tc, a_refusal_takes_nothing);
	tcase_add_test(tc, decodes_into_itself_and_no_further);
	tcase_add_test(tc, repeated_fields_end_in_a_refusal);
	suite_add_tcase(suite, tc);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
