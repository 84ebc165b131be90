/* SPDX-License-Identifier: Apache-2.0 */
/* server/reply.c: codes, texts, descriptors and what does not fit a frame. */
#include "server/reply.h"

#include <check.h>
#include <fcntl.h>
#include <kvbm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "move/store.h"
#include "tests/lib/fdcount.h"

static const struct wire_head request = { .verb = KVBM__VERB__VERB_MATCH, .id = 0x1122334455667788ull };
static struct reply reply;
static struct wire_out out;
static unsigned fds_before;

static unsigned fds_open(void)
{
	struct fdcount c;

	fdcount_take(getpid(), &c);
	return c.total;
}

static void setup(void)
{
	reply_init(&reply);
	wire_out_init(&out, 2 * WIRE_MAX_FRAME);
	fds_before = fds_open();
}

static void teardown(void)
{
	reply_deinit(&reply);
	wire_out_deinit(&out);
	ck_assert_uint_eq(fds_open(), fds_before);
}

static Kvbm__Reply *sent(void)
{
	Kvbm__Reply *r = kvbm__reply__unpack(NULL, wire_out_bytes(&out) - WIRE_HEADER_BYTES,
	                                     out.buf + out.head + WIRE_HEADER_BYTES);

	ck_assert_ptr_nonnull(r);
	return r;
}

START_TEST(every_code_has_its_number)
{
	static const uint32_t codes[] = {
		[REPLY_OK] = 0,
		[REPLY_INVAL] = KVBM_E_INVAL,
		[REPLY_VERSION] = KVBM_E_VERSION,
		[REPLY_PERM] = KVBM_E_PERM,
		[REPLY_NOENT] = KVBM_E_NOENT,
		[REPLY_MISMATCH] = KVBM_E_MISMATCH,
		[REPLY_LIMIT] = KVBM_E_LIMIT,
		[REPLY_NOSPACE] = KVBM_E_NOSPACE,
		[REPLY_BUSY] = KVBM_E_BUSY,
		[REPLY_STALE] = KVBM_E_STALE,
		[REPLY_NOTHELD] = KVBM_E_NOTHELD,
		[REPLY_PROTO] = KVBM_E_PROTO,
		[REPLY_INTERNAL] = KVBM_E_INTERNAL,
	};

	ck_assert_uint_eq(sizeof(codes) / sizeof(codes[0]), REPLY_INTERNAL + 1);
	for (unsigned i = 0; i <= REPLY_INTERNAL; i++) {
		Kvbm__Reply *r;

		ck_assert_uint_eq(reply_wire_code((enum reply_code)i), codes[i]);
		if (i)
			reply_fail(&reply, (enum reply_code)i, "because of %u", i);
		ck_assert_int_eq(reply_send(&reply, &request, 99, &out), 0);
		r = sent();
		ck_assert_uint_eq(r->code, codes[i]);
		ck_assert_uint_eq(r->boot_id, 99);
		ck_assert_int_eq(r->error[0] != '\0', i != 0);
		kvbm__reply__free_unpacked(r, NULL);
		wire_out_deinit(&out);
		wire_out_init(&out, 2 * WIRE_MAX_FRAME);
	}
}
END_TEST

START_TEST(a_code_outside_the_enum_aborts)
{
	(void)reply_wire_code((enum reply_code)77);
}
END_TEST

START_TEST(every_outcome_of_the_store_has_a_code)
{
	static const enum reply_code codes[] = {
		[STORE_E_INVAL] = REPLY_INVAL,     [STORE_E_MISMATCH] = REPLY_MISMATCH, [STORE_E_PERM] = REPLY_PERM,
		[STORE_E_LIMIT] = REPLY_LIMIT,     [STORE_E_NOSPACE] = REPLY_NOSPACE,   [STORE_E_STALE] = REPLY_STALE,
		[STORE_E_NOTHELD] = REPLY_NOTHELD, [STORE_E_NOENT] = REPLY_NOENT,
	};

	for (int i = STORE_E_INVAL; i <= STORE_E_NOENT; i++) {
		reply_fail_store(&reply, i, "thing");
		ck_assert_int_eq(reply.code, codes[i]);
		ck_assert(strncmp(reply.text, "thing: ", 7) == 0);
	}
}
END_TEST

START_TEST(an_outcome_the_store_has_not_aborts)
{
	reply_fail_store(&reply, STORE_E_QUARANTINE, "thing");
}
END_TEST

START_TEST(a_failure_takes_body_and_descriptors_back)
{
	kvbm__hello_reply__init(&reply.body.hello);
	reply.message.hello = &reply.body.hello;
	reply.owned = malloc(10);
	for (unsigned i = 0; i < REPLY_MAX_FDS; i++)
		ck_assert(reply_add_fd(&reply, STDERR_FILENO));
	ck_assert_uint_eq(fds_open(), fds_before + REPLY_MAX_FDS);
	reply_fail(&reply, REPLY_BUSY, "no");
	ck_assert_uint_eq(fds_open(), fds_before);
	ck_assert_ptr_null(reply.message.hello);
	ck_assert_ptr_null(reply.owned);
	ck_assert_uint_eq(reply.n_fds, 0);
}
END_TEST

START_TEST(what_a_peer_named_is_made_harmless)
{
	char name[2 * REPLY_TEXT_MAX];

	memset(name, 'x', sizeof(name));
	name[sizeof(name) - 1] = '\0';
	reply_fail(&reply, REPLY_INVAL, "a\nb\x1b[31m\xff %s", name);
	ck_assert_uint_eq(strlen(reply.text), REPLY_TEXT_MAX - 1);
	ck_assert(strncmp(reply.text, "a?b?[31m? x", 11) == 0);
}
END_TEST

