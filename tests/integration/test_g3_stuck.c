/* SPDX-License-Identifier: Apache-2.0 */
/* A real daemon on a drive that stops answering [RELIABILITY S6]: what is in memory is served as ever, whoever asks for what is below is told soon, and all of it
 * comes back by itself when the drive does.
 *
 * The drive is a filesystem of its own that is frozen (FIFREEZE): writes to it sleep in the kernel until it is thawed.  Needs the right to mount, and
 * loop devices.  A process beside the test thaws it whatever happens, because nobody whom it holds can be killed.
 */
#include <check.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "tests/lib/cache.h"
#include "tests/lib/command.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"

#define BLOCK 16384u
#define DRIVE_BYTES (96 << 20)

static struct daemon_proc d;
static struct command command;
static char image[128], mountpoint[128], path_flag[160];
static int drive_fd = -1, thawer_fd = -1;
static pid_t thawer;
static bool *not_run; /* told by the test's process */

static const char *const flags[] = { "--g2.size=4M",
	                             "--g2.region_size=2M",
	                             "--g2.huge_pages=never",
	                             "--g3.size=33M",
	                             "--g3.io_timeout=300ms",
	                             "--g3.wait=100ms",
	                             path_flag,
	                             NULL };

/* ---- the drive ---- */

/* Ends when the test does, and leaves nothing frozen. */
static void thawer_start(void)
{
	int fds[2];
	char byte;

	must(pipe2(fds, O_CLOEXEC) == 0);
	thawer = fork();
	must(thawer >= 0);
	if (thawer == 0) {
		(void)close(fds[1]);
		(void)!read(fds[0], &byte, 1);
		(void)ioctl(drive_fd, FITHAW, 0);
		_exit(0);
	}
	must(close(fds[0]) == 0);
	thawer_fd = fds[1];
}

static bool drive_make(void)
{
	char line[400];

	tmpdir_path(&d.dir, "drive.img", image, sizeof(image));
	tmpdir_path(&d.dir, "drive", mountpoint, sizeof(mountpoint));
	must(mkdir(mountpoint, 0700) == 0);
	/* The mount goes with the test. */
	if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
		return false;
	must(snprintf(line, sizeof(line),
	              "PATH=$PATH:/usr/sbin:/sbin; truncate -s %d '%s' && mkfs.ext4 -q -F '%s' && mount -o loop '%s' '%s'",
	              DRIVE_BYTES, image, image, image, mountpoint) < (int)sizeof(line));
	if (system(line) != 0)
		return false;
	drive_fd = open(mountpoint, O_RDONLY | O_CLOEXEC);
	must(drive_fd >= 0);
	thawer_start();
	return true;
}

/* Thawed first: what is in its way may be waiting for that. */
static void drive_thaw(void)
{
	if (drive_fd >= 0)
		(void)ioctl(drive_fd, FITHAW, 0);
}

static void drive_remove(void)
{
	int status;

	if (drive_fd < 0)
		return;
	must(close(thawer_fd) == 0);
	must(waitpid(thawer, &status, 0) == thawer);
	must(close(drive_fd) == 0);
	must(umount2(mountpoint, MNT_DETACH) == 0);
	drive_fd = -1;
}

static void setup(void)
{
	daemon_init(&d, NULL, flags);
}

static void teardown(void)
{
	command_deinit(&command);
	drive_thaw();
	if (d.pid)
		daemon_kill(&d);
	drive_remove();
	daemon_deinit(&d);
}

/* ---- looking ---- */

static bool g3_is(const char *state)
{
	char *text;
	json_t *list;
	bool is;

	must_eq(kvbm_info(daemon_monitor(&d), "tiers", "g3", NULL, 0, &text), 0);
	list = json_loads(text, 0, NULL);
	must(list);
	is = strcmp(json_string_value(json_at(json_array_get(list, 0), "state")), state) == 0;
	json_decref(list);
	free(text);
	return is;
}

/* What a user sees of it. */
static void status_says(const char *text)
{
	command_deinit(&command);
	command_ctl(&command, d.socket, (const char *const[]){ "status", NULL });
	must_contain(command.out, text);
}

/* A block that is only below. */
static uint64_t first_below(const struct cache *c)
{
	for (uint64_t first = 0; first < 1024; first++) {
		uint8_t key[KVBM_KEY_MAX];
		uint32_t tiers;

		cache_keys(c, first * 2 + 2, 1, key);
		must(kvbm_stat(c->ns, key, 1, &tiers) >= 0);
		if (tiers == KVBM_TIER_G3)
			return first * 2 + 2;
	}
	must(!"nothing is below");
	return 0;
}

/* ---- tests ---- */

START_TEST(memory_serves_on_and_the_drive_comes_back)
{
	struct kvbm_model model = cache_model("a", BLOCK, 1);
	struct kvbm_onboard_options options = { .flags = KVBM_HOLD, .timeout_ms = 20000 };
	uint64_t next = 2000, below, end = clock_now_ns() + DAEMON_WAIT_MS * CLOCK_NS_PER_MS;
	uint8_t key[KVBM_KEY_MAX], status;
	struct kvbm_span span;
	struct cache c;

	if (!drive_make()) {
		*not_run = true;
		return;
	}
	must(snprintf(path_flag, sizeof(path_flag), "--g3.path=%s/g3.img", mountpoint) > 0);
	daemon_run(&d);
	cache_open(&c, d.socket, &model);
	cache_store_roots(&c, 2, 640); /* memory has room for 256 */
	below = first_below(&c);
	must(ioctl(drive_fd, FIFREEZE, 0) == 0);

	/* Whoever stores is served, before anybody knows of it and after, and reads what he stored. */
	for (; !g3_is("offline"); next += 16) {
		must(clock_now_ns() < end);
		must_eq(cache_store(&c, next, 8), 8);
		must_eq(cache_verify(&c, next, 8), 8);
	}
	for (unsigned i = 0; i < 100; i++, next += 16) {
		must_eq(cache_store(&c, next, 8), 8);
		must_eq(cache_verify(&c, next, 8), 8);
	}
	status_says("does not answer");
	status_says("g3.img");
	/* Whoever wants what is below is told that it does not come. */
	cache_keys(&c, below, 1, key);
	must_eq(cache_ok(&c, kvbm_onboard(c.ns, key, 1, &options, &status, &span)), 0);
	must_eq(status, KVBM_FAILED);

	must(ioctl(drive_fd, FITHAW, 0) == 0);
	while (!g3_is("online"))
		must(clock_now_ns() < end);
	must_eq(cache_ok(&c, kvbm_onboard(c.ns, key, 1, &options, &status, &span)), 1);
	cache_check(&c, &span, key);
	cache_ok(&c, kvbm_release(c.ns, &span, 1));
	/* And takes new ones. */
	next = daemon_metric(&d, "blocks_offloaded_total");
	cache_store_roots(&c, 100000, 640);
	must_cmp(daemon_metric(&d, "blocks_offloaded_total"), >, next);
	must_eq(daemon_metric(&d, "checksum_errors_total"), 0);
	cache_close(&c);
	daemon_stop(&d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("g3_stuck");
	TCase *t = tcase_create("g3_stuck");
	SRunner *sr;
	int failed;

	not_run = mmap(NULL, sizeof(*not_run), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(not_run != MAP_FAILED);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, memory_serves_on_and_the_drive_comes_back);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	if (failed == 0 && *not_run) {
		printf("g3_stuck: no right to mount, or no loop device\n");
		return 77;
	}
	return failed ? 1 : 0;
}
