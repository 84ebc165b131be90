/* SPDX-License-Identifier: Apache-2.0 */
/* The command line where there is a tier below host memory: what is where, moving it, and its file with the daemon down. */
#include <check.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/lib/cache.h"
#include "tests/lib/command.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"

#define BLOCK 16384u
#define N_BLOCKS 512u /* twice what memory has room for */
#define ABSENT "00112233445566770011223344556677"

static const char *const flags[] = { "--g2.size=4M",  "--g2.region_size=2M", "--g2.huge_pages=never",
	                             "--g3.size=33M", "--g3.wait=30s",       NULL };

static struct daemon_proc d;
static struct cache c;
static struct command command;
static char path[128], path_flag[160], keys[N_BLOCKS][2 * KVBM_KEY_MAX + 1]; /* in hex */

/* A daemon with one namespace, and eight chains of 64 blocks in it, the older ones in the file only. */
static void setup(void)
{
	struct kvbm_model model = cache_model("a", BLOCK, 1);
	uint8_t bytes[CACHE_CHAIN * KVBM_KEY_MAX];

	daemon_init(&d, NULL, flags);
	tmpdir_path(&d.dir, "g3.img", path, sizeof(path));
	must(snprintf(path_flag, sizeof(path_flag), "--g3.path=%s", path) > 0);
	d.flags[5] = path_flag;
	daemon_run(&d);
	cache_open(&c, d.socket, &model);
	for (uint32_t first = 0; first < N_BLOCKS; first += CACHE_CHAIN) {
		must_eq(cache_store(&c, 2 * first, CACHE_CHAIN), CACHE_CHAIN);
		cache_keys(&c, 2 * first, CACHE_CHAIN, bytes);
		for (uint32_t i = 0; i < CACHE_CHAIN; i++)
			for (uint32_t k = 0; k < c.key_bytes; k++)
				snprintf(keys[first + i] + 2 * k, 3, "%02x", bytes[i * c.key_bytes + k]);
	}
}

static void teardown(void)
{
	command_deinit(&command);
	cache_close(&c);
	daemon_deinit(&d);
}

static const char *ctl(int code, const char *const *words)
{
	command_deinit(&command);
	command_ctl(&command, d.socket, words);
	command_expect(&command, code);
	return command.out;
}

#define CTL(code, ...) ctl(code, (const char *const[]){ __VA_ARGS__, NULL })

static json_t *ctl_json(int code, const char *const *words)
{
	const char *all[COMMAND_MAX_WORDS] = { "-o", "json" };

	for (int n = 2; *words; words++)
		all[n++] = *words;
	ctl(code, all);
	must_eq(strlen(command.err), 0);
	return command_json(&command);
}

#define CTL_JSON(code, ...) ctl_json(code, (const char *const[]){ __VA_ARGS__, NULL })

/* "g2", "g3" or "g2,g3". */
static void expect_tiers(const char *key, const char *tiers)
{
	json_t *block = CTL_JSON(0, "block", key);
	const json_t *list = json_at(block, "tiers"), *one;
	char text[16] = "";
	size_t i;

	json_array_foreach(list, i, one)
	{
		strcat(text, i ? "," : "");
		strcat(text, json_string_value(one));
	}
	must_contain(tiers, text);
	must_eq(strlen(tiers), strlen(text));
	json_decref(block);
}

static double tier_number(const char *name)
{
	json_t *list = CTL_JSON(0, "tiers", "g3");
	double number = json_number_at(json_array_get(list, 0), name);

	json_decref(list);
	return number;
}

