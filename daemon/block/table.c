/* The seed of every uthash table of the process. */
#include "block/table.h"

#include <xxhash.h>

static uint64_t table_secret = UINT64_C(0x9e3779b97f4a7c15);

void table_seed(uint64_t secret)
{
	table_secret = secret;
}

unsigned table_hash(const void *key, size_t bytes)
{
	return (unsigned)XXH3_64bits_withSeed(key, bytes, table_secret);
}
