/* SPDX-License-Identifier: Apache-2.0 */
/* Turns values into blocks and back.  Decoding accepts exactly what encoding makes: a block that passes, encoded again,
 * is the same block.  The structs below are the table in nvme_format.h, checked byte by byte. */
#include "tier/nvme_format.h"

#include <string.h>
#include <xxhash.h>

#include "base/assert.h"

#define SEED_SUPER UINT64_C(0x6b76626d47333031)
#define SEED_HEADER UINT64_C(0x6b76626d41523031)
#define SEED_RECORD UINT64_C(0x6b76626d52433031)
#define SUPER_CLEAN 1u
#define RECORD_USED 1u

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the structs are the bytes");

struct super_block {
	char magic[8];
	uint32_t version, flags;
	uint8_t uuid[16];
	uint32_t drive, drives;
	uint64_t size, area_bytes;
	uint32_t areas, zero;
	uint64_t seq;
	uint8_t boot_id[16];
	uint8_t zeros[416];
	uint64_t check;
	uint8_t more_zeros[3584];
};
_Static_assert(sizeof(struct super_block) == NVME_BLOCK, "superblock");
_Static_assert(offsetof(struct super_block, uuid) == 16, "superblock");
_Static_assert(offsetof(struct super_block, size) == 40, "superblock");
_Static_assert(offsetof(struct super_block, seq) == 64, "superblock");
_Static_assert(offsetof(struct super_block, zeros) == 88, "superblock");
_Static_assert(offsetof(struct super_block, check) == 504, "superblock");

struct header_block {
	char magic[8];
	uint32_t version, state;
	uint8_t uuid[16];
	uint32_t area, n_slots;
	uint64_t epoch, seq, lane_bytes;
	uint32_t lanes, owner_length;
	uint8_t owner[TIER_OWNER_BYTES];
	uint8_t zeros[1968];
	uint64_t check;
};
_Static_assert(sizeof(struct header_block) == NVME_BLOCK, "area header");
_Static_assert(offsetof(struct header_block, area) == 32, "area header");
_Static_assert(offsetof(struct header_block, lane_bytes) == 56, "area header");
_Static_assert(offsetof(struct header_block, owner) == 72, "area header");
_Static_assert(offsetof(struct header_block, zeros) == 2120, "area header");
_Static_assert(offsetof(struct header_block, check) == 4088, "area header");

struct record_bytes {
	char magic[4];
	uint32_t state, area, place;
	uint64_t epoch, seq, digest;
	uint8_t tag[TIER_TAG_BYTES];
	uint64_t check;
};
_Static_assert(sizeof(struct record_bytes) == NVME_RECORD, "record");
_Static_assert(offsetof(struct record_bytes, digest) == 32, "record");
_Static_assert(offsetof(struct record_bytes, tag) == 40, "record");
_Static_assert(offsetof(struct record_bytes, check) == 120, "record");

static const char super_magic[8] = "kvbmdG3\n", header_magic[8] = "kvbmdAR\n", record_magic[4] = "KVr1";

static bool is_zero(const void *data, size_t size)
{
	const uint8_t *p = (const uint8_t *)data;

	return size == 0 || (p[0] == 0 && memcmp(p, p + 1, size - 1) == 0);
}

uint64_t nvme_super_offset(uint64_t size, uint32_t copy)
{
	assert(copy < NVME_SUPER_COPIES && size >= NVME_HEAD_BYTES + NVME_BLOCK);
	return copy < NVME_SUPER_COPIES - 1 ? (uint64_t)copy * NVME_BLOCK : size - NVME_BLOCK;
}

uint64_t nvme_areas_in(uint64_t size, uint64_t area_bytes)
{
	uint64_t n;

	if (size < NVME_HEAD_BYTES + NVME_BLOCK || area_bytes == 0)
		return 0;
	n = (size - NVME_HEAD_BYTES - NVME_BLOCK) / area_bytes;
	return n < NVME_AREAS_MAX ? n : NVME_AREAS_MAX;
}

