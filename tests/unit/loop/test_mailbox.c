/* SPDX-License-Identifier: Apache-2.0 */
/* loop/mailbox.c: many threads post, everything arrives once and in each poster's order.  Run under TSan too. */
#include "loop/mailbox.h"

#include <check.h>
#include <pthread.h>
#include <stdlib.h>

#define POSTERS 4
#define MAILS 5000

static struct loop *loop;
static struct mailbox *mailbox;
static unsigned n_closed;

static void on_closed(void *arg)
{
	ck_assert_ptr_eq(arg, &n_closed);
	n_closed++;
}

static void setup(void)
{
	n_closed = 0;
	ck_assert_int_eq(loop_new(&loop), 0);
	ck_assert_int_eq(mailbox_new(loop, &mailbox), 0);
}

static void teardown(void)
{
	mailbox_close(mailbox, on_closed, &n_closed);
	ck_assert_uint_eq(n_closed, 0);
	loop = loop_free(loop);
	ck_assert_uint_eq(n_closed, 1);
}

struct letter {
	struct mail mail;
	unsigned poster, number, seal;
};

static unsigned n_delivered, next_number[POSTERS];

static void on_letter(struct mail *mail)
{
	struct letter *l = container_of(mail, struct letter, mail);

	ck_assert_uint_eq(l->number, next_number[l->poster]);
	ck_assert_uint_eq(l->seal, l->number * 7 + l->poster);
	next_number[l->poster]++;
	free(l); /* the mail may go in deliver() */
	if (++n_delivered == POSTERS * MAILS)
		loop_stop(loop);
}

static void *poster_main(void *arg)
{
	unsigned poster = *(unsigned *)arg;

	for (unsigned i = 0; i < MAILS; i++) {
		struct letter *l = malloc(sizeof(*l));

		l->mail.deliver = on_letter;
		l->poster = poster;
		l->number = i;
		l->seal = i * 7 + poster;
		mailbox_post(mailbox, &l->mail);
	}
	return NULL;
}

START_TEST(many_posters)
{
	pthread_t threads[POSTERS];
	unsigned ids[POSTERS];

	n_delivered = 0;
	for (unsigned i = 0; i < POSTERS; i++) {
		next_number[i] = 0;
		ids[i] = i;
		ck_assert_int_eq(pthread_create(&threads[i], NULL, poster_main, &ids[i]), 0);
	}
	loop_run(loop);
	for (unsigned i = 0; i < POSTERS; i++)
		pthread_join(threads[i], NULL);
	ck_assert_uint_eq(n_delivered, POSTERS * MAILS);
}
END_TEST

static unsigned n_bounce;

static void bounce(struct mail *mail)
{
	if (++n_bounce < 100)
		mailbox_post(mailbox, mail);
	else
		loop_stop(loop);
}

START_TEST(reposted_from_deliver)
{
	struct mail mail = { .deliver = bounce };

	n_bounce = 0;
	mailbox_post(mailbox, &mail);
	ck_assert_uint_eq(n_bounce, 0); /* never inline */
	loop_run(loop);
	ck_assert_uint_eq(n_bounce, 100);
}
END_TEST

static void count(struct mail *mail)
{
	(void)mail;
	n_bounce++;
}

START_TEST(closing_delivers_what_was_posted)
{
	struct mail mails[3];

	n_bounce = 0;
	for (unsigned i = 0; i < 3; i++) {
		mails[i].deliver = count;
		mailbox_post(mailbox, &mails[i]);
	}
	mailbox_close(mailbox, on_closed, &n_closed);
	loop_turn(loop, false);
	loop_turn(loop, false);
	ck_assert_uint_eq(n_bounce, 3);
	ck_assert_uint_eq(n_closed, 1);
	n_closed = 0;
	ck_assert_int_eq(mailbox_new(loop, &mailbox), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("mailbox");
	TCase *tc = tcase_create("mailbox");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, many_posters);
	tcase_add_test(tc, reposted_from_deliver);
	tcase_add_test(tc, closing_delivers_what_was_posted);
	tcase_set_timeout(tc, 30);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
