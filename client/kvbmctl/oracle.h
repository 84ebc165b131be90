/* oracle.h: what the bytes of a block must be, so that one wrong byte anywhere is seen by whoever reads it.
 *
 * The bytes of a lane's slice are a pseudo-random stream (wyrand, Wang Yi, github.com/wangyi-fudan/wyhash) that starts at a hash of
 * namespace, key and lane: no two slices are alike, no part of one resembles another, and nothing has to be kept to check them.
 * Any thread.
 */
#ifndef KVBMCTL_ORACLE_H
#define KVBMCTL_ORACLE_H

#include <stddef.h>
#include <stdint.h>

#define ORACLE_KEY_BYTES 16

/* The key of a block id: equal exactly for equal ids, and never all zero. */
void oracle_key(uint64_t id, uint8_t ret_key[ORACLE_KEY_BYTES]);

/* Where the stream of a slice starts. */
uint64_t oracle_seed(const char *ns_name, const void *key, size_t key_bytes, uint32_t lane);

void oracle_fill(void *data, size_t size, uint64_t seed);

/* Compares all of it.  Returns how many bytes are wrong; @ret_first (may be NULL) is the place of the first. */
uint64_t oracle_check(const void *data, size_t size, uint64_t seed, size_t *ret_first);

#endif