uint32_t nvme_part_slots(uint64_t area_bytes, const struct tier_area_shape *shape)
{
	uint64_t slot_bytes, n;

	if (shape->lanes == 0 || shape->lanes > TIER_MAX_LANES || shape->lane_bytes == 0 ||
	    shape->lane_bytes % NVME_BLOCK != 0 || shape->lane_bytes > NVME_SLOT_MAX / shape->lanes)
		return 0;
	slot_bytes = shape->lane_bytes * shape->lanes;
	if (area_bytes < NVME_HEADER_COPIES * NVME_BLOCK)
		return 0;
	area_bytes -= NVME_HEADER_COPIES * NVME_BLOCK;
	/* The most that fits if sectors of records were divisible, then as many fewer as they are not. */
	n = area_bytes / (slot_bytes + NVME_RECORD);
	if (n > UINT32_MAX / NVME_DRIVES_MAX / 2)
		return 0;
	while (n > 0 && n * slot_bytes + (uint64_t)nvme_part_sectors((uint32_t)n) * NVME_BLOCK > area_bytes)
		n--;
	return (uint32_t)n;
}

void nvme_super_encode(const struct nvme_super *s, uint8_t *block)
{
	struct super_block b;

	assert(s->drive < s->drives && s->drives <= NVME_DRIVES_MAX);
	memset(&b, 0, sizeof(b));
	memcpy(b.magic, super_magic, sizeof(b.magic));
	b.version = NVME_VERSION;
	b.flags = s->clean ? SUPER_CLEAN : 0;
	memcpy(b.uuid, s->uuid, sizeof(b.uuid));
	b.drive = s->drive;
	b.drives = s->drives;
	b.size = s->size;
	b.area_bytes = s->area_bytes;
	b.areas = s->areas;
	b.seq = s->seq;
	memcpy(b.boot_id, s->boot_id, sizeof(b.boot_id));
	b.check = XXH3_64bits_withSeed(&b, offsetof(struct super_block, check), SEED_SUPER);
	memcpy(block, &b, sizeof(b));
}

static bool super_is_sane(const struct super_block *b)
{
	return (b->flags & ~SUPER_CLEAN) == 0 && b->zero == 0 && is_zero(b->zeros, sizeof(b->zeros)) &&
	       is_zero(b->more_zeros, sizeof(b->more_zeros)) && b->drives > 0 && b->drives <= NVME_DRIVES_MAX &&
	       b->drive < b->drives && b->size % NVME_BLOCK == 0 && b->area_bytes > 0 &&
	       b->area_bytes % NVME_BLOCK == 0 && b->areas > 0 && b->areas <= nvme_areas_in(b->size, b->area_bytes);
}

int nvme_super_decode(const uint8_t *block, struct nvme_super *ret_super)
{
	struct super_block b;

	memcpy(&b, block, sizeof(b));
	if (is_zero(&b, sizeof(b)))
		return NVME_FORMAT_E_EMPTY;
	if (memcmp(b.magic, super_magic, sizeof(b.magic)) != 0)
		return NVME_FORMAT_E_FOREIGN;
	if (b.version != NVME_VERSION)
		return NVME_FORMAT_E_VERSION;
	if (b.check != XXH3_64bits_withSeed(&b, offsetof(struct super_block, check), SEED_SUPER) || !super_is_sane(&b))
		return NVME_FORMAT_E_DAMAGED;
	memset(ret_super, 0, sizeof(*ret_super));
	memcpy(ret_super->uuid, b.uuid, sizeof(b.uuid));
	memcpy(ret_super->boot_id, b.boot_id, sizeof(b.boot_id));
	ret_super->drive = b.drive;
	ret_super->drives = b.drives;
	ret_super->areas = b.areas;
	ret_super->size = b.size;
	ret_super->area_bytes = b.area_bytes;
	ret_super->seq = b.seq;
	ret_super->clean = b.flags & SUPER_CLEAN;
	return 0;
}

void nvme_header_encode(const uint8_t *uuid, const struct nvme_header *h, uint8_t *block)
{
	struct header_block b;

	assert(h->owner.length <= TIER_OWNER_BYTES);
	memset(&b, 0, sizeof(b));
	memcpy(b.magic, header_magic, sizeof(b.magic));
	b.version = NVME_VERSION;
	b.state = h->used;
	memcpy(b.uuid, uuid, sizeof(b.uuid));
	b.area = h->area;
	b.epoch = h->epoch;
	b.seq = h->seq;
	if (h->used) {
		b.n_slots = h->n_slots;
		b.lane_bytes = h->shape.lane_bytes;
		b.lanes = h->shape.lanes;
		b.owner_length = h->owner.length;
		memcpy(b.owner, h->owner.bytes, h->owner.length);
	}
	b.check = XXH3_64bits_withSeed(&b, offsetof(struct header_block, check), SEED_HEADER);
	memcpy(block, &b, sizeof(b));
}

