/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of config.c, config_value.c and config_read.c. */
#include "config.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct config c;
static struct config_error e;

static int read_text(const char *text)
{
	FILE *f = fmemopen((void *)text, strlen(text), "r");
	int r;

	ck_assert_ptr_nonnull(f);
	e.text[0] = '\0';
	config_init(&c);
	r = config_read(&c, f, "t.conf", &e);
	fclose(f);
	return r == 0 ? config_check(&c, 0, &e) : r;
}

static void accepts(const char *text)
{
	int r = read_text(text);

	ck_assert_msg(r == 0, "%s\nrefused: %s", text, e.text);
}

/* @wanted: what the message must have in it. */
static void refuses(const char *text, const char *wanted)
{
	int r = read_text(text);

	ck_assert_msg(r == CONFIG_E_BAD, "%s\nwas accepted", text);
	ck_assert_msg(strstr(e.text, wanted), "%s\nsays: %s\nwanted: %s", text, e.text, wanted);
}

static char *printed(void (*write)(const struct config *, FILE *), const struct config *of)
{
	char *text = NULL;
	size_t size = 0;
	FILE *f = open_memstream(&text, &size);

	write(of, f);
	fclose(f);
	return text;
}

static void write_sample(const struct config *of, FILE *f)
{
	(void)of;
	config_write_sample(f);
}

/* Without the comments. */
static char *settings_of(char *text)
{
	char *to = text;

	for (char *from = text; *from;) {
		size_t n = strcspn(from, "\n") + 1;

		if (*from != '#') {
			memmove(to, from, n);
			to += n;
		}
		from += n;
	}
	*to = '\0';
	return text;
}

/* Every row: a value that is taken and how it prints, one that is no such value, one out of range (NULL: there is none). */
static const struct row {
	const char *section, *key, *good, *shown, *bad, *beyond;
} rows[] = {
	{ "daemon", "socket", "/run/a.sock", NULL, "a.sock", NULL },
	{ "daemon", "socket_mode", "600", "0600", "0668", "0400" },
	{ "daemon", "socket_group", "kv-bmd", NULL, "a:b", NULL },
	{ "daemon", "allow_uids", "0, 1000,1001", "0,1000,1001", "1000,vllm", NULL },
	{ "daemon", "admin_uids", "1000", NULL, "root", NULL },
	{ "daemon", "log", "debug", NULL, "loud", NULL },
	{ "daemon", "workers", "4", NULL, "four", "65" },
	{ "daemon", "max_sessions", "300", NULL, "-1", "0" },
	{ "daemon", "max_sessions_per_uid", "1000", NULL, "1K", "65537" },
	{ "daemon", "write_timeout", "0.5s", "500ms", "30", "1ms" },
	{ "daemon", "stop_timeout", "0", "0ns", "ten", "2h" },
	{ "g1", "devices", "GPU-1,MIG-2", NULL, "GPU 1", NULL },
	{ "g1", "size", "8G", NULL, "8GB", "2T" },
	{ "g1", "region_size", "64M", NULL, "64 M", "2T" },
	{ "g1", "depth", "8", NULL, "deep", "1025" },
	{ "g1", "timeout", "1m", NULL, "10", "1ms" },
	{ "g2", "size", "0.5G", "512M", "1GB", "1M" },
	{ "g2", "region_size", "64m", "64M", "64 M", "2T" },
	{ "g2", "huge_pages", "require", NULL, "yes", NULL },
	{ "g2", "numa", "off", NULL, "2", NULL },
	{ "g2", "grace", "25", "25%", "x%", "101%" },
	{ "g2", "low_watermark", "10%", NULL, "low", "51%" },
	{ "g3", "path", "/a , /dev/nvme0n1", "/a,/dev/nvme0n1", "/a,b", NULL },
	{ "g3", "size", "2T", NULL, "2TB", "1025T" },
	{ "g3", "write", "through", NULL, "back", NULL },
	{ "g3", "depth", "64", NULL, "deep", "1025" },
	{ "g3", "wait", "0.2s", "200ms", "long", "61s" },
	{ "g3", "io_timeout", "1m", NULL, "10", "1ms" },
	{ "g3", "scrub", "400%", NULL, "often", "1000001%" },
	{ "g3", "write_budget", "1.5T", "1536G", "1 T", "1025T" },
	{ "limits", "leases_per_session", "1", NULL, "1.5", "4294967296" },
	{ "limits", "pins_per_session", "4294967295", NULL, "", "0" },
	{ "limits", "slots_per_session", "10", NULL, "0x10", "0" },
	{ "limits", "slots_per_uid", "70000", NULL, "1e3", "0" },
	{ "limits", "output_bytes", "1M", NULL, "M", "1K" },
	{ "limits", "frame_timeout", "250ms", NULL, "250 ms", "1ms" },
	{ "limits", "namespaces", "1", NULL, "one", "5000" },
	{ "limits", "why_entries", "0", NULL, "none", "99999999" },
	{ "namespace a", "share", "25%", NULL, "25 %", "101%" },
	{ "namespace a", "max", "0.25G", "256M", "%", "65T" },
	{ "namespace a", "uids", "7", NULL, "7,", "4294967295" },
	{ "namespace a", "g1_share", "25%", NULL, "a lot", "101%" },
	{ "namespace a", "g1_max", "0", NULL, "%", "101%" },
	{ "namespace a", "g3_share", "1G", NULL, "a lot", "101%" },
	{ "namespace a", "g3_max", "0", NULL, "%", "101%" },
	{ "namespace a", "g3_write", "never", NULL, "sometimes", NULL },
};
#define N_ROWS (sizeof(rows) / sizeof(rows[0]))

