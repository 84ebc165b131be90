/* lower_tag.h: what move/ stores with an area and with a slot of the tier below, which keeps both without understanding them.  On disk.
 *
 * Numbers are in the byte order of the machine: a drive does not move to another kind of it.  What is of another version or size belongs to nobody we
 * know: the area is given up, and whatever was in it is a miss.
 */
#ifndef KVBMD_MOVE_LOWER_TAG_H
#define KVBMD_MOVE_LOWER_TAG_H

#include <stdbool.h>
#include <string.h>

#include "block/desc.h"
#include "block/key.h"
#include "tier/tier.h"

#define LOWER_OWNER_VERSION 1u

/* Of an area: the namespace. */
struct lower_owner {
	uint32_t version, bytes;
	uint64_t salt[2]; /* of the namespace's tags */
	struct ns_desc desc;
};
_Static_assert(sizeof(struct lower_owner) <= TIER_OWNER_BYTES, "lower_owner");

/* Of a slot: the block. */
struct lower_tag {
	uint8_t key[KEY_MAX];
	uint64_t parent, sum; /* sum: of the payload, bound to the key; see mover.h; never 0 */
	uint32_t touch;
	uint8_t key_bytes, spare[3];
	uint8_t fingerprint[16]; /* of the namespace */
};
_Static_assert(sizeof(struct lower_tag) == 72 && sizeof(struct lower_tag) <= TIER_TAG_BYTES, "lower_tag");

/* false: it is none of ours, or does not fit @shape. */
static inline bool lower_owner_read(const struct tier_owner *raw, const struct tier_area_shape *shape,
                                    struct lower_owner *ret_owner)
{
	if (raw->length != sizeof(*ret_owner))
		return false;
	memcpy(ret_owner, raw->bytes, sizeof(*ret_owner));
	return ret_owner->version == LOWER_OWNER_VERSION && ret_owner->bytes == sizeof(*ret_owner) &&
	       ret_owner->desc.lane_bytes == shape->lane_bytes && ret_owner->desc.lanes == shape->lanes &&
	       ret_owner->desc.key_bytes >= KEY_MIN && ret_owner->desc.key_bytes <= KEY_MAX &&
	       memchr(ret_owner->desc.name, 0, sizeof(ret_owner->desc.name));
}

static inline void lower_tag_read(const struct tier_tag *raw, struct lower_tag *ret_tag)
{
	memcpy(ret_tag, raw->bytes, sizeof(*ret_tag));
}

#endif
