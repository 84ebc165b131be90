/* Requests own two growing arrays: the requests, and the ids of all of them.  They check nothing about the ids. */
#include "requests.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/rng.h"

void requests_init(struct requests *rs)
{
	memset(rs, 0, sizeof(*rs));
}

void requests_deinit(struct requests *rs)
{
	free(rs->list);
	free(rs->ids);
	memset(rs, 0, sizeof(*rs));
}

int requests_begin(struct requests *rs, double timestamp_ms, uint64_t input_tokens, uint64_t output_tokens)
{
	if (rs->n == rs->cap) {
		uint32_t cap = rs->cap ? rs->cap * 2 : 1024;
		struct request *list = realloc(rs->list, cap * sizeof(*list));

		if (!list)
			return -ENOMEM;
		rs->list = list;
		rs->cap = cap;
	}
	rs->list[rs->n++] = (struct request){
		.timestamp_ms = timestamp_ms,
		.input_tokens = input_tokens,
		.output_tokens = output_tokens,
		.first = rs->n_ids,
	};
	return 0;
}

int requests_add(struct requests *rs, uint64_t id)
{
	struct request *last;

	assert(rs->n > 0);
	last = &rs->list[rs->n - 1];
	if (rs->n_ids == rs->cap_ids) {
		uint64_t cap = rs->cap_ids ? rs->cap_ids * 2 : 16384;
		uint64_t *ids = realloc(rs->ids, cap * sizeof(*ids));

		if (!ids)
			return -ENOMEM;
		rs->ids = ids;
		rs->cap_ids = cap;
	}
	rs->ids[rs->n_ids++] = id;
	last->n++;
	if (last->n > rs->longest)
		rs->longest = last->n;
	return 0;
}

void requests_truncate(struct requests *rs, uint32_t n)
{
	if (n >= rs->n)
		return;
	rs->n = n;
	rs->n_ids = n ? rs->list[n - 1].first + rs->list[n - 1].n : 0;
	rs->longest = 0;
	for (uint32_t i = 0; i < n; i++)
		if (rs->list[i].n > rs->longest)
			rs->longest = rs->list[i].n;
}

/* Open addressing over {id, number + 1}, at most half full. */
int requests_number(const struct requests *rs, struct numbering *ret_numbering)
{
	struct place {
		uint64_t id;
		uint32_t number;
	} * places;
	struct numbering numbering = { 0 };
	uint64_t size = 1024;

	assert(rs->n_ids < UINT32_MAX);
	while (size < 2 * rs->n_ids)
		size *= 2;
	places = calloc(size, sizeof(*places));
	numbering.number = malloc((rs->n_ids + 1) * sizeof(*numbering.number));
	if (!places || !numbering.number) {
		free(places);
		free(numbering.number);
		return -ENOMEM;
	}
	for (uint64_t k = 0; k < rs->n_ids; k++) {
		uint64_t state = rs->ids[k], i = rng_splitmix(&state) & (size - 1);

		while (places[i].number && places[i].id != rs->ids[k])
			i = (i + 1) & (size - 1);
		if (!places[i].number) {
			places[i].id = rs->ids[k];
			places[i].number = ++numbering.n_distinct;
		}
		numbering.number[k] = places[i].number - 1;
	}
	free(places);
	*ret_numbering = numbering;
	return 0;
}

void numbering_deinit(struct numbering *numbering)
{
	free(numbering->number);
	numbering->number = NULL;
}