START_TEST(every_row)
{
	const struct row *row = &rows[_i];
	bool is_path = strcmp(row->key, "path") == 0;
	bool is_g1 = strcmp(row->section, "g1") == 0 && strcmp(row->key, "size") == 0;
	char text[256], line[256], *out;

	/* Some do nothing without pools on GPUs, or g3, and are refused then. */
	snprintf(text, sizeof(text), "[%s]\n%s = %s\n%s%s", row->section, row->key, row->good,
	         is_g1 ? "" : "[g1]\nsize = 4G\n", is_path ? "" : "[g3]\npath = /g3\n");
	accepts(text);
	out = printed(config_print, &c);
	snprintf(line, sizeof(line), "# t.conf:2\n%s = %s\n", row->key, row->shown ? row->shown : row->good);
	ck_assert_msg(strstr(out, line), "no '%s' in\n%s", line, out);
	free(out);

	for (int i = 0; i < 2; i++) {
		const char *value = i ? row->beyond : row->bad;

		if (!value)
			continue;
		snprintf(text, sizeof(text), "\n[%s]\n%s = %s\n", row->section, row->key, value);
		snprintf(line, sizeof(line), ".%s: ", row->key);
		refuses(text, "t.conf:3: ");
		ck_assert_msg(strstr(e.text, line), "%s", e.text);
	}
}
END_TEST

/* So that a row without a test is seen. */
START_TEST(no_row_without_a_test)
{
	char *sample = printed(write_sample, NULL), wanted[64];
	unsigned n = 0;

	for (const char *p = sample; (p = strstr(p, "\n#")); p++)
		n += p[2] != ' ' && p[2] != '[';
	ck_assert_uint_eq(n, N_ROWS);
	for (size_t i = 0; i < N_ROWS; i++) {
		snprintf(wanted, sizeof(wanted), "\n#%s =", rows[i].key);
		ck_assert_msg(strstr(sample, wanted), "%s", wanted);
	}
	free(sample);
}
END_TEST

START_TEST(values_mean_what_they_say)
{
	accepts("[g2]\nsize=0.5G\nnuma = false\nhuge_pages = no\n[daemon]\nlog=error\nwrite_timeout = 1.5s ; soon\n");
	ck_assert_uint_eq(c.g2_size_bytes, UINT64_C(512) << 20);
	ck_assert_uint_eq(c.g2_numa, 0);
	ck_assert_uint_eq(c.g2_huge_pages, CONFIG_HUGE_NEVER);
	ck_assert_uint_eq(c.log, 0);
	ck_assert_uint_eq(c.write_timeout_ns, 1500000000);
	accepts("[g2]\nnuma = TRUE\nsize = 146240K\n");
	ck_assert_uint_eq(c.g2_numa, 1);
	ck_assert_uint_eq(c.g2_size_bytes, 9140 * 16384);
	accepts("");
	ck_assert_uint_eq(c.g2_size_bytes, UINT64_C(1) << 30);
	ck_assert_uint_eq(c.socket_mode, 0660);
	ck_assert_uint_eq(c.max_sessions, 1024);
	ck_assert_uint_eq(c.output_bytes, 256 << 10);
	ck_assert_uint_eq(c.frame_timeout_ns, UINT64_C(5000000000));
	ck_assert_uint_eq(c.g2_grace_percent, 10);
	ck_assert_str_eq(c.socket, "");
}
END_TEST

