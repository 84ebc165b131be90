/* SPDX-License-Identifier: Apache-2.0 */
/* table.h: the limit of a look-up: a private table of the same design as the daemon's index (lines of four 16-byte entries, the same
 * hash, 16 keys prefetched ahead, a load of 3/4) in this process' own memory, on huge pages if the system gives them.
 *
 * It keeps what a look-up has to find, slot and generation, and nothing else: no pins, no fence, no second look.
 */
#ifndef TESTS_BENCH_TABLE_H
#define TESTS_BENCH_TABLE_H

#include <stdbool.h>

#include "proto/shm.h"

struct table {
	struct shm_line *lines; /* owns */
	uint64_t n_lines, bytes;
	uint64_t salt[2];
};

#define TABLE_KEY_BYTES 16u

void table_init(struct table *t, uint64_t n_entries, bool huge);
void table_deinit(struct table *t);
/* Are its pages huge?  Of the process' mapping of it, how much. */
uint64_t table_huge_bytes(const struct table *t);
void table_put(struct table *t, const uint8_t *key, uint32_t slot, uint32_t generation);
/* False: not there. */
bool table_remove(struct table *t, const uint8_t *key);
/* Looks the @n keys up, in order, up to the first that is missing.  Returns how many are there. */
uint32_t table_find(const struct table *t, const uint8_t *keys, uint32_t n, struct shm_entry *ret_entries);

#endif
