/* metrics.h: counters and gauges, one line of metrics.def each.
 *
 * Any thread; relaxed atomics, so one metric is exact but two read together may be from different moments.  A counter
 * is added to after the fact it counts, never before.
 */
#ifndef BASE_METRICS_H
#define BASE_METRICS_H

#include <stddef.h>
#include <stdint.h>

enum metric {
#define METRIC(name, kind, help) METRIC_##name,
#include "base/metrics.def"
#undef METRIC
	METRIC_MAX
};

enum metric_kind {
	METRIC_KIND_COUNTER,
	METRIC_KIND_GAUGE,
};

void metrics_add(enum metric m, uint64_t n);

/* Gauges only, as metrics_set(). */
void metrics_sub(enum metric m, uint64_t n);
void metrics_set(enum metric m, uint64_t value);
uint64_t metrics_get(enum metric m);

/* Without prefix and suffix, as written in metrics.def. */
const char *metrics_name(enum metric m);
enum metric_kind metrics_kind(enum metric m);
const char *metrics_help(enum metric m);

/* Prometheus text format 0.0.4.  As snprintf: returns the length of the whole text without its NUL, and writes no more
 * than @size bytes; cut if the return value is >= @size.  @buf may be NULL with @size 0. */
size_t metrics_render(char *buf, size_t size);

/* All to zero, for tests that count from the start. */
void metrics_reset(void);

#endif
