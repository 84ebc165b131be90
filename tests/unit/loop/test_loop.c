/* SPDX-License-Identifier: Apache-2.0 */
/* loop/loop.c: order within a turn, lifetime, time, and sleeping when there is nothing to do. */
#include "loop/loop.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/thread.h"

#define MS CLOCK_NS_PER_MS

static struct loop *loop;
static char trace[256];
static unsigned n_closed;

static void note(const char *what)
{
	ck_assert_uint_lt(strlen(trace) + strlen(what), sizeof(trace));
	strcat(trace, what);
}

static void setup(void)
{
	thread_set_role(THREAD_LOOP);
	trace[0] = 0;
	n_closed = 0;
	ck_assert_int_eq(loop_new(&loop), 0);
}

static void teardown(void)
{
	loop = loop_free(loop);
	ck_assert_ptr_null(loop);
	ck_assert_ptr_null(loop_free(NULL));
	thread_set_role(THREAD_NONE);
}

static void timer_closed(struct loop_timer *t)
{
	n_closed++;
	memset(t, 0xa5, sizeof(*t));
}

static void stop_on_due(struct loop_timer *t)
{
	note("t");
	loop_stop(t->loop);
}

START_TEST(timer_is_never_early)
{
	struct loop_timer t;

	loop_timer_init(loop, &t);
	for (unsigned i = 0; i < 20; i++) {
		uint64_t want = 100000 + i * 137531, start = loop_refresh_ns(loop);

		loop_timer_start(&t, want, 0, stop_on_due);
		ck_assert(loop_timer_is_running(&t));
		loop_run(loop);
		ck_assert_uint_ge(clock_now_ns() - start, want);
		ck_assert(!loop_timer_is_running(&t));
	}
	loop_timer_start(&t, 0, 0, stop_on_due);
	ck_assert_str_eq(trace, "tttttttttttttttttttt"); /* not inline */
	loop_run(loop);
	loop_timer_close(&t, timer_closed);
	ck_assert_uint_eq(n_closed, 0);
	loop_turn(loop, false);
	ck_assert_uint_eq(n_closed, 1);
}
END_TEST

static unsigned n_due;
static uint64_t last_due;

static void count_on_due(struct loop_timer *t)
{
	uint64_t now = loop_now_ns(t->loop);

	ck_assert_uint_gt(now, last_due);
	last_due = now;
	if (++n_due == 5) {
		loop_timer_close(t, timer_closed);
		loop_stop(t->loop);
	}
}

START_TEST(timer_repeats_until_closed)
{
	struct loop_timer t;

	n_due = 0;
	last_due = 0;
	loop_timer_init(loop, &t);
	loop_timer_start(&t, MS, 2 * MS, count_on_due);
	loop_run(loop);
	ck_assert_uint_eq(n_due, 5);
	loop_turn(loop, false);
	ck_assert_uint_eq(n_closed, 1);
}
END_TEST

START_TEST(stopped_timer_is_silent)
{
	struct loop_timer t, end;

	loop_timer_init(loop, &t);
	loop_timer_init(loop, &end);
	loop_timer_stop(&t);
	loop_timer_start(&t, MS, 0, count_on_due);
	loop_timer_start(&end, 5 * MS, 0, stop_on_due);
	loop_timer_stop(&t);
	n_due = 0;
	loop_run(loop);
	ck_assert_uint_eq(n_due, 0);
	loop_timer_close(&t, NULL);
	loop_timer_close(&end, timer_closed);
	loop = loop_free(loop); /* delivers what is due */
	ck_assert_uint_eq(n_closed, 1);
}
END_TEST

/* --- descriptors --- */

struct peer {
	struct loop_watch watch;
	unsigned seen;
	bool close_inside;
};

static void watch_closed(struct loop_watch *w)
{
	(void)w;
	n_closed++;
}

static void peer_on_event(struct loop_watch *w, unsigned events)
{
	struct peer *p = container_of(w, struct peer, watch);

	note("w");
	p->seen |= events;
	if (p->close_inside)
		loop_watch_close(w, watch_closed);
}

