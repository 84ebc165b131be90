/* SPDX-License-Identifier: Apache-2.0 */
/* A real daemon that looks at what it has on a drive although nobody asks for it: bytes that were flipped behind its back are found, dropped and counted,
 * after a restart and without any client too. */
#include <check.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>

#include "base/clock.h"
#include "tests/lib/cache.h"
#include "tests/lib/command.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"
#include "tier/nvme_file.h"

#define BLOCK 16384u
#define BLOCKS 128u
#define EACH 40u /* the slot of every so many-th record is damaged */

static struct daemon_proc d;
static struct command command;
static char path[128], path_flag[160], scrub_flag[64];

static const char *const flags[] = { "--g2.size=4M",  "--g2.region_size=2M", "--g2.huge_pages=never",
	                             "--g3.size=65M", "--g3.write=through",  NULL };

static void add_flag(const char *flag)
{
	unsigned n = 0;

	while (d.flags[n])
		n++;
	must_cmp(n, <, DAEMON_MAX_FLAGS - 1);
	d.flags[n] = flag;
}

static void set_scrub(const char *rate)
{
	must(snprintf(scrub_flag, sizeof(scrub_flag), "--g3.scrub=%s", rate) > 0);
}

static void setup(void)
{
	daemon_init(&d, NULL, flags);
	tmpdir_path(&d.dir, "g3.img", path, sizeof(path));
	must(snprintf(path_flag, sizeof(path_flag), "--g3.path=%s", path) > 0);
	add_flag(path_flag);
	set_scrub("0");
	add_flag(scrub_flag);
}

static void teardown(void)
{
	command_deinit(&command);
	daemon_deinit(&d);
}

static json_t *ctl_json(int code, const char *const *words)
{
	const char *all[COMMAND_MAX_WORDS] = { "-o", "json" };

	for (int n = 2; *words; words++)
		all[n++] = *words;
	command_deinit(&command);
	command_ctl(&command, d.socket, all);
	command_expect(&command, code);
	return command_json(&command);
}

#define CTL_JSON(code, ...) ctl_json(code, (const char *const[]){ __VA_ARGS__, NULL })

static uint32_t n_records, n_flipped;

static void flip_record(void *ctx, const struct nvme_file_record *record)
{
	int fd = *(const int *)ctx;
	uint8_t byte;

	if (record->state != NVME_FILE_GOOD || n_records++ % EACH != 0)
		return;
	must(pread(fd, &byte, 1, (off_t)record->offset + 5000) == 1);
	byte ^= 1;
	must(pwrite(fd, &byte, 1, (off_t)record->offset + 5000) == 1);
	n_flipped++;
}

/* All blocks below, the daemon down, and some of the payloads changed. */
static void store_and_flip(void)
{
	struct kvbm_model model = cache_model("kept", BLOCK, 1);
	int fd;
	struct nvme_file_ask ask = { .on_record = flip_record, .ctx = &fd };
	struct nvme_file_report report;
	char why[NVME_WHY_BYTES];
	struct cache c;
	json_t *json;

	daemon_run(&d);
	cache_open(&c, d.socket, &model);
	for (uint32_t first = 0; first < BLOCKS; first += CACHE_CHAIN)
		must_eq(cache_store(&c, first * 2, CACHE_CHAIN), CACHE_CHAIN);
	json = CTL_JSON(0, "drain", "kept");
	must_eq(json_number_at(json, "left"), 0);
	json_decref(json);
	cache_close(&c);
	must_eq(daemon_metric(&d, "blocks_scrubbed_total"), 0);
	daemon_stop(&d);
	fd = open(path, O_RDWR | O_CLOEXEC);
	must(fd >= 0);
	n_records = n_flipped = 0;
	must_eq(nvme_file_check(path, &ask, why, &report), 0);
	must(close(fd) == 0);
	must_eq(n_records, BLOCKS);
}

static void check_dropped(void)
{
	json_t *json, *tier;

	must_eq(daemon_metric(&d, "checksum_errors_total"), n_flipped);
	must_eq(daemon_metric(&d, "g3_slots_used"), BLOCKS - n_flipped);
	must_eq(daemon_metric(&d, "g3_slots_retired"), 0); /* that was once */
	must_eq(daemon_metric(&d, "blocks_onboarded_total"), 0);
	must_eq(daemon_metric(&d, "blocks_stored_total"), daemon_metric(&d, "blocks_resident") +
	                                                          daemon_metric(&d, "blocks_dropped_total") +
	                                                          daemon_metric(&d, "blocks_deduplicated_total"));
	json = CTL_JSON(0, "tiers", "g3");
	tier = json_array_get(json, 0);
	must_eq(json_number_at(tier, "scrub_errors"), n_flipped);
	must_cmp(json_number_at(tier, "scrubbed"), >=, n_flipped);
	must_eq(json_number_at(tier, "retired"), 0);
	json_decref(json);
}

START_TEST(flipped_bytes_that_nobody_asks_for)
{
	store_and_flip();
	must_eq(n_flipped, (BLOCKS + EACH - 1) / EACH);
	set_scrub("1000000%");
	daemon_run(&d);
	daemon_await_metric(&d, "scrub_errors_total", n_flipped);
	check_dropped();
	/* It goes on, round and round, and finds nothing more. */
	for (uint64_t end = clock_now_ns() + DAEMON_WAIT_MS * UINT64_C(1000000); clock_now_ns() < end;)
		if (daemon_metric(&d, "blocks_scrubbed_total") > 3 * BLOCKS)
			break;
	must_cmp(daemon_metric(&d, "blocks_scrubbed_total"), >, 3 * BLOCKS);
	check_dropped();
	daemon_stop(&d);
	json_decref(CTL_JSON(0, "fsck", "--data", path)); /* 0: nothing there is wrong */
}
END_TEST

static unsigned lines_with(const char *text)
{
	char *log = daemon_log(&d);
	unsigned n = 0;

	for (const char *p = log; (p = strstr(p, text)); p++)
		n++;
	free(log);
	return n;
}

/* Nobody is attached, nothing ticks but this. */
START_TEST(without_any_client)
{
	struct pollfd none = { .fd = -1 };

	store_and_flip();
	set_scrub("1000000%");
	daemon_run(&d);
	for (uint64_t end = clock_now_ns() + DAEMON_WAIT_MS * UINT64_C(1000000); clock_now_ns() < end;) {
		if (lines_with("scrub: area") == n_flipped)
			break;
		(void)poll(&none, 1, 1);
	}
	must_eq(lines_with("scrub: area"), n_flipped);
	check_dropped();
	daemon_stop(&d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("scrub");
	TCase *tc = tcase_create("scrub");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, flipped_bytes_that_nobody_asks_for);
	tcase_add_test(tc, without_any_client);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
