/* requests.h: a stream of requests in memory, each a list of block ids; equal ids are equal blocks, including everything before them.
 * Both trace files and built-in workloads become this.  One thread.
 */
#ifndef KVBMCTL_REQUESTS_H
#define KVBMCTL_REQUESTS_H

#include <stddef.h>
#include <stdint.h>

struct request {
	double timestamp_ms;
	uint64_t input_tokens, output_tokens;
	uint64_t first; /* of its ids in requests->ids */
	uint32_t n;
};

struct requests {
	struct request *list; /* owns */
	uint32_t n, cap;
	uint64_t *ids; /* owns; of all requests, one after the other */
	uint64_t n_ids, cap_ids;
	uint32_t longest; /* ids of the longest request */
};

/* Dense numbers for the ids: number[k] of ids[k] is below @n_distinct, and equal ids have equal numbers. */
struct numbering {
	uint32_t *number; /* owns; n_ids */
	uint32_t n_distinct;
};

void requests_init(struct requests *rs);
void requests_deinit(struct requests *rs);

/* A new last request, without ids; then ids for it.  0 or -ENOMEM. */
int requests_begin(struct requests *rs, double timestamp_ms, uint64_t input_tokens, uint64_t output_tokens);
int requests_add(struct requests *rs, uint64_t id);

/* Keeps only the first @n requests (fewer: all). */
void requests_truncate(struct requests *rs, uint32_t n);

static inline const uint64_t *requests_ids(const struct requests *rs, uint32_t i)
{
	return rs->ids + rs->list[i].first;
}

int requests_number(const struct requests *rs, struct numbering *ret_numbering);
void numbering_deinit(struct numbering *numbering);

#endif