START_TEST(what_is_where)
{
	json_t *json;

	expect_tiers(keys[0], "g3");
	json = CTL_JSON(0, "block", keys[1]);
	must_contain(json_string_value(json_at(json, "state")), "below");
	must(json_is_true(json_at(json, "has_parent")));
	must(json_number_at(json, "g3.area") >= 0 && json_number_at(json, "g3.place") >= 0);
	must(!json_object_get(json, "slot"));
	json_decref(json);
	json = CTL_JSON(0, "why", keys[0]);
	must_contain(json_string_value(json_at(json, "reason")), "present");
	must_contain(json_string_value(json_array_get(json_at(json, "tiers"), 0)), "g3");
	json_decref(json);
	json = CTL_JSON(0, "match", keys[0], keys[1], keys[2]);
	must_eq(json_number_at(json, "hits"), 3);
	json_decref(json);
	CTL(1, "block", ABSENT);

	must_eq(tier_number("slots"), tier_number("free") + tier_number("used") + tier_number("quarantined"));
	must_cmp(tier_number("written_bytes"), >=, 256 * BLOCK);
	must_eq(setenv("COLUMNS", "80", 1), 0);
	CTL(0, "tiers");
	must_contain(command.out, "name  state   size_bytes  used_bytes");
	must_contain(command.out, "g3: 0 in flight");
	must_contain(command.out, "g3: written today ");
	for (const char *line = CTL(0, "namespaces"); *line; line += strcspn(line, "\n") + 1)
		must_cmp(strcspn(line, "\n"), <=, 80);
	must_contain(command.out, "g3_used");
	must_eq(setenv("COLUMNS", "30", 1), 0);
	must(!strstr(CTL(0, "namespaces"), "g3_used"));
	unsetenv("COLUMNS");
	must_contain(CTL(0, "status"), "\ng3    online");
	must_contain(CTL(0, "namespaces", "a"), "g3.write                   on-evict\n");
	must_contain(CTL(0, "doctor"), "g3 path      ");
}
END_TEST

START_TEST(up_and_down)
{
	json_t *json = CTL_JSON(0, "prefetch", keys[0], keys[1], keys[2]);

	must_eq(json_number_at(json, "asked"), 3);
	must_eq(json_number_at(json, "in_memory"), 3);
	must_eq(json_number_at(json, "not"), 0);
	json_decref(json);
	for (int i = 0; i < 3; i++)
		expect_tiers(keys[i], "g2,g3");
	must_eq(cache_verify(&c, 0, 3), 3);
	json = CTL_JSON(1, "prefetch", "-n", "a", keys[64], ABSENT, keys[66]);
	must_eq(json_number_at(json, "in_memory"), 1);
	json_decref(json);
	expect_tiers(keys[66], "g3"); /* it is behind the end of the prefix */

	expect_tiers(keys[N_BLOCKS - 1], "g2");
	json = CTL_JSON(0, "drain");
	must_cmp(json_number_at(json, "written"), >, 0);
	must_eq(json_number_at(json, "left"), 0);
	must(json_is_null(json_at(json, "namespace")));
	json_decref(json);
	expect_tiers(keys[N_BLOCKS - 1], "g2,g3");
	must_contain(CTL(0, "drain", "a"), "wrote 0 blocks down; 0 are in memory only");
	CTL(1, "drain", "nobody");
	must_contain(command.err, "no such namespace");

	/* What is dropped goes from both. */
	must_contain(CTL(0, "drop", "-n", "a", keys[2], keys[66]), "dropped 2 blocks");
	CTL(1, "block", keys[2]);
	CTL(1, "block", keys[66]);
}
END_TEST

/* The first file of a report. */
static json_t *file_json(int code, const char *const *words)
{
	json_t *list = ctl_json(code, words), *one = json_incref(json_array_get(list, 0));

	must(one);
	json_decref(list);
	return one;
}

#define FILE_JSON(code, ...) file_json(code, (const char *const[]){ __VA_ARGS__, NULL })

static void damage(uint64_t offset, uint64_t n)
{
	static const uint8_t junk[65536] = { [0 ... 65535] = 0x5a };
	int fd = open(path, O_WRONLY);

	must(fd >= 0 && n <= sizeof(junk));
	must_eq(pwrite(fd, junk, n, (off_t)offset), n);
	close(fd);
}