START_TEST(what_is_not_known_is_refused)
{
	refuses("[g2]\nszie = 1G\n", "t.conf:2: g2.szie: did you mean g2.size? unknown key");
	refuses("[daemon]\nsize = 1G\n", "did you mean g1.size?");
	refuses("[g4]\nsize = 1G\n", "t.conf:1: unknown section [g4]; did you mean [g1]?");
	refuses("[limit]\n", "did you mean [limits]?");
	refuses("[g2]\n\n\npath = /dev/hugepages\n", "t.conf:4: g2.path: did you mean g3.path? unknown key");
	refuses("[metrics]\nlisten=\n", "unknown section [metrics]");
	refuses("[g2]\n = 5\n", "unknown key");
	refuses("size = 1G\n", "before the first [section]");
	refuses("[g2]\nsize 1G\n", "neither [section] nor key = value");
	refuses("[g2]\nsize: 1G\n", "neither [section] nor key = value");
	refuses("[g2\nsize = 1G\n", "a section is [name]");
	refuses("[g2] size = 1G\n", "something after the section");
	refuses("[g2]\nsize = 1G # much\n", "begins with ;");
	refuses("[G2]\n", "did you mean [g1]?");
	/* An indented line is a line like any other, not more of the one before. */
	refuses("[daemon]\nsocket = /a\n   lgo = info\n", "t.conf:3: daemon.lgo: did you mean daemon.log?");
	accepts("\xEF\xBB\xBF# a comment\r\n; another\r\n [g2] ; here\r\n\tsize\t=\t2G\r\n");
	ck_assert_uint_eq(c.g2_size_bytes, UINT64_C(2) << 30);
}
END_TEST

START_TEST(twice_is_refused)
{
	refuses("[g2]\nsize = 1G\nsize = 1G\n", "t.conf:3: g2.size: was set in line 2 already");
	refuses("[g2]\nsize = 1G\n[daemon]\n[g2]\nsize=2G\n", "t.conf:5: g2.size: was set in line 2 already");
	refuses("[namespace a]\nshare = 1M\nshare = 1M\n", "t.conf:3: namespace.a.share: was set in line 2 already");
	refuses("[namespace a]\n[namespace a]\n", "t.conf:2: [namespace a] stands in line 1 already");
	refuses("[daemon]\nallow_uids = 5,6,5\n", "twice");
	accepts("[g2]\nsize = 1G\n[daemon]\nlog = info\n[g2]\nnuma = off\n");
}
END_TEST

START_TEST(long_lines_and_strange_bytes)
{
	char text[1024];
	FILE *f;

	snprintf(text, sizeof(text), "[daemon]\nsocket = /%0*d\n", 300, 0);
	refuses(text, "t.conf:2: a line has at most");
	snprintf(text, sizeof(text), "[daemon]\nsocket = /%0*d\n", 107, 0);
	refuses(text, "t.conf:2: daemon.socket: is longer than 107 bytes");
	snprintf(text, sizeof(text), "[daemon]\nsocket = /%0*d\n# %0*d\n", 106, 0, 500, 0);
	accepts(text);
	snprintf(text, sizeof(text), "[namespace %0*d]\n", 64, 0);
	refuses(text, "1 to 63 characters");
	snprintf(text, sizeof(text), "[namespace %0*d]\n", 63, 0);
	accepts(text);
	ck_assert_uint_eq(strlen(c.namespaces[0].name), 63);
	snprintf(text, sizeof(text), "[namespace %0*d]\n", 300, 0);
	refuses(text, "t.conf:1: ");
	refuses("[namespace]\n", "1 to 63 characters");
	refuses("[namespace a b]\n", "no ' '");
	refuses("[g2]\nsize = \x1b[31m1G\n", "'?[31m1G' is not a size");

	f = fmemopen((void *)"[g2]\nsi\0ze = 1G\n", 16, "r");
	config_init(&c);
	ck_assert_int_eq(config_read(&c, f, "t.conf", &e), CONFIG_E_BAD);
	ck_assert_msg(strstr(e.text, "t.conf:2: has a NUL byte"), "%s", e.text);
	fclose(f);
	f = fopen("/", "r");
	ck_assert_int_eq(config_read(&c, f, "t.conf", &e), CONFIG_E_BAD);
	ck_assert_msg(strstr(e.text, "cannot be read"), "%s", e.text);
	fclose(f);
}
END_TEST

START_TEST(many_uids)
{
	char text[512] = "[namespace n]\nuids = ";

	for (unsigned i = 0; i < CONFIG_MAX_UIDS; i++)
		snprintf(text + strlen(text), 16, "%s%u", i ? "," : "", 4294967294u - i);
	accepts(text);
	ck_assert_uint_eq(c.namespaces[0].uids.n, CONFIG_MAX_UIDS);
	ck_assert(config_uids_allow(&c.namespaces[0].uids, 4294967294u));
	ck_assert(!config_uids_allow(&c.namespaces[0].uids, 0));
	ck_assert(config_uids_allow(&c.allow_uids, 0));
	refuses("[daemon]\nallow_uids = 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17\n", "more than 16 uids");
	refuses("[daemon]\nallow_uids = 1,,2\n", "'' is not a uid");
}
END_TEST

