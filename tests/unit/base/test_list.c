/* Unit tests of base/list.h. */
#include "base/list.h"

#include <check.h>
#include <stdlib.h>

struct item {
	int value;
	struct list link;
};

static int value_of(struct list *l)
{
	return container_of(l, struct item, link)->value;
}

START_TEST(empty_list_has_no_first)
{
	struct list head;

	list_init(&head);
	ck_assert(list_empty(&head));
	ck_assert_ptr_null(list_first(&head));
	ck_assert_ptr_null(list_last(&head));
	ck_assert_ptr_null(list_pop(&head));
	ck_assert_uint_eq(list_count(&head), 0);
}
END_TEST

START_TEST(tail_and_head_keep_order)
{
	struct item a = { .value = 1 }, b = { .value = 2 }, c = { .value = 3 };
	struct list head;

	list_init(&head);
	list_add_tail(&head, &b.link);
	list_add_tail(&head, &c.link);
	list_add_head(&head, &a.link);
	ck_assert_int_eq(value_of(list_first(&head)), 1);
	ck_assert_int_eq(value_of(list_last(&head)), 3);
	ck_assert_uint_eq(list_count(&head), 3);

	int want = 1;
	list_for_each(it, &head)
		ck_assert_int_eq(value_of(it), want++);
	ck_assert_int_eq(want, 4);
}
END_TEST

START_TEST(delete_is_idempotent)
{
	struct item a = { .value = 1 }, b = { .value = 2 };
	struct list head;

	list_init(&head);
	list_init(&a.link);
	ck_assert(!list_is_linked(&a.link));
	list_add_tail(&head, &a.link);
	list_add_tail(&head, &b.link);
	ck_assert(list_is_linked(&a.link));
	list_del(&a.link);
	list_del(&a.link);
	ck_assert(!list_is_linked(&a.link));
	ck_assert_uint_eq(list_count(&head), 1);
	ck_assert_ptr_eq(list_pop(&head), &b.link);
	ck_assert(list_empty(&head));
}
END_TEST

START_TEST(safe_walk_survives_free)
{
	struct list head;
	int seen = 0;

	list_init(&head);
	for (int i = 0; i < 10; i++) {
		struct item *item = calloc(1, sizeof(*item));

		ck_assert_ptr_nonnull(item);
		list_add_tail(&head, &item->link);
	}
	list_for_each_safe(it, next, &head) {
		list_del(it);
		free(container_of(it, struct item, link));
		seen++;
	}
	ck_assert_int_eq(seen, 10);
	ck_assert(list_empty(&head));
}
END_TEST

START_TEST(splice_moves_everything_in_order)
{
	struct item items[4] = { { .value = 0 }, { .value = 1 }, { .value = 2 }, { .value = 3 } };
	struct list to, from;

	list_init(&to);
	list_init(&from);
	list_splice_tail(&to, &from);
	ck_assert(list_empty(&to));
	list_add_tail(&to, &items[0].link);
	list_add_tail(&to, &items[1].link);
	list_add_tail(&from, &items[2].link);
	list_add_tail(&from, &items[3].link);
	list_splice_tail(&to, &from);
	ck_assert(list_empty(&from));

	int want = 0;
	list_for_each(it, &to)
		ck_assert_int_eq(value_of(it), want++);
	ck_assert_int_eq(want, 4);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("list");
	TCase *tc = tcase_create("list");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, empty_list_has_no_first);
	tcase_add_test(tc, tail_and_head_keep_order);
	tcase_add_test(tc, delete_is_idempotent);
	tcase_add_test(tc, safe_walk_survives_free);
	tcase_add_test(tc, splice_moves_everything_in_order);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
