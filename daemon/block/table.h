/* table.h: uthash as it is used here.  Include this, not <uthash.h>.
 *
 * Its function is seeded with a secret, or a client could choose keys that make one long chain; and it does not end the process when there is no memory:
 * an element that could not be added has hh.tbl == NULL.
 */
#ifndef KVBMD_BLOCK_TABLE_H
#define KVBMD_BLOCK_TABLE_H

#include <stdint.h>

#define HASH_FUNCTION(key, bytes, hash) ((hash) = table_hash((key), (bytes)))
#define HASH_NONFATAL_OOM 1
#include <uthash.h>

/* Once, before there is a table; without it the same for every process, for tests. */
void table_seed(uint64_t secret);
unsigned table_hash(const void *key, size_t bytes);

#endif