START_TEST(contradictions)
{
	refuses("[g2]\nsize = 1G\n[namespace a]\nshare = 60%\n[namespace b]\nshare = 0.5G\n",
	        "t.conf:6: namespace.b.share: guaranteed shares come to 1.09G, of 1G in all (t.conf:2: g2.size)");
	accepts("[g2]\nsize = 1G\n[namespace a]\nshare = 50%\n[namespace b]\nshare = 0.5G\n");
	refuses("[namespace a]\nshare = 50%\nmax = 100M\n",
	        "t.conf:2: namespace.a.share: is more than its maximum (t.conf:3: namespace.a.max)");
	refuses("[namespace a]\nmax = 2G\n", "t.conf:2: namespace.a.max: is more than all there is (g2.size (default))");
	refuses("[namespace a]\n[namespace b]\n[limits]\nnamespaces = 1\n", "t.conf:4: limits.namespaces");
	refuses("[g2]\nregion_size = 2G\n", "t.conf:2: g2.region_size");
	refuses("[g2]\nregion_size = 3M\nhuge_pages = require\n", "multiple of 2M");
	refuses("[daemon]\nmax_sessions = 10\nmax_sessions_per_uid = 11\n",
	        "t.conf:3: daemon.max_sessions_per_uid: 11 is more");
	refuses("[limits]\nslots_per_session=11\nslots_per_uid=10\n", "t.conf:2: limits.slots_per_session");
	/* What was not set follows what was. */
	accepts("[daemon]\nmax_sessions = 10\n");
	ck_assert_uint_eq(c.max_sessions_per_uid, 10);
	accepts("[daemon]\nmax_sessions_per_uid = 5000\n");
	ck_assert_uint_eq(c.max_sessions, 5000);

	accepts("[g2]\nsize = 9G\n");
	ck_assert_int_eq(config_check(&c, UINT64_C(9) << 30, &e), 0);
	ck_assert_int_eq(config_check(&c, UINT64_C(8) << 30, &e), CONFIG_E_BAD);
	ck_assert_str_eq(e.text, "t.conf:2: g2.size: 9G, but this machine has 8G of memory");
}
END_TEST

/* Of a tier that is not there, of files that cannot be its, of more of it than there is. */
START_TEST(contradictions_of_g3)
{
	static const char *const lines[] = { "size = 1G",       "write = never",     "depth = 8", "wait = 2s",
		                             "io_timeout = 1s", "write_budget = 1T", "scrub = 2" };
	char text[256], wanted[128];

	for (size_t i = 0; i < sizeof(lines) / sizeof(*lines); i++) {
		snprintf(text, sizeof(text), "[g3]\n%s\n", lines[i]);
		snprintf(wanted, sizeof(wanted), "t.conf:2: g3.%.*s: does nothing without g3.path",
		         (int)strcspn(lines[i], " "), lines[i]);
		refuses(text, wanted);
		snprintf(text, sizeof(text), "[g3]\n%s\npath =\n", lines[i]);
		refuses(text, wanted);
		snprintf(text, sizeof(text), "[g3]\n%s\npath = /a\n", lines[i]);
		accepts(text);
	}
	accepts("[g3]\nwrite = on-evict\n"); /* what is printed is taken */
	refuses("[g2]\nlow_watermark = 10%\n", "t.conf:2: g2.low_watermark: does nothing without g3.path");
	refuses("[g1]\nregion_size = 2M\n", "t.conf:2: g1.region_size: does nothing without g1.size");
	refuses("[namespace a]\ng1_share = 1G\n", "t.conf:2: namespace.a.g1_share: does nothing without g1.size");
	refuses("[g1]\nsize = 1G\nregion_size = 2G\n", "t.conf:3: g1.region_size: a region is larger");
	refuses("[g1]\nsize = 1G\n[namespace a]\ng1_share = 60%\n[namespace b]\ng1_share = 0.5G\n",
	        "t.conf:6: namespace.b.g1_share: guaranteed shares come to 1.09G, of 1G in all (t.conf:2: g1.size)");
	refuses("[namespace a]\ng3_share = 1G\n", "t.conf:2: namespace.a.g3_share: does nothing");
	refuses("[namespace a]\ng3_max = 1G\n", "t.conf:2: namespace.a.g3_max: does nothing");
	refuses("[namespace a]\ng3_write = never\n", "t.conf:2: namespace.a.g3_write: does nothing");

	refuses("[g3]\npath = g3.img\n", "t.conf:2: g3.path: 'g3.img' is not an absolute path");
	refuses("[g3]\npath = /a,\n", "t.conf:2: g3.path: ends with a comma");
	refuses("[g3]\npath = /a,/b,/a\n", "t.conf:2: g3.path: /a stands there twice");
	refuses("[g3]\npath = /a,//b,/b\n", "/b stands there twice");
	refuses("[daemon]\nsocket = /run/k.sock\n[g3]\npath = /a,/run/k.sock\n",
	        "t.conf:4: g3.path: /run/k.sock is the socket or its lock");
	refuses("[daemon]\nsocket = /run/k.sock\n[g3]\npath = /run/k.sock.lock\n", "is the socket or its lock");
	accepts("[daemon]\nsocket = /run/k.sock\n[g3]\npath = /run/k.sock.g3\n");
	accepts("[g3]\npath = /a , /b/../c\n");
	ck_assert_str_eq(c.g3_path, "/a,/b/../c");
	refuses("[g3]\npath = /1,/2,/3,/4,/5,/6,/7,/8,/9,/10,/11,/12,/13,/14,/15,/16,/17\n", "more than 16 paths");

	refuses("[g3]\npath = /a\nsize = 10G\n[namespace a]\ng3_share = 60%\n[namespace b]\ng3_share = 5G\n",
	        "t.conf:7: namespace.b.g3_share: guaranteed shares come to 11G, of 10G in all (t.conf:3: g3.size)");
	refuses("[g3]\npath = /a\nsize = 1G\n[namespace a]\ng3_max = 2G\n",
	        "t.conf:5: namespace.a.g3_max: is more than all there is (t.conf:3: g3.size)");
	refuses("[g3]\npath = /a\n[namespace a]\ng3_share = 2G\ng3_max = 1G\n",
	        "t.conf:4: namespace.a.g3_share: is more than its maximum (t.conf:5: namespace.a.g3_max)");
	refuses("[g3]\npath = /a\n[namespace a]\ng3_share = 60%\n[namespace b]\ng3_share = 41%\n",
	        "t.conf:6: namespace.b.g3_share: guaranteed shares come to more than 100%");
	accepts("[g3]\npath = /a\n[namespace a]\ng3_share = 60%\n[namespace b]\ng3_share = 5T\ng3_max=6T\n");
}
END_TEST

