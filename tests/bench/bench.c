/* SPDX-License-Identifier: Apache-2.0 */
/* Medians, spreads, placement, and the lines that say them. */
#include "tests/bench/bench.h"

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/utsname.h>

static cpu_set_t all_cpus;

/* ---- numbers ---- */

static int compare_u32(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static int compare_double(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

void samples_init(struct samples *s, uint32_t cap)
{
	*s = (struct samples){ .ns = malloc(cap * sizeof(*s->ns)), .cap = cap };
	must(s->ns);
	memset(s->ns, 0, cap * sizeof(*s->ns)); /* no page fault in a round */
}

void samples_deinit(struct samples *s)
{
	free(s->ns);
	*s = (struct samples){ 0 };
}

double samples_quantile(struct samples *s, double q)
{
	uint32_t at;

	must(s->n > 0);
	qsort(s->ns, s->n, sizeof(*s->ns), compare_u32);
	at = (uint32_t)(q * s->n);
	return s->ns[at < s->n ? at : s->n - 1] / 1e3;
}

double bench_quantile(double *values, unsigned n, double q)
{
	double at = q * (n - 1);
	unsigned low = (unsigned)at;

	must(n > 0);
	qsort(values, n, sizeof(*values), compare_double);
	return low + 1 < n ? values[low] + (values[low + 1] - values[low]) * (at - low) : values[n - 1];
}

/* ---- rounds ---- */

void bench_from(struct figure *f, const double *limits, const double *ours, unsigned n)
{
	double ratios[BENCH_MAX_ROUNDS], values[BENCH_MAX_ROUNDS];

	must(n > 0 && n <= BENCH_MAX_ROUNDS);
	memcpy(values, ours, n * sizeof(*values));
	f->value = bench_quantile(values, n, 0.5);
	f->limit = f->ratio = 0;
	f->rounds = n;
	memcpy(ratios, ours, n * sizeof(*ratios));
	if (limits) {
		for (unsigned i = 0; i < n; i++)
			ratios[i] = ours[i] / limits[i];
		memcpy(values, limits, n * sizeof(*values));
		f->limit = bench_quantile(values, n, 0.5);
		f->ratio = bench_quantile(ratios, n, 0.5);
	}
	f->spread = (bench_quantile(ratios, n, 0.9) - bench_quantile(ratios, n, 0.1)) / bench_quantile(ratios, n, 0.5);
}

void bench_compare(struct figure *f, unsigned rounds, bench_round *limit, bench_round *ours, void *ctx)
{
	double limits[BENCH_MAX_ROUNDS], values[BENCH_MAX_ROUNDS];

	must(rounds <= BENCH_MAX_ROUNDS);
	limit(ctx);
	ours(ctx);
	for (unsigned i = 0; i < rounds; i++) {
		limits[i] = limit(ctx);
		values[i] = ours(ctx);
	}
	bench_from(f, limits, values, rounds);
}

/* ---- what is said ---- */

/* The first "NAME : VALUE" of a file of /proc; "" if there is none. */
static void proc_field(const char *path, const char *name, char *ret_value, size_t size)
{
	char line[512];
	FILE *f = fopen(path, "re");

	*ret_value = '\0';
	while (f && fgets(line, sizeof(line), f)) {
		char *colon = strchr(line, ':');

		if (!colon || strncmp(line, name, strlen(name)) != 0)
			continue;
		colon += 1 + strspn(colon + 1, " \t");
		snprintf(ret_value, size, "%.*s", (int)strcspn(colon, "\n"), colon);
		break;
	}
	if (f)
		fclose(f);
}

static void print_line(json_t *object)
{
	char *text = json_dumps(object, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(5));

	must(text && puts(text) >= 0 && fflush(stdout) == 0);
	free(text);
	json_decref(object);
}

static void print_machine(void)
{
	char model[128], total[64], shmem[128] = "";
	struct utsname kernel;
	FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "re");
	char *open;

	if (f) {
		if (!fgets(shmem, sizeof(shmem), f))
			*shmem = '\0';
		fclose(f);
	}
	open = strchr(shmem, '[');
	proc_field("/proc/cpuinfo", "model name", model, sizeof(model));
	proc_field("/proc/meminfo", "HugePages_Total", total, sizeof(total));
	must(uname(&kernel) == 0);
	print_line(json_pack("{s:{s:s, s:i, s:s, s:s, s:s, s:I}}", "machine", "cpu", model, "cores", (int)bench_cpus(),
	                     "kernel", kernel.release, "hugetlb_pages", total, "shmem_huge",
	                     open ? strtok(open, "[] \n") : "unknown", "available_mib",
	                     (json_int_t)(bench_available_bytes() >> 20)));
}

void bench_init(void)
{
	must(sched_getaffinity(0, sizeof(all_cpus), &all_cpus) == 0);
	print_machine();
}

bool bench_wanted(const char *name)
{
	const char *at = getenv("BENCH");
	size_t n = strlen(name), len;

	if (!at || !*at)
		return true;
	for (; *at; at += len + (at[len] != '\0')) {
		len = strcspn(at, ", ");
		if (len == n && strncasecmp(at, name, n) == 0)
			return true;
	}
	return false;
}

static bool goal_met(const struct figure *f)
{
	double have = f->goal == GOAL_RATIO_AT_MOST || f->goal == GOAL_RATIO_AT_LEAST ? f->ratio : f->value;

	return f->goal == GOAL_RATIO_AT_MOST || f->goal == GOAL_VALUE_AT_MOST ? have <= f->bound : have >= f->bound;
}

void bench_print(const struct figure *f)
{
	static const char *const goals[] = { NULL, "ratio <= %g", "ratio >= %g", "value <= %g", "value >= %g" };
	json_t *line = json_pack("{s:s, s:s, s:f, s:s}", "name", f->name, "variant", f->variant, "value", f->value,
	                         "unit", f->unit);
	char goal[40];

	must(line);
	if (f->limit != 0) {
		json_object_set_new(line, "limit", json_real(f->limit));
		json_object_set_new(line, "ratio", json_real(f->ratio));
		json_object_set_new(line, "limit_is", json_string(f->limit_is));
	}
	if (f->goal) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
		snprintf(goal, sizeof(goal), goals[f->goal], f->bound);
#pragma GCC diagnostic pop
		json_object_set_new(line, "goal", json_string(goal));
		json_object_set_new(line, "met", json_boolean(goal_met(f)));
	}
	if (f->rounds > 1) {
		json_object_set_new(line, "spread", json_real(f->spread));
		json_object_set_new(line, "wide", json_boolean(f->spread > BENCH_WIDE));
		json_object_set_new(line, "rounds", json_integer(f->rounds));
	}
	json_object_set_new(line, "placement", json_string(f->placement ? f->placement : "free"));
	print_line(line);
}