START_TEST(the_file_with_the_daemon_down)
{
	json_t *json = FILE_JSON(1, "fsck", path);
	const json_t *listed;
	uint64_t offset;

	must_contain(json_string_value(json_at(json, "why")), "in use");
	must_contain(json_string_value(json_at(json, "advice")), "stop the daemon");
	json_decref(json);
	json_decref(CTL_JSON(0, "drain"));
	daemon_stop(&d);

	json = FILE_JSON(0, "fsck", "--data", path);
	must_contain(json_string_value(json_at(json, "state")), "good");
	must(json_is_true(json_at(json, "clean")));
	must_eq(json_number_at(json, "blocks"), N_BLOCKS);
	must_eq(json_number_at(json, "payloads_good"), N_BLOCKS);
	must_eq(json_number_at(json, "payloads_wrong"), 0);
	must_contain(json_string_value(json_at(json_array_get(json_at(json, "by_area"), 0), "namespace")), "a");
	json_decref(json);
	must_contain(CTL(0, "fsck", path), "superblocks_good           5\n");

	json = FILE_JSON(0, "dump", path);
	listed = json_at(json, "listed");
	must_eq(json_array_size(listed), N_BLOCKS);
	must_contain(json_string_value(json_at(json_array_get(listed, 0), "payload")), "unread");
	offset = (uint64_t)json_number_at(json_array_get(listed, 7), "offset");
	json_decref(json);
	json = FILE_JSON(0, "dump", "--limit", "3", "--data", path);
	must_eq(json_array_size(json_at(json, "listed")), 3);
	json_decref(json);

	/* A payload. */
	damage(offset + 100, 1);
	json = FILE_JSON(0, "fsck", path);
	json_decref(json);
	json = FILE_JSON(1, "fsck", "--data", path);
	must_eq(json_number_at(json, "payloads_wrong"), 1);
	json_decref(json);

	/* A superblock, which can be mended. */
	damage(4096, 4096);
	json = FILE_JSON(1, "fsck", path);
	must_eq(json_number_at(json, "superblocks_damaged"), 1);
	must_contain(json_string_value(json_at(json, "state")), "damaged");
	json_decref(json);
	json = FILE_JSON(0, "fsck", "--repair", path);
	must_contain(json_string_value(json_at(json, "state")), "repaired");
	json_decref(json);
	json_decref(FILE_JSON(0, "fsck", path));

	/* All of them: empty is all it can be made. */
	damage(0, 4 * 4096);
	damage((33u << 20) - 4096, 4096);
	json = FILE_JSON(1, "fsck", "--repair", path);
	must_contain(json_string_value(json_at(json, "state")), "refused");
	json_decref(json);
}
END_TEST

START_TEST(files_that_are_not_ours)
{
	char other[128];
	json_t *json;

	tmpdir_path(&d.dir, "thesis", other, sizeof(other));
	tmpdir_write(&d.dir, "thesis", "somebody's");
	for (int i = 0; i < 3; i++) {
		static const char *const ways[] = { "--repair", "--wipe", "--data" };
		char *text;

		json = FILE_JSON(1, "fsck", ways[i], other);
		must_contain(json_string_value(json_at(json, "state")), "refused");
		json_decref(json);
		text = tmpdir_read(other);
		must(strcmp(text, "somebody's") == 0);
		free(text);
	}
	tmpdir_path(&d.dir, "nothing", other, sizeof(other));
	must_contain(CTL(1, "dump", other), "cannot be opened");
}
END_TEST

START_TEST(a_wiped_file_is_new)
{
	daemon_stop(&d);
	json_decref(FILE_JSON(0, "fsck", "--wipe", path));
	daemon_run(&d);
	cache_ok(&c, kvbm_ping(c.kvbm));
	must_eq(daemon_metric(&d, "blocks_recovered_total"), 0);
	CTL(1, "block", keys[0]);
	must_eq(cache_store(&c, 0, 16), 16);
	json_decref(CTL_JSON(0, "drain"));
	expect_tiers(keys[3], "g2,g3");
}
END_TEST

/* A reason that only a tier below has. */
START_TEST(why_of_what_was_dropped_below)
{
	json_t *why;

	/* 33 MiB take two thousand. */
	for (uint32_t first = N_BLOCKS; first < 4096; first += CACHE_CHAIN)
		must_eq(cache_store(&c, 2 * first, CACHE_CHAIN), CACHE_CHAIN);
	why = CTL_JSON(0, "why", keys[0]);
	must_contain(json_string_value(json_at(why, "reason")), "dropped-g3");
	must_eq(json_array_size(json_at(why, "tiers")), 0);
	json_decref(why);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("kvbmctl g3");
	TCase *tc = tcase_create("kvbmctl g3");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 240);
	tcase_add_test(tc, what_is_where);
	tcase_add_test(tc, up_and_down);
	tcase_add_test(tc, the_file_with_the_daemon_down);
	tcase_add_test(tc, files_that_are_not_ours);
	tcase_add_test(tc, a_wiped_file_is_new);
	tcase_add_test(tc, why_of_what_was_dropped_below);
	suite_add_tcase(suite, tc);
	sr = srunner_create(suite);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