START_TEST(namespaces)
{
	const struct config_namespace *ns;

	accepts("[g2]\nsize = 1G\n[namespace meta-llama/Llama-3.1:fp8]\nshare = 25%\nuids = 5\n[namespace empty]\n");
	ck_assert_uint_eq(c.n_namespaces, 2);
	ns = config_find_namespace(&c, "meta-llama/Llama-3.1:fp8");
	ck_assert_ptr_nonnull(ns);
	ck_assert_uint_eq(config_amount_bytes(&ns->share, c.g2_size_bytes), 256 << 20);
	ck_assert_uint_eq(config_amount_bytes(&ns->max, c.g2_size_bytes), 1 << 30);
	ck_assert(config_uids_allow(&ns->uids, 5) && !config_uids_allow(&ns->uids, 6));
	ns = config_find_namespace(&c, "empty");
	ck_assert_uint_eq(config_amount_bytes(&ns->share, c.g2_size_bytes), 0);
	ck_assert_ptr_null(config_find_namespace(&c, "other"));

	ck_assert_int_eq(config_set(&c, "namespace.meta-llama/Llama-3.1:fp8.max", "512M", CONFIG_FROM_FLAG, &e), 0);
	ck_assert_uint_eq(c.namespaces[0].max.value, 512 << 20);
	ck_assert_int_eq(config_set(&c, "namespace.new.share", "1M", CONFIG_FROM_FLAG, &e), 0);
	ck_assert_uint_eq(c.n_namespaces, 3);
	ck_assert_int_eq(config_set(&c, "namespace.share", "1M", CONFIG_FROM_FLAG, &e), CONFIG_E_BAD);
	ck_assert_str_eq(e.text, "namespace.share: say which: namespace.NAME.share");
	ck_assert_int_eq(config_set(&c, "namespace.a b.share", "1M", CONFIG_FROM_FLAG, &e), CONFIG_E_BAD);
	ck_assert_int_eq(config_set(&c, "namespace.a.shrae", "1M", CONFIG_FROM_FLAG, &e), CONFIG_E_BAD);
	ck_assert_int_eq(config_set(&c, "g2.x.size", "1M", CONFIG_FROM_FLAG, &e), CONFIG_E_BAD);
	ck_assert_int_eq(config_set(&c, "size", "1M", CONFIG_FROM_FLAG, &e), CONFIG_E_BAD);
	ck_assert_int_eq(config_set(&c, ".size", "1M", CONFIG_FROM_FLAG, &e), CONFIG_E_BAD);
	ck_assert_int_eq(config_set(&c, "", "1M", CONFIG_FROM_FLAG, &e), CONFIG_E_BAD);
	ck_assert_int_eq(config_set(&c, "g2.size", "much", CONFIG_FROM_FLAG, &e), CONFIG_E_BAD);
	ck_assert_str_eq(e.text, "--g2.size: 'much' is not a size such as 4096, 16K or 0.5G");
	ck_assert_uint_eq(c.g2_size_bytes, 1 << 30);
}
END_TEST

