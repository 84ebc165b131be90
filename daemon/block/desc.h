/* desc.h: identity of a namespace, as an attach request gives it.  Strings are NUL-terminated, numbers are final (defaults filled
 * in, lane_bytes computed and checked by the server). */
#ifndef KVBMD_BLOCK_DESC_H
#define KVBMD_BLOCK_DESC_H

#include <stdbool.h>
#include <stdint.h>

struct ns_desc {
	char name[64], model[128], hash_algo[32], salt[64];
	uint64_t lane_bytes;
	uint32_t num_layers, page_size, inner_dim, outer_dim, dtype, layout, lanes, key_bytes;
	bool confirm;
};

#endif
