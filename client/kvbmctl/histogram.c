/* Classes: values below 32 have one each; then each power of two is cut into 32. */
#include "histogram.h"

#include <math.h>
#include <stdatomic.h>

#include "base/assert.h"

static uint32_t histogram_class(uint64_t value)
{
	uint32_t shift;

	if (value < 32)
		return (uint32_t)value;
	shift = 58 - (uint32_t)__builtin_clzll(value);
	return 32 + shift * 32 + (uint32_t)((value >> shift) & 31);
}

/* Middle of the values that a class can hold. */
static double histogram_middle(uint32_t class)
{
	uint32_t shift;

	if (class < 32)
		return class;
	shift = class / 32 - 1;
	return ldexp(32 + class % 32 + (shift ? 0.5 : 0), (int)shift);
}

static uint64_t histogram_count(const struct histogram *h, uint32_t class)
{
	return atomic_load_explicit(&h->counts[class], memory_order_relaxed);
}

static void histogram_set(struct histogram *h, uint32_t class, uint64_t n)
{
	atomic_store_explicit(&h->counts[class], n, memory_order_relaxed);
}

void histogram_add(struct histogram *h, uint64_t value)
{
	uint32_t class = histogram_class(value);

	assert(class < HISTOGRAM_CLASSES);
	histogram_set(h, class, histogram_count(h, class) + 1);
}

void histogram_merge(struct histogram *to, const struct histogram *from)
{
	for (uint32_t i = 0; i < HISTOGRAM_CLASSES; i++)
		histogram_set(to, i, histogram_count(to, i) + histogram_count(from, i));
}

uint64_t histogram_total(const struct histogram *h)
{
	uint64_t total = 0;

	for (uint32_t i = 0; i < HISTOGRAM_CLASSES; i++)
		total += histogram_count(h, i);
	return total;
}

double histogram_quantile(const struct histogram *h, double q)
{
	uint64_t total = histogram_total(h), seen = 0;

	if (total == 0)
		return 0;
	for (uint32_t i = 0; i < HISTOGRAM_CLASSES; i++) {
		seen += histogram_count(h, i);
		if ((double)seen >= q * (double)total && seen > 0)
			return histogram_middle(i);
	}
	return histogram_middle(HISTOGRAM_CLASSES - 1);
}