START_TEST(watch_follows_its_mask)
{
	struct peer p = { .seen = 0 };
	int sv[2];

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	ck_assert_int_eq(loop_watch_start(loop, &p.watch, sv[0], LOOP_READABLE, peer_on_event), 0);
	ck_assert_int_ne(fcntl(sv[0], F_GETFL) & O_NONBLOCK, 0);
	loop_turn(loop, false);
	ck_assert_uint_eq(p.seen, 0);
	ck_assert_int_eq(write(sv[1], "x", 1), 1);
	ck_assert_str_eq(trace, "");
	loop_turn(loop, true);
	ck_assert_uint_eq(p.seen, LOOP_READABLE);
	loop_turn(loop, true); /* level-triggered */
	ck_assert_str_eq(trace, "ww");
	p.seen = 0;
	loop_watch_set(&p.watch, LOOP_WRITABLE);
	loop_turn(loop, true);
	ck_assert_uint_eq(p.seen, LOOP_WRITABLE);
	p.seen = 0;
	loop_watch_set(&p.watch, 0);
	loop_turn(loop, false);
	ck_assert_uint_eq(p.seen, 0);
	loop_watch_set(&p.watch, LOOP_HANGUP);
	loop_turn(loop, false);
	ck_assert_uint_eq(p.seen, 0);
	close(sv[1]);
	loop_turn(loop, true);
	ck_assert_uint_eq(p.seen, LOOP_HANGUP);
	p.close_inside = true;
	loop_turn(loop, true);
	close(sv[0]);
	loop_turn(loop, false);
	ck_assert_uint_eq(n_closed, 1);
}
END_TEST

/* A peer that leaves with our bytes unread makes the socket fail: reported once, with what was asked for. */
START_TEST(error_is_reported_once)
{
	struct peer p = { .seen = 0 };
	int sv[2];

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	ck_assert_int_eq(loop_watch_start(loop, &p.watch, sv[0], LOOP_READABLE, peer_on_event), 0);
	ck_assert_int_eq(write(sv[0], "x", 1), 1);
	close(sv[1]);
	loop_turn(loop, true);
	ck_assert_uint_eq(p.seen, LOOP_READABLE | LOOP_ERROR);
	loop_turn(loop, false);
	ck_assert_str_eq(trace, "w");
	loop_watch_close(&p.watch, NULL);
	close(sv[0]);
	loop_turn(loop, false); /* @p is on the stack */
}
END_TEST