static int read_env(const char *variable)
{
	char *env[] = { (char *)"PATH=/bin", (char *)variable, (char *)"KVBM_SOCKET=/a", NULL };

	e.text[0] = '\0';
	return config_read_env(&c, env, &e);
}

START_TEST(environment)
{
	accepts("[g2]\nsize = 1G\n[namespace a.b]\n[namespace c]\n");
	ck_assert_int_eq(read_env("KVBMD_G2_SIZE=2G"), 0);
	ck_assert_uint_eq(c.g2_size_bytes, UINT64_C(2) << 30);
	ck_assert_int_eq(read_env("KVBMD_DAEMON_MAX_SESSIONS_PER_UID=7"), 0);
	ck_assert_uint_eq(c.max_sessions_per_uid, 7);
	ck_assert_int_eq(read_env("KVBMD_NAMESPACE_A_B_SHARE=10%"), 0);
	ck_assert_uint_eq(c.namespaces[0].share.value, 10);
	/* Its value counts, not that it is there. */
	ck_assert_int_eq(read_env("KVBMD_G2_NUMA=false"), 0);
	ck_assert_uint_eq(c.g2_numa, 0);
	ck_assert_int_eq(read_env("KVBMD_G2_SIZE="), CONFIG_E_BAD);
	ck_assert_int_eq(read_env("KVBMD_G2_SIZE=x"), CONFIG_E_BAD);
	ck_assert_str_eq(e.text, "KVBMD_G2_SIZE: 'x' is not a size such as 4096, 16K or 0.5G");
	ck_assert_int_eq(read_env("KVBMD_G2_SZIE=1G"), CONFIG_E_BAD);
	ck_assert_int_eq(read_env("KVBMD_NAMESPACE_X_SHARE=1G"), CONFIG_E_BAD);
	ck_assert_int_eq(read_env("KVBMD_=1G"), CONFIG_E_BAD);
	ck_assert_int_eq(read_env("KVBMD_SERVICE_HOST=10.0.0.1"), 0);
	ck_assert_int_eq(read_env("KVBMD_PORT_80_TCP=tcp://10.0.0.1:80"), 0);
	accepts("[namespace a.b]\n[namespace a_b]\n");
	ck_assert_int_eq(read_env("KVBMD_NAMESPACE_A_B_SHARE=1M"), CONFIG_E_BAD);
	ck_assert_msg(strstr(e.text, "more than one namespace"), "%s", e.text);
}
END_TEST

START_TEST(flag_over_environment_over_file)
{
	char path[] = "/tmp/kvbmd-config-XXXXXX";
	char *env[] = { (char *)"KVBMD_G2_GRACE=20%", (char *)"KVBMD_DAEMON_WORKERS=2", NULL };
	const char *const flags[] = { "daemon.workers=3", "daemon.socket=/tmp/x.sock" };
	struct config_sources sources = { .file = path, .env = env, .flags = flags, .n_flags = 2 };
	int fd = mkstemp(path);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(dprintf(fd, "[g2]\ngrace = 30%%\nsize = 64M\n[daemon]\nworkers = 1\n"), 49);
	ck_assert_msg(config_load(&sources, &c, &e) == 0, "%s", e.text);
	ck_assert_uint_eq(c.g2_size_bytes, 64 << 20);
	ck_assert_uint_eq(c.g2_grace_percent, 20);
	ck_assert_uint_eq(c.workers, 3);
	ck_assert_str_eq(c.socket, "/tmp/x.sock");

	c.workers = 77;
	ck_assert_int_eq(dprintf(fd, "nonsense = 1\n"), 13);
	ck_assert_int_eq(config_load(&sources, &c, &e), CONFIG_E_BAD);
	ck_assert_uint_eq(c.workers, 77); /* untouched */
	unlink(path);
	ck_assert_int_eq(config_load(&sources, &c, &e), CONFIG_E_BAD);
	ck_assert_msg(strstr(e.text, "cannot be read: No such file"), "%s", e.text);
	close(fd);

	sources = (struct config_sources){ .file = "/dev/null", .flags = (const char *const[]){ "g2.size" }, .n_flags = 1 };
	ck_assert_int_eq(config_load(&sources, &c, &e), CONFIG_E_BAD);
	sources.flags = (const char *const[]){ "g2.size=64T" };
	ck_assert_int_eq(config_load(&sources, &c, &e), CONFIG_E_BAD);
	ck_assert_msg(strstr(e.text, "--g2.size: 64T, but this machine has"), "%s", e.text);
}
END_TEST