void bench_say(const char *name, const char *format, ...)
{
	char text[400];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	print_line(json_pack("{s:s, s:s}", "name", name, "remark", text));
}

/* ---- placement ---- */

unsigned bench_cpus(void)
{
	return (unsigned)CPU_COUNT(&all_cpus);
}

static void place_set(int which, cpu_set_t *ret_set)
{
	int left = which % (int)bench_cpus();

	*ret_set = all_cpus;
	if (which == BENCH_ANY_CPU)
		return;
	CPU_ZERO(ret_set);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &all_cpus) && left-- == 0)
			CPU_SET(cpu, ret_set);
}

void bench_place(pid_t pid, int which)
{
	char path[64];
	struct dirent *e;
	cpu_set_t set;
	DIR *dir;

	place_set(which, &set);
	snprintf(path, sizeof(path), "/proc/%d/task", (int)(pid ? pid : getpid()));
	dir = opendir(path);
	must(dir);
	while ((e = readdir(dir)))
		if (*e->d_name != '.')
			must(sched_setaffinity(atoi(e->d_name), sizeof(set), &set) == 0 || errno == ESRCH);
	closedir(dir);
}

uint64_t bench_available_bytes(void)
{
	char kib[64];

	proc_field("/proc/meminfo", "MemAvailable", kib, sizeof(kib));
	return strtoull(kib, NULL, 10) << 10;
}

uint64_t bench_cpu_ns(pid_t pid)
{
	char path[320];
	struct dirent *e;
	uint64_t sum = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	must(dir);
	while ((e = readdir(dir))) {
		unsigned long long ns = 0;
		FILE *f;

		if (*e->d_name == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", (int)pid, e->d_name);
		f = fopen(path, "re");
		must(f && fscanf(f, "%llu", &ns) == 1);
		fclose(f);
		sum += ns;
	}
	closedir(dir);
	return sum;
}
