/* metrics.c: the values and their text form.  Owns one array of atomics; who listens for scrapers is server/'s affair. */
#include "base/metrics.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/assert.h"

static const struct {
	const char *name;
	enum metric_kind kind;
	const char *help;
} metrics_table[] = {
#define METRIC(name, kind, help) { #name, METRIC_KIND_##kind, help },
#include "base/metrics.def"
#undef METRIC
};

static _Atomic uint64_t metrics_values[METRIC_MAX];

void metrics_add(enum metric m, uint64_t n)
{
	assert(m < METRIC_MAX);
	atomic_fetch_add_explicit(&metrics_values[m], n, memory_order_relaxed);
}

void metrics_sub(enum metric m, uint64_t n)
{
	uint64_t before;

	assert(m < METRIC_MAX);
	assert(metrics_table[m].kind == METRIC_KIND_GAUGE);
	before = atomic_fetch_sub_explicit(&metrics_values[m], n, memory_order_relaxed);
	assert(before >= n);
}

void metrics_set(enum metric m, uint64_t value)
{
	assert(m < METRIC_MAX);
	assert(metrics_table[m].kind == METRIC_KIND_GAUGE);
	atomic_store_explicit(&metrics_values[m], value, memory_order_relaxed);
}

uint64_t metrics_get(enum metric m)
{
	assert(m < METRIC_MAX);
	return atomic_load_explicit(&metrics_values[m], memory_order_relaxed);
}

const char *metrics_name(enum metric m)
{
	assert(m < METRIC_MAX);
	return metrics_table[m].name;
}

enum metric_kind metrics_kind(enum metric m)
{
	assert(m < METRIC_MAX);
	return metrics_table[m].kind;
}

const char *metrics_help(enum metric m)
{
	assert(m < METRIC_MAX);
	return metrics_table[m].help;
}

size_t metrics_render(char *buf, size_t size)
{
	size_t length = 0;

	for (int m = 0; m < METRIC_MAX; m++) {
		bool counter = metrics_table[m].kind == METRIC_KIND_COUNTER;
		const char *name = metrics_table[m].name;
		const char *suffix = counter ? "_total" : "";
		int n;

		n = snprintf(length < size ? buf + length : NULL, length < size ? size - length : 0,
		             "# HELP kvbmd_%s%s %s\n# TYPE kvbmd_%s%s %s\nkvbmd_%s%s %" PRIu64 "\n", name, suffix,
		             metrics_table[m].help, name, suffix, counter ? "counter" : "gauge", name, suffix,
		             metrics_get(m));
		assert(n > 0);
		length += (size_t)n;
	}
	return length;
}

void metrics_reset(void)
{
	for (int m = 0; m < METRIC_MAX; m++)
		atomic_store_explicit(&metrics_values[m], 0, memory_order_relaxed);
}