static bool header_is_sane(const struct header_block *b)
{
	if (b->state > 1 || b->owner_length > TIER_OWNER_BYTES || !is_zero(b->zeros, sizeof(b->zeros)) ||
	    !is_zero(b->owner + b->owner_length, TIER_OWNER_BYTES - b->owner_length))
		return false;
	if (b->state == 0)
		return b->n_slots == 0 && b->lane_bytes == 0 && b->lanes == 0 && b->owner_length == 0;
	return b->n_slots > 0 && b->lanes > 0 && b->lanes <= TIER_MAX_LANES && b->lane_bytes > 0 &&
	       b->lane_bytes % NVME_BLOCK == 0 && b->lane_bytes <= NVME_SLOT_MAX / b->lanes;
}

int nvme_header_decode(const uint8_t *uuid, uint32_t area, const uint8_t *block, struct nvme_header *ret_header)
{
	struct header_block b;

	memcpy(&b, block, sizeof(b));
	if (is_zero(&b, sizeof(b)))
		return NVME_FORMAT_E_EMPTY;
	if (memcmp(b.magic, header_magic, sizeof(b.magic)) != 0)
		return NVME_FORMAT_E_FOREIGN;
	if (b.version != NVME_VERSION || b.area != area || memcmp(b.uuid, uuid, sizeof(b.uuid)) != 0 ||
	    b.check != XXH3_64bits_withSeed(&b, offsetof(struct header_block, check), SEED_HEADER) || !header_is_sane(&b))
		return NVME_FORMAT_E_DAMAGED;
	memset(ret_header, 0, sizeof(*ret_header));
	ret_header->used = b.state;
	ret_header->area = b.area;
	ret_header->n_slots = b.n_slots;
	ret_header->epoch = b.epoch;
	ret_header->seq = b.seq;
	ret_header->shape.lane_bytes = b.lane_bytes;
	ret_header->shape.lanes = b.lanes;
	ret_header->owner.length = b.owner_length;
	memcpy(ret_header->owner.bytes, b.owner, b.owner_length);
	return 0;
}

uint64_t nvme_owner_digest(const struct tier_owner *owner)
{
	assert(owner->length <= TIER_OWNER_BYTES);
	return XXH3_64bits(owner->bytes, owner->length);
}

static uint64_t record_check(const struct nvme_life *life, const struct record_bytes *b)
{
	uint64_t seed;

	memcpy(&seed, life->uuid, sizeof(seed));
	return XXH3_64bits_withSeed(b, offsetof(struct record_bytes, check), seed ^ SEED_RECORD);
}

void nvme_record_encode(const struct nvme_life *life, uint32_t place, uint64_t seq, const struct tier_tag *tag,
                        uint8_t *record)
{
	struct record_bytes b;

	memcpy(b.magic, record_magic, sizeof(b.magic));
	b.state = RECORD_USED;
	b.area = life->area;
	b.place = place;
	b.epoch = life->epoch;
	b.seq = seq;
	b.digest = life->digest;
	memcpy(b.tag, tag->bytes, sizeof(b.tag));
	b.check = record_check(life, &b);
	memcpy(record, &b, sizeof(b));
}

int nvme_record_decode(const struct nvme_life *life, uint32_t place, const uint8_t *record, struct tier_tag *ret_tag)
{
	struct record_bytes b;

	memcpy(&b, record, sizeof(b));
	if (memcmp(b.magic, record_magic, sizeof(b.magic)) != 0)
		return is_zero(&b, sizeof(b)) ? NVME_FORMAT_E_EMPTY : NVME_FORMAT_E_DAMAGED;
	if (b.state != RECORD_USED || b.area != life->area || b.place != place || b.epoch != life->epoch ||
	    b.digest != life->digest || b.check != record_check(life, &b))
		return NVME_FORMAT_E_DAMAGED;
	memcpy(ret_tag->bytes, b.tag, sizeof(ret_tag->bytes));
	return 0;
}

bool nvme_record_claims(const uint8_t *uuid, const uint8_t *record, struct nvme_life *ret_life, uint32_t *ret_place)
{
	struct record_bytes b;

	memcpy(&b, record, sizeof(b));
	if (memcmp(b.magic, record_magic, sizeof(b.magic)) != 0)
		return false;
	memcpy(ret_life->uuid, uuid, NVME_UUID_BYTES);
	ret_life->area = b.area;
	ret_life->epoch = b.epoch;
	ret_life->digest = b.digest;
	*ret_place = b.place;
	return true;
}