START_TEST(regular_file_cannot_be_watched)
{
	struct peer p = { .seen = 0 };
	int fd = memfd_create("regular", MFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(loop_watch_start(loop, &p.watch, fd, LOOP_READABLE, peer_on_event), -EPERM);
	close(fd);
}
END_TEST

/* --- signals --- */

static void on_signal(struct loop_signal *s, int signum)
{
	ck_assert_int_eq(signum, SIGUSR1);
	note("s");
	loop_signal_close(s, NULL);
	loop_stop(loop);
}

START_TEST(signal_arrives)
{
	struct loop_signal s;

	ck_assert_int_eq(loop_signal_start(loop, &s, SIGKILL, on_signal), -EINVAL);
	ck_assert_int_eq(loop_signal_start(loop, &s, SIGUSR1, on_signal), 0);
	raise(SIGUSR1);
	ck_assert_str_eq(trace, "");
	loop_run(loop);
	ck_assert_str_eq(trace, "s");
	loop_turn(loop, false);
	raise(SIGUSR1); /* still blocked: it kills nobody */
	loop_turn(loop, false);
	ck_assert_str_eq(trace, "s");
}
END_TEST

START_TEST(signal_numbers_are_checked)
{
	struct loop_signal s;

	ck_assert_int_eq(loop_signal_start(loop, &s, 0, on_signal), -EINVAL);
	ck_assert_int_eq(loop_signal_start(loop, &s, SIGSTOP, on_signal), -EINVAL);
	ck_assert_int_eq(loop_signal_start(loop, &s, 1000, on_signal), -EINVAL);
	loop_turn(loop, false); /* nothing was left behind: loop_free() would say so */
}
END_TEST

/* --- the end of a turn --- */

struct act {
	struct loop_deferred d;
	struct loop_hook h;
	const char *name;
	struct act *then;
	unsigned left;
};

static void act_on_deferred(struct loop_deferred *d)
{
	struct act *a = container_of(d, struct act, d);

	note(a->name);
	if (a->then)
		loop_defer(loop, &a->then->d, act_on_deferred);
}

static void act_on_hook(struct loop_hook *h)
{
	struct act *a = container_of(h, struct act, h);

	note(a->name);
	if (a->left > 0 && --a->left == 0 && a->then)
		loop_defer(loop, &a->then->d, act_on_deferred);
}

START_TEST(order_of_a_turn)
{
	struct act b = { .name = "b" }, a = { .name = "a", .then = &b }, c = { .name = "c" };
	struct act hook = { .name = "H", .then = &c, .left = 2 };
	struct peer p = { .seen = 0 };
	int fds[2];

	loop_deferred_init(&a.d);
	loop_deferred_init(&b.d);
	loop_deferred_init(&c.d);
	ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
	ck_assert_int_eq(loop_watch_start(loop, &p.watch, fds[1], LOOP_WRITABLE, peer_on_event), 0);
	loop_on_turn_end(loop, &hook.h, act_on_hook);
	loop_defer(loop, &a.d, act_on_deferred);
	loop_defer(loop, &a.d, act_on_deferred); /* once */
	ck_assert_str_eq(trace, "");
	loop_turn(loop, true);
	/* before sleeping: a, the hook, b (deferred by a), the hook, c (deferred by it), the hook; wake up; the hook */
	ck_assert_str_eq(trace, "aHbHcHwH");
	loop_hook_remove(&hook.h);
	loop_hook_remove(&hook.h);
	loop_defer(loop, &c.d, act_on_deferred);
	loop_deferred_cancel(&c.d);
	loop_deferred_cancel(&c.d);
	loop_watch_close(&p.watch, NULL);
	loop_turn(loop, false);
	ck_assert_str_eq(trace, "aHbHcHwH");
	close(fds[0]);
	close(fds[1]);
}
END_TEST

static struct act rivals[2];

static void cancel_rival(struct loop_deferred *d)
{
	note("x");
	loop_deferred_cancel(&rivals[1].d);
	memset(container_of(d, struct act, d), 0, sizeof(struct act));
}

START_TEST(cancel_from_inside)
{
	loop_deferred_init(&rivals[0].d);
	loop_deferred_init(&rivals[1].d);
	rivals[1].name = "never";
	loop_defer(loop, &rivals[0].d, cancel_rival);
	loop_defer(loop, &rivals[1].d, act_on_deferred);
	loop_turn(loop, false);
	ck_assert_str_eq(trace, "x");
}
END_TEST

static struct loop_hook hooks[3];

static void hook_removes_all(struct loop_hook *h)
{
	(void)h;
	note("h");
	for (unsigned i = 0; i < 3; i++)
		loop_hook_remove(&hooks[i]);
}

START_TEST(hooks_remove_each_other)
{
	for (unsigned i = 0; i < 3; i++)
		loop_on_turn_end(loop, &hooks[i], hook_removes_all);
	loop_turn(loop, false);
	ck_assert_str_eq(trace, "h");
}
END_TEST

static unsigned n_again;

static void hook_again(struct loop_hook *h)
{
	(void)h;
	n_again++;
	loop_again(loop);
}

/* Each time a turn of its own, which does not sleep: nothing else would wake it. */
START_TEST(a_hook_may_want_another_turn)
{
	struct loop_hook h;

	n_again = 0;
	loop_on_turn_end(loop, &h, hook_again);
	for (unsigned turns = 0; turns < 50; turns++) {
		ck_assert_uint_le(n_again, 2 * turns);
		loop_turn(loop, true);
	}
	ck_assert_uint_ge(n_again, 50);
	loop_hook_remove(&h);
}
END_TEST

static void defer_again(struct loop_deferred *d)
{
	n_again++;
	loop_defer(loop, d, defer_again);
}

static void stop_on_readable(struct loop_watch *w, unsigned events)
{
	(void)events;
	loop_watch_close(w, NULL);
	loop_stop(loop);
}

/* Endless deferring neither starves descriptors nor lets the loop sleep. */
START_TEST(endless_deferring_is_fair)
{
	struct loop_deferred d;
	struct loop_watch w;
	int fds[2];

	loop_deferred_init(&d);
	n_again = 0;
	loop_defer(loop, &d, defer_again);
	loop_turn(loop, true); /* must not sleep */
	loop_turn(loop, true);
	ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
	ck_assert_int_eq(write(fds[1], "x", 1), 1);
	ck_assert_int_eq(loop_watch_start(loop, &w, fds[0], LOOP_READABLE, stop_on_readable), 0);
	loop_run(loop);
	ck_assert_uint_gt(n_again, 16);
	ck_assert_uint_lt(n_again, 1000);
	loop_deferred_cancel(&d);
	loop_turn(loop, false);
	close(fds[0]);
	close(fds[1]);
}
END_TEST

static unsigned n_turns;

static void count_turn(struct loop_hook *h)
{
	(void)h;
	n_turns++;
}

/* An idle loop sleeps: a quarter of a second of it costs no more than a few turns. */
START_TEST(idle_costs_nothing)
{
	struct loop_hook turns;
	struct loop_timer t;
	struct timespec a, b;
	int64_t cpu_ns;

	n_turns = 0;
	loop_timer_init(loop, &t);
	loop_on_turn_end(loop, &turns, count_turn);
	loop_timer_start(&t, 250 * MS, 0, stop_on_due);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
	loop_run(loop);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
	cpu_ns = (b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec;
	ck_assert_uint_le(n_turns, 4);
	ck_assert_int_lt(cpu_ns, 5 * (int64_t)MS);
	loop_hook_remove(&turns);
	loop_timer_close(&t, NULL);
	loop_turn(loop, false);
}
END_TEST

START_TEST(time_stands_still_within_a_turn)
{
	uint64_t a = loop_now_ns(loop), b;

	ck_assert_uint_eq(loop_now_ns(loop), a);
	b = loop_refresh_ns(loop);
	ck_assert_uint_gt(b, a);
	ck_assert_uint_eq(loop_now_ns(loop), b);
	loop_turn(loop, false);
	ck_assert_uint_gt(loop_now_ns(loop), b);
}
END_TEST

START_TEST(leaked_handle_is_noticed)
{
	static struct loop_timer t;
	struct loop *other;

	ck_assert_int_eq(loop_new(&other), 0);
	loop_timer_init(other, &t);
	loop_free(other); /* aborts */
}
END_TEST

int main(void)
{
	Suite *s = suite_create("loop");
	TCase *tc = tcase_create("loop");
	const char *fork = getenv("CK_FORK");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, timer_is_never_early);
	tcase_add_test(tc, timer_repeats_until_closed);
	tcase_add_test(tc, stopped_timer_is_silent);
	tcase_add_test(tc, watch_follows_its_mask);
	tcase_add_test(tc, error_is_reported_once);
	tcase_add_test(tc, regular_file_cannot_be_watched);
	tcase_add_test(tc, signal_arrives);
	tcase_add_test(tc, signal_numbers_are_checked);
	tcase_add_test(tc, order_of_a_turn);
	tcase_add_test(tc, cancel_from_inside);
	tcase_add_test(tc, hooks_remove_each_other);
	tcase_add_test(tc, a_hook_may_want_another_turn);
	tcase_add_test(tc, endless_deferring_is_fair);
	tcase_add_test(tc, idle_costs_nothing);
	tcase_add_test(tc, time_stands_still_within_a_turn);
	if (!fork || strcmp(fork, "no") != 0)
		tcase_add_test_raise_signal(tc, leaked_handle_is_noticed, SIGABRT);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
