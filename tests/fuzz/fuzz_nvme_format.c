/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a superblock, an area header and a record: with their check mended too, or nothing would ever pass it.
 *
 * Held: no crash; what is accepted, encoded again, is the same bytes, and describes places that lie on the drive.
 */
#include "tier/nvme_format.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok)
{
	if (!ok)
		abort();
}

static void try_super(uint8_t *block)
{
	struct nvme_super s;
	uint8_t again[NVME_BLOCK];
	struct nvme_layout l;

	if (nvme_super_decode(block, &s) != 0)
		return;
	nvme_super_encode(&s, again);
	require(memcmp(again, block, NVME_BLOCK) == 0);
	l = (struct nvme_layout){ .area_bytes = s.area_bytes, .drives = s.drives };
	require(nvme_area_offset(&l, s.areas - 1) + s.area_bytes <= nvme_super_offset(s.size, NVME_SUPER_COPIES - 1));
}

static void try_header(const uint8_t *uuid, uint8_t *block)
{
	static struct nvme_header h;
	uint8_t again[NVME_BLOCK];
	uint32_t area;

	memcpy(&area, block + 32, sizeof(area));
	if (nvme_header_decode(uuid, area, block, &h) != 0)
		return;
	nvme_header_encode(uuid, &h, again);
	require(memcmp(again, block, NVME_BLOCK) == 0);
	require(h.owner.length <= TIER_OWNER_BYTES);
	(void)nvme_owner_digest(&h.owner);
	if (h.used) {
		uint64_t slot = h.shape.lane_bytes * h.shape.lanes;
		uint32_t n = nvme_part_slots(UINT64_C(64) << 20, &h.shape);

		require(slot > 0 && slot <= NVME_SLOT_MAX && n * slot <= UINT64_C(64) << 20);
	}
}

static void try_record(const uint8_t *uuid, const uint8_t *record)
{
	struct nvme_life life;
	struct tier_tag tag;
	uint8_t again[NVME_RECORD];
	uint64_t seq;
	uint32_t place;

	if (!nvme_record_claims(uuid, record, &life, &place) || nvme_record_decode(&life, place, record, &tag) != 0)
		return;
	memcpy(&seq, record + 24, sizeof(seq));
	nvme_record_encode(&life, place, seq, &tag, again);
	require(memcmp(again, record, NVME_RECORD) == 0);
}

static void mend(uint8_t *block, size_t at, uint64_t seed)
{
	uint64_t check = XXH3_64bits_withSeed(block, at, seed);

	memcpy(block + at, &check, sizeof(check));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t block[NVME_BLOCK], uuid[NVME_UUID_BYTES];
	uint64_t seed;

	memset(block, 0, sizeof(block));
	memcpy(block, data, size < sizeof(block) ? size : sizeof(block));
	memcpy(uuid, block + 16, sizeof(uuid));
	memcpy(&seed, uuid, sizeof(seed));
	try_super(block);
	try_header(uuid, block);
	try_record(uuid, block);
	mend(block, 504, UINT64_C(0x6b76626d47333031));
	try_super(block);
	mend(block, 4088, UINT64_C(0x6b76626d41523031));
	try_header(uuid, block);
	mend(block, 120, seed ^ UINT64_C(0x6b76626d52433031));
	try_record(uuid, block);
	return 0;
}
