/* SPDX-License-Identifier: Apache-2.0 */
/* A machine without a GPU, or without its driver: the daemon serves, says why there is no device, and refuses what is for devices. */
#include <check.h>
#include <fcntl.h>
#include <kvbm_device.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"

static const char *const flags[] = { "--g2.size=16M", NULL };

static struct daemon_proc d;
static struct kvbm *kvbm;
static struct kvbm_ns *ns;

static void start(const char *const *daemon_flags)
{
	struct kvbm_options options = { .name = "engine", .timeout_ms = DAEMON_WAIT_MS };
	struct kvbm_model model = { .name = "none", .block_bytes = 4096 };

	unsetenv("LD_LIBRARY_PATH"); /* no stand-in either */
	daemon_start(&d, daemon_flags);
	options.socket = d.socket;
	must(kvbm_open(&options, &kvbm) == 0);
	must(kvbm_attach(kvbm, &model, &ns) == 0);
}

static void end(void)
{
	kvbm_close(kvbm);
	daemon_deinit(&d);
}

static int adopt(int fd)
{
	static uint8_t handle[64];
	const struct kvbm_memory memory = { .handle = fd < 0 ? handle : NULL, .fd = fd, .bytes = 2u << 20 };
	const struct kvbm_plane plane = { 0 };
	const struct kvbm_engine_blocks blocks = { .device = "GPU-00000000-1111-2222-3333-444444444444",
		                                   .n_blocks = 16,
		                                   .memories = &memory,
		                                   .planes = &plane,
		                                   .n_memories = 1,
		                                   .n_planes = 1,
		                                   .run_bytes = 4096,
		                                   .block_stride = 4096 };
	struct kvbm_adoption *adoption;
	int r;

	do
		r = kvbm_adopt(ns, &blocks, &adoption);
	while (r == -KVBM_E_BUSY); /* the driver was not asked yet */
	return r;
}

static bool there_is_one(void)
{
	char *log = daemon_log(&d);
	bool is = strstr(log, "info: g1: GPU-") || strstr(log, "info: g1: MIG-");

	free(log);
	return is;
}

START_TEST(adopting_is_refused_with_the_reason)
{
	char *tiers;

	start(flags);
	ck_assert_int_eq(adopt(-1), -KVBM_E_NOENT);
	if (there_is_one()) {
		end();
		return;
	}
	ck_assert_ptr_nonnull(
		strstr(kvbm_error(kvbm), "there is no device GPU-00000000-1111-2222-3333-444444444444 here: "));
	must(kvbm_info(kvbm, "tiers", NULL, NULL, 0, &tiers) == 0);
	ck_assert_ptr_null(strstr(tiers, "\"g1\""));
	free(tiers);
	end();
}
END_TEST

/* A kernel that can, does not even let the descriptor out; what was begun on that connection is over then. */
START_TEST(descriptors_are_refused)
{
	int fd, r;

	start(flags);
	ck_assert_int_eq(adopt(-1), -KVBM_E_NOENT);
	kvbm_close(kvbm);
	daemon_deinit(&d);
	start((const char *const[]){ "--g2.size=16M", "--g1.devices=none", NULL });
	fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	must(fd >= 0);
	r = adopt(fd);
	ck_assert_msg(r == -KVBM_E_PERM || r == -KVBM_E_NOENT, "%d: %s", r, kvbm_error(kvbm));
	close(fd);
	ck_assert_int_eq(kvbm_ping(kvbm), 0);
	end();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("no_device");
	TCase *t = tcase_create("no_device");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_set_timeout(t, 60);
	tcase_add_test(t, adopting_is_refused_with_the_reason);
	tcase_add_test(t, descriptors_are_refused);
	suite_add_tcase(s, t);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