START_TEST(descriptors_are_closed_sent_or_not)
{
	ck_assert(reply_add_fd(&reply, STDERR_FILENO));
	ck_assert_int_ge(fcntl(reply.fds[0], F_GETFD) & FD_CLOEXEC, 1);
	ck_assert_int_eq(reply_send(&reply, &request, 1, &out), 0);
	ck_assert_uint_eq(reply.n_fds, 0);
	ck_assert_uint_eq(out.n_marks, 1);
	ck_assert_uint_eq(fds_open(), fds_before + 1);  /* the output's now; teardown counts again */
	ck_assert(reply_add_fd(&reply, STDERR_FILENO)); /* and this one is never sent */
}
END_TEST

START_TEST(full_output_leaves_everything_with_the_reply)
{
	struct wire_out tiny;

	wire_out_init(&tiny, WIRE_HEADER_BYTES + 4);
	ck_assert(reply_add_fd(&reply, STDERR_FILENO));
	ck_assert_int_eq(reply_send(&reply, &request, 1, &tiny), WIRE_E_FULL);
	ck_assert_uint_eq(reply.n_fds, 1);
	ck_assert_uint_eq(wire_out_bytes(&tiny), 0);
	wire_out_deinit(&tiny);
}
END_TEST

START_TEST(without_descriptors_left_it_is_busy)
{
	struct rlimit had, none;

	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &had), 0);
	none = (struct rlimit){ fds_before, had.rlim_max };
	ck_assert(reply_add_fd(&reply, STDERR_FILENO));
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
	for (int i = 0; i < 3 && reply.code == REPLY_OK; i++)
		(void)reply_add_fd(&reply, STDERR_FILENO);
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &had), 0);
	ck_assert_int_eq(reply.code, REPLY_BUSY);
	ck_assert_uint_eq(reply.n_fds, 0);
}
END_TEST

/* The outer message is written by hand: for every body there is, byte for byte as protobuf-c would. */
START_TEST(bytes_are_those_of_the_schema)
{
	const ProtobufCMessageDescriptor *d = &kvbm__reply__descriptor;
	uint32_t slots[] = { 1, 2, 0xffffffff };
	unsigned scalars = 0;

	for (unsigned i = 0; i < d->n_fields; i++) {
		uint8_t want[256];
		size_t size;

		scalars += d->fields[i].type != PROTOBUF_C_TYPE_MESSAGE;
		if (d->fields[i].type == PROTOBUF_C_TYPE_MESSAGE) {
			protobuf_c_message_init(d->fields[i].descriptor, &reply.body);
			*(void **)((uint8_t *)&reply.message + d->fields[i].offset) = &reply.body;
			if (d->fields[i].descriptor == &kvbm__match_reply__descriptor) {
				reply.body.match.hits = 3;
				reply.body.match.n_slots = 3;
				reply.body.match.slots = slots;
			}
		}
		ck_assert_int_eq(reply_send(&reply, &request, 0x1122334455667788ull, &out), 0);
		reply.message.boot_id = 0x1122334455667788ull;
		size = kvbm__reply__pack(&reply.message, want);
		ck_assert_uint_eq(wire_out_bytes(&out), WIRE_HEADER_BYTES + size);
		ck_assert_mem_eq(out.buf + out.head + WIRE_HEADER_BYTES, want, size);
		wire_out_deinit(&out);
		wire_out_init(&out, 2 * WIRE_MAX_FRAME);
		reply_init(&reply);
	}
	ck_assert_uint_eq(scalars, 3); /* another one has to be written too */
}
END_TEST

START_TEST(an_answer_larger_than_a_frame_says_so)
{
	Kvbm__Reply *r;

	reply.owned = malloc(WIRE_MAX_PAYLOAD + 1u);
	ck_assert_ptr_nonnull(reply.owned);
	memset(reply.owned, 'j', WIRE_MAX_PAYLOAD + 1u);
	kvbm__info_reply__init(&reply.body.info);
	reply.body.info.json = (ProtobufCBinaryData){ WIRE_MAX_PAYLOAD + 1u, (uint8_t *)reply.owned };
	reply.message.info = &reply.body.info;
	ck_assert_int_eq(reply_send(&reply, &request, 1, &out), 0);
	r = sent();
	ck_assert_uint_eq(r->code, KVBM_E_LIMIT);
	ck_assert_ptr_null(r->info);
	kvbm__reply__free_unpacked(r, NULL);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("reply");
	TCase *tc = tcase_create("reply");
	SRunner *runner;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, every_code_has_its_number);
	tcase_add_test(tc, bytes_are_those_of_the_schema);
	tcase_add_test_raise_signal(tc, a_code_outside_the_enum_aborts, 6);
	tcase_add_test(tc, every_outcome_of_the_store_has_a_code);
	tcase_add_test_raise_signal(tc, an_outcome_the_store_has_not_aborts, 6);
	tcase_add_test(tc, a_failure_takes_body_and_descriptors_back);
	tcase_add_test(tc, what_a_peer_named_is_made_harmless);
	tcase_add_test(tc, descriptors_are_closed_sent_or_not);
	tcase_add_test(tc, full_output_leaves_everything_with_the_reply);
	tcase_add_test(tc, without_descriptors_left_it_is_busy);
	tcase_add_test(tc, an_answer_larger_than_a_frame_says_so);
	suite_add_tcase(suite, tc);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