START_TEST(default_socket)
{
	char path[CONFIG_PATH_SIZE], dir[256];
	struct config_sources sources = { .file = "/dev/null" };

	setenv("RUNTIME_DIRECTORY", "/run/a:/run/b", 1);
	setenv("XDG_RUNTIME_DIR", "/run/user/5", 1);
	ck_assert_int_eq(config_default_socket(path, &e), 0);
	ck_assert_str_eq(path, "/run/a/kvbmd.sock");
	ck_assert_msg(config_load(&sources, &c, &e) == 0, "%s", e.text);
	ck_assert_str_eq(c.socket, "/run/a/kvbmd.sock");
	setenv("RUNTIME_DIRECTORY", "", 1);
	ck_assert_int_eq(config_default_socket(path, &e), 0);
	ck_assert_str_eq(path, "/run/user/5/kvbmd.sock");
	unsetenv("XDG_RUNTIME_DIR");
	ck_assert_int_eq(config_default_socket(path, &e), 0);
	ck_assert_str_eq(path, "/run/kvbmd/kvbmd.sock");
	snprintf(dir, sizeof(dir), "/%0*d", 95, 0);
	setenv("RUNTIME_DIRECTORY", dir, 1);
	ck_assert_int_eq(config_default_socket(path, &e), 0);
	ck_assert_uint_eq(strlen(path), CONFIG_PATH_SIZE - 1);
	snprintf(dir, sizeof(dir), "/%0*d", 96, 0);
	setenv("RUNTIME_DIRECTORY", dir, 1);
	ck_assert_int_eq(config_default_socket(path, &e), CONFIG_E_BAD);
}
END_TEST

START_TEST(reload)
{
	static struct config old, merged;
	char kept[128];

	accepts("[g2]\nsize = 1G\n[daemon]\nlog = info\n[namespace a]\nshare = 1M\n");
	old = c;
	ck_assert_int_eq(config_reload(&old, &c, &merged, kept, sizeof(kept), &e), 0);
	ck_assert_str_eq(kept, "");
	accepts("[g2]\nsize = 2G\n[daemon]\nlog = debug\nsocket = /run/new.sock\n[namespace a]\nshare = 2M\n");
	ck_assert_int_eq(config_reload(&old, &c, &merged, kept, sizeof(kept), &e), 0);
	ck_assert_str_eq(kept, "daemon.socket, g2.size");
	ck_assert_uint_eq(merged.log, 3);
	ck_assert_uint_eq(merged.g2_size_bytes, 1 << 30);
	ck_assert_str_eq(merged.socket, "");
	ck_assert_uint_eq(merged.namespaces[0].share.value, 2 << 20);
	/* What g3 is stays, what is done with it does not. */
	accepts("[g3]\npath = /a\nsize = 1G\n[namespace a]\n");
	old = c;
	accepts("[g3]\npath = /b\nsize = 2G\nwrite = through\nwait = 3s\ndepth = 5\nwrite_budget = 1T\nscrub = 7\n"
	        "io_timeout = 1s\n[g2]\nlow_watermark = 7\n[namespace a]\ng3_max = 50%\ng3_share = 1M\ng3_write = if-hit\n");
	ck_assert_int_eq(config_reload(&old, &c, &merged, kept, sizeof(kept), &e), 0);
	ck_assert_str_eq(kept, "g2.low_watermark, g3.path, g3.size, g3.depth, g3.io_timeout, g3.write_budget");
	ck_assert_uint_eq(merged.g3_write, CONFIG_WRITE_THROUGH);
	ck_assert_uint_eq(merged.g3_wait_ns, UINT64_C(3000000000));
	ck_assert_uint_eq(merged.g3_scrub_percent, 7);
	ck_assert_uint_eq(merged.namespaces[0].g3_write, CONFIG_WRITE_IF_HIT);
	ck_assert_uint_eq(merged.namespaces[0].g3_max.value, 50);
	ck_assert_uint_eq(merged.namespaces[0].g3_share.value, 1 << 20);
	ck_assert_str_eq(merged.g3_path, "/a");
	/* Settings of a tier that this daemon does not have. */
	accepts("");
	old = c;
	accepts("[g3]\npath = /a\nwrite = through\n");
	ck_assert_int_eq(config_reload(&old, &c, &merged, kept, sizeof(kept), &e), CONFIG_E_BAD);
	/* Right by itself, but not with what must stay. */
	accepts("[g2]\nsize = 1G\n");
	old = c;
	accepts("[g2]\nsize = 2G\n[namespace a]\nshare = 1.5G\n");
	ck_assert_int_eq(config_reload(&old, &c, &merged, kept, sizeof(kept), &e), CONFIG_E_BAD);
}
END_TEST

START_TEST(print_reads_back)
{
	char *first, *second;

	accepts("[g2]\nsize = 0.3G\n[daemon]\nallow_uids = 1,2\nwrite_timeout=1.5s\n[namespace a]\nmax = 50%\n[namespace b]\n");
	first = printed(config_print, &c);
	accepts(first);
	second = printed(config_print, &c);
	settings_of(first);
	settings_of(second);
	ck_assert_str_eq(first, second);
	ck_assert_uint_eq(c.g2_size_bytes, 322122547);
	free(first);
	free(second);
}
END_TEST

/* The caller frees. */
static char *source_file(const char *name)
{
	char *text = calloc(1, 65536), path[4096];
	const char *root = getenv("KVBM_SOURCE");
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", root ? root : ".", name);
	f = fopen(path, "r");
	ck_assert_msg(f != NULL, "%s", path);
	ck_assert_uint_lt(fread(text, 1, 65535, f), 65535);
	fclose(f);
	return text;
}

START_TEST(sample_is_the_committed_file)
{
	char *sample = printed(write_sample, NULL), *committed;
	FILE *f;

	accepts(sample); /* all defaults */
	if (getenv("KVBM_WRITE_SAMPLE")) {
		f = fopen("conf/kvbmd.conf", "w");
		ck_assert_ptr_nonnull(f);
		fputs(sample, f);
		fclose(f);
	}
	committed = source_file("conf/kvbmd.conf");
	/* KVBM_WRITE_SAMPLE=1 in the environment of this test, run at the top of the tree, mends it. */
	ck_assert_msg(strcmp(sample, committed) == 0, "conf/kvbmd.conf is not what config_write_sample() writes");
	free(sample);
	free(committed);
}
END_TEST

/* Each key has its place there, with the default that it has. */
START_TEST(manual_has_every_key)
{
	char *sample = printed(write_sample, NULL), *manual = source_file("packaging/man/kvbmd.conf.5"), text[256], *at;
	char *section = manual;

	for (char *p = sample; (p = strpbrk(p, "\n"));) {
		size_t name, value;

		p++;
		p += *p == '#';
		if (*p == '[') {
			snprintf(text, sizeof(text), "\n.SH %.*s\n", (int)strcspn(p, "\n"), p);
			section = strstr(manual, text);
			ck_assert_msg(section != NULL, "no '%s' in kvbmd.conf(5)", text + 1);
		}
		name = strcspn(p, " \n");
		value = strcspn(p, "\n") - name;
		if (name == 0 || *p == '[' || p[-1] != '#')
			continue;
		snprintf(text, sizeof(text), "\n.B %.*s\n", (int)name, p);
		at = strstr(section, text);
		ck_assert_msg(at != NULL, "no '%s' in kvbmd.conf(5)", text + 1);
		snprintf(text, sizeof(text), "\nDefault: %.*s", value > 3 ? (int)value - 3 : 5,
		         value > 3 ? p + name + 3 : "empty");
		at = strstr(at, "\nDefault: ");
		ck_assert_msg(at && strncmp(at, text, strlen(text)) == 0 && strchr(".,", at[strlen(text)]),
		              "%.*s: not '%s'", (int)name, p, text + 1);
	}
	free(sample);
	free(manual);
}
END_TEST

/* The sample with every comment taken from its keys is the defaults too. */
START_TEST(sample_values_are_the_defaults)
{
	char *sample = printed(write_sample, NULL), *defaults, *written, *from, *to;

	for (from = to = sample; *from; from++) {
		if (*from == '#' && from[1] != ' ' && (from == sample || from[-1] == '\n'))
			continue;
		*to++ = *from;
	}
	*to = '\0';
	accepts(sample);
	ck_assert_uint_eq(c.n_namespaces, 1);
	ck_assert_str_eq(c.namespaces[0].name, "NAME");
	c.n_namespaces = 0;
	memset(c.where, 0, sizeof(c.where));
	written = printed(config_print, &c);
	config_init(&c);
	defaults = printed(config_print, &c);
	ck_assert_str_eq(written, defaults);
	free(written);
	free(defaults);
	free(sample);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("config");
	TCase *tc = tcase_create("config");
	SRunner *sr;
	int failed;

	tcase_add_loop_test(tc, every_row, 0, N_ROWS);
	tcase_add_test(tc, no_row_without_a_test);
	tcase_add_test(tc, values_mean_what_they_say);
	tcase_add_test(tc, what_is_not_known_is_refused);
	tcase_add_test(tc, twice_is_refused);
	tcase_add_test(tc, long_lines_and_strange_bytes);
	tcase_add_test(tc, many_uids);
	tcase_add_test(tc, contradictions);
	tcase_add_test(tc, contradictions_of_g3);
	tcase_add_test(tc, namespaces);
	tcase_add_test(tc, environment);
	tcase_add_test(tc, flag_over_environment_over_file);
	tcase_add_test(tc, default_socket);
	tcase_add_test(tc, reload);
	tcase_add_test(tc, print_reads_back);
	tcase_add_test(tc, sample_is_the_committed_file);
	tcase_add_test(tc, manual_has_every_key);
	tcase_add_test(tc, sample_values_are_the_defaults);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
