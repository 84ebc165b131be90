/* SPDX-License-Identifier: Apache-2.0 */
/* tier/nvme_format.c: the bytes are those of the table in the header, each of them matters, and places do not overlap. */
#include "tier/nvme_format.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define MIB (UINT64_C(1) << 20)

static const uint8_t uuid[16] = { 0xa0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };

static struct nvme_super super_example(void)
{
	struct nvme_super s = { .drive = 1,
		                .drives = 3,
		                .areas = 5,
		                .size = 64 * MIB,
		                .area_bytes = 8 * MIB,
		                .seq = 0x1122334455667788,
		                .clean = true };

	memcpy(s.uuid, uuid, 16);
	memset(s.boot_id, 0xb7, 16);
	return s;
}

static struct nvme_header header_example(void)
{
	struct nvme_header h = { .used = true,
		                 .area = 7,
		                 .n_slots = 99,
		                 .epoch = 0xe0e1e2e3e4e5e6e7,
		                 .seq = 42,
		                 .shape = { .lane_bytes = 0x21000, .lanes = 6 },
		                 .owner = { .length = 300 } };

	memset(h.owner.bytes, 0x5a, 300);
	return h;
}

static struct nvme_life life_example(void)
{
	struct nvme_life life = { .area = 7, .epoch = 0xe0e1e2e3e4e5e6e7, .digest = 0xd0d1d2d3d4d5d6d7 };

	memcpy(life.uuid, uuid, 16);
	return life;
}

static uint64_t number(const uint8_t *p, unsigned bytes)
{
	uint64_t n = 0;

	for (unsigned i = bytes; i-- > 0;)
		n = n << 8 | p[i];
	return n;
}

static void zeros(const uint8_t *p, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++)
		ck_assert_uint_eq(p[i], 0);
}

START_TEST(superblock_bytes)
{
	struct nvme_super s = super_example(), again;
	uint8_t b[NVME_BLOCK];

	nvme_super_encode(&s, b);
	ck_assert_int_eq(memcmp(b, "kvbmdG3\n", 8), 0);
	ck_assert_uint_eq(number(b + 8, 4), 1);
	ck_assert_uint_eq(number(b + 12, 4), 1);
	ck_assert_int_eq(memcmp(b + 16, uuid, 16), 0);
	ck_assert_uint_eq(number(b + 32, 4), 1);
	ck_assert_uint_eq(number(b + 36, 4), 3);
	ck_assert_uint_eq(number(b + 40, 8), 64 * MIB);
	ck_assert_uint_eq(number(b + 48, 8), 8 * MIB);
	ck_assert_uint_eq(number(b + 56, 4), 5);
	zeros(b, 60, 64);
	ck_assert_uint_eq(number(b + 64, 8), 0x1122334455667788);
	ck_assert_uint_eq(b[72], 0xb7);
	zeros(b, 88, 504);
	/* For ever: files in the field have it. */
	ck_assert_uint_eq(number(b + 504, 8), UINT64_C(16761502783242302270));
	zeros(b, 512, NVME_BLOCK);
	ck_assert_int_eq(nvme_super_decode(b, &again), 0);
	ck_assert_int_eq(memcmp(&again, &s, sizeof(s)), 0);
}
END_TEST

START_TEST(header_bytes)
{
	struct nvme_header h = header_example(), *again = calloc(1, sizeof(*again));
	uint8_t b[NVME_BLOCK];

	nvme_header_encode(uuid, &h, b);
	ck_assert_int_eq(memcmp(b, "kvbmdAR\n", 8), 0);
	ck_assert_uint_eq(number(b + 8, 4), 1);
	ck_assert_uint_eq(number(b + 12, 4), 1);
	ck_assert_int_eq(memcmp(b + 16, uuid, 16), 0);
	ck_assert_uint_eq(number(b + 32, 4), 7);
	ck_assert_uint_eq(number(b + 36, 4), 99);
	ck_assert_uint_eq(number(b + 40, 8), h.epoch);
	ck_assert_uint_eq(number(b + 48, 8), 42);
	ck_assert_uint_eq(number(b + 56, 8), 0x21000);
	ck_assert_uint_eq(number(b + 64, 4), 6);
	ck_assert_uint_eq(number(b + 68, 4), 300);
	ck_assert_int_eq(memcmp(b + 72, h.owner.bytes, 300), 0);
	zeros(b, 372, 4088);
	ck_assert_uint_eq(number(b + 4088, 8), UINT64_C(2936003444643293113));
	ck_assert_int_eq(nvme_header_decode(uuid, 7, b, again), 0);
	ck_assert_uint_eq(again->n_slots, 99);
	ck_assert_uint_eq(again->owner.length, 300);
	ck_assert_int_eq(memcmp(&again->owner, &h.owner, sizeof(h.owner)), 0);
	ck_assert_int_eq(nvme_header_decode(uuid, 8, b, again), NVME_FORMAT_E_DAMAGED);
	/* A free one has no shape and no owner. */
	h.used = false;
	nvme_header_encode(uuid, &h, b);
	ck_assert_int_eq(nvme_header_decode(uuid, 7, b, again), 0);
	ck_assert(!again->used);
	ck_assert_uint_eq(again->n_slots, 0);
	ck_assert_uint_eq(again->seq, 42);
	free(again);
}
END_TEST

START_TEST(record_bytes_are_golden)
{
	struct nvme_life life = life_example();
	struct tier_tag tag, again;
	uint8_t b[NVME_RECORD];

	for (unsigned i = 0; i < TIER_TAG_BYTES; i++)
		tag.bytes[i] = (uint8_t)(i * 3);
	nvme_record_encode(&life, 77, 0x99, &tag, b);
	ck_assert_int_eq(memcmp(b, "KVr1", 4), 0);
	ck_assert_uint_eq(number(b + 4, 4), 1);
	ck_assert_uint_eq(number(b + 8, 4), 7);
	ck_assert_uint_eq(number(b + 12, 4), 77);
	ck_assert_uint_eq(number(b + 16, 8), life.epoch);
	ck_assert_uint_eq(number(b + 24, 8), 0x99);
	ck_assert_uint_eq(number(b + 32, 8), life.digest);
	ck_assert_int_eq(memcmp(b + 40, tag.bytes, 80), 0);
	ck_assert_uint_eq(number(b + 120, 8), UINT64_C(9306919187550030626));
	ck_assert_int_eq(nvme_record_decode(&life, 77, b, &again), 0);
	ck_assert_int_eq(memcmp(&again, &tag, sizeof(tag)), 0);
}
END_TEST

START_TEST(every_flipped_bit_of_a_block_is_noticed)
{
	struct nvme_super s = super_example();
	struct nvme_header h = header_example(), *h2 = calloc(1, sizeof(*h2));
	uint8_t b[NVME_BLOCK];

	nvme_super_encode(&s, b);
	for (unsigned i = 0; i < NVME_BLOCK * 8; i++) {
		b[i / 8] ^= (uint8_t)(1u << i % 8);
		ck_assert_int_ne(nvme_super_decode(b, &s), 0);
		b[i / 8] ^= (uint8_t)(1u << i % 8);
	}
	ck_assert_int_eq(nvme_super_decode(b, &s), 0);
	nvme_header_encode(uuid, &h, b);
	for (unsigned i = 0; i < NVME_BLOCK * 8; i++) {
		b[i / 8] ^= (uint8_t)(1u << i % 8);
		ck_assert_int_ne(nvme_header_decode(uuid, 7, b, h2), 0);
		b[i / 8] ^= (uint8_t)(1u << i % 8);
	}
	ck_assert_int_eq(nvme_header_decode(uuid, 7, b, h2), 0);
	free(h2);
}
END_TEST

START_TEST(every_flipped_bit_of_a_record_is_noticed)
{
	struct nvme_life life = life_example();
	struct tier_tag tag = { { 1 } };
	uint8_t b[NVME_RECORD];

	nvme_record_encode(&life, 77, 1, &tag, b);
	for (unsigned i = 0; i < NVME_RECORD * 8; i++) {
		b[i / 8] ^= (uint8_t)(1u << i % 8);
		ck_assert_int_eq(nvme_record_decode(&life, 77, b, &tag), NVME_FORMAT_E_DAMAGED);
		b[i / 8] ^= (uint8_t)(1u << i % 8);
	}
	memset(b, 0, sizeof(b));
	ck_assert_int_eq(nvme_record_decode(&life, 77, b, &tag), NVME_FORMAT_E_EMPTY);
	b[127] = 1;
	ck_assert_int_eq(nvme_record_decode(&life, 77, b, &tag), NVME_FORMAT_E_DAMAGED);
}
END_TEST

START_TEST(a_record_is_bound_to_place_life_owner_and_set)
{
	struct nvme_life life = life_example(), other, claimed;
	struct tier_tag tag = { { 1 } };
	uint8_t b[NVME_RECORD];
	uint32_t place;

	nvme_record_encode(&life, 77, 1, &tag, b);
	ck_assert_int_ne(nvme_record_decode(&life, 76, b, &tag), 0);
	other = life;
	other.area++;
	ck_assert_int_ne(nvme_record_decode(&other, 77, b, &tag), 0);
	other = life;
	other.epoch++;
	ck_assert_int_ne(nvme_record_decode(&other, 77, b, &tag), 0);
	other = life;
	other.digest++;
	ck_assert_int_ne(nvme_record_decode(&other, 77, b, &tag), 0);
	other = life;
	other.uuid[3]++;
	ck_assert_int_ne(nvme_record_decode(&other, 77, b, &tag), 0);
	/* It can be told from damage. */
	ck_assert(nvme_record_claims(uuid, b, &claimed, &place));
	ck_assert_uint_eq(place, 77);
	ck_assert_int_eq(nvme_record_decode(&claimed, place, b, &tag), 0);
	b[0]++;
	ck_assert(!nvme_record_claims(uuid, b, &claimed, &place));
}
END_TEST

/* Values that no drive can have, with a check that fits. */
static int super_with(unsigned offset, unsigned bytes, uint64_t value)
{
	struct nvme_super s = super_example();
	uint8_t b[NVME_BLOCK];
	uint64_t check;

	nvme_super_encode(&s, b);
	for (unsigned i = 0; i < bytes; i++)
		b[offset + i] = (uint8_t)(value >> 8 * i);
	check = XXH3_64bits_withSeed(b, 504, UINT64_C(0x6b76626d47333031));
	memcpy(b + 504, &check, 8);
	return nvme_super_decode(b, &s);
}

START_TEST(superblocks_that_make_no_sense)
{
	ck_assert_int_eq(super_with(32, 4, 2), 0);
	ck_assert_int_eq(super_with(8, 4, 2), NVME_FORMAT_E_VERSION);
	ck_assert_int_eq(super_with(0, 1, 'K'), NVME_FORMAT_E_FOREIGN);
	ck_assert_int_eq(super_with(12, 4, 2), NVME_FORMAT_E_DAMAGED);
	ck_assert_int_eq(super_with(32, 4, 3), NVME_FORMAT_E_DAMAGED);
	ck_assert_int_eq(super_with(36, 4, 0), NVME_FORMAT_E_DAMAGED);
	ck_assert_int_eq(super_with(36, 4, 17), NVME_FORMAT_E_DAMAGED);
	ck_assert_int_eq(super_with(40, 8, 41 * MIB), NVME_FORMAT_E_DAMAGED); /* five areas do not fit */
	ck_assert_int_eq(super_with(40, 8, 42 * MIB), 0);
	ck_assert_int_eq(super_with(40, 8, 42 * MIB + 1), NVME_FORMAT_E_DAMAGED);
	ck_assert_int_eq(super_with(48, 8, 0), NVME_FORMAT_E_DAMAGED);
	ck_assert_int_eq(super_with(48, 8, UINT64_MAX - 4095), NVME_FORMAT_E_DAMAGED);
	ck_assert_int_eq(super_with(56, 4, 0), NVME_FORMAT_E_DAMAGED);
	ck_assert_int_eq(super_with(56, 4, UINT32_MAX), NVME_FORMAT_E_DAMAGED);
	ck_assert_int_eq(super_with(60, 4, 1), NVME_FORMAT_E_DAMAGED);
	ck_assert_int_eq(super_with(500, 1, 1), NVME_FORMAT_E_DAMAGED);
	ck_assert_int_eq(super_with(3000, 1, 1), NVME_FORMAT_E_DAMAGED);
}
END_TEST

/* Headers, sectors and slots of a whole area: each byte belongs to one of them at most, and all lie inside. */
static void check_layout(uint64_t area_bytes, uint32_t drives, const struct tier_area_shape *shape)
{
	struct nvme_layout l = { .area_bytes = area_bytes, .drives = drives };
	uint32_t part = nvme_part_slots(area_bytes, shape), n = part * drives;
	uint64_t slot_bytes = shape->lane_bytes * shape->lanes, base = nvme_area_offset(&l, 3);
	uint8_t *used;

	ck_assert_uint_gt(part, 0);
	/* One more would not fit. */
	ck_assert_uint_gt(2 * NVME_BLOCK + (uint64_t)nvme_part_sectors(part + 1) * NVME_BLOCK + (part + 1) * slot_bytes,
	                  area_bytes);
	used = calloc(drives, area_bytes / NVME_BLOCK);
	ck_assert_ptr_nonnull(used);
	for (uint32_t p = 0; p < n; p++) {
		uint32_t drive = nvme_place_drive(&l, p), sector = nvme_place_sector(&l, p);
		uint8_t *mine = used + drive * (area_bytes / NVME_BLOCK);
		uint64_t at = nvme_slot_offset(&l, 3, n, shape, p) - base;

		ck_assert_uint_eq(sector % drives, drive);
		ck_assert_uint_eq(nvme_sector_place(&l, sector, p / drives % NVME_SECTOR_RECORDS), p);
		ck_assert_uint_le(at + slot_bytes, area_bytes);
		ck_assert_uint_ge(at, 2 * NVME_BLOCK + (uint64_t)nvme_part_sectors(part) * NVME_BLOCK);
		for (uint64_t b = at / NVME_BLOCK; b < (at + slot_bytes) / NVME_BLOCK; b++) {
			ck_assert_uint_eq(mine[b], 0);
			mine[b] = 1;
		}
		at = nvme_sector_offset(&l, 3, sector) - base;
		ck_assert_uint_ge(at, 2 * NVME_BLOCK);
		ck_assert_uint_ne(mine[at / NVME_BLOCK], 1);
		mine[at / NVME_BLOCK] = 2;
	}
	free(used);
}

START_TEST(nothing_overlaps)
{
	for (uint32_t drives = 1; drives <= NVME_DRIVES_MAX; drives += 3) {
		for (uint32_t lanes = 1; lanes <= TIER_MAX_LANES; lanes = lanes * 3 + 1) {
			for (uint64_t lane = NVME_BLOCK; lane * lanes < MIB; lane *= 3) {
				struct tier_area_shape shape = { .lane_bytes = lane, .lanes = lanes };

				check_layout(MIB + NVME_BLOCK * 4, drives, &shape);
			}
		}
	}
}
END_TEST

START_TEST(shapes_and_sizes_at_their_limits)
{
	struct tier_area_shape shape = { .lane_bytes = NVME_SLOT_MAX / 4, .lanes = 4 };

	ck_assert_uint_eq(nvme_part_slots(UINT64_C(4) << 30, &shape), 3);
	shape.lanes = 5;
	ck_assert_uint_eq(nvme_part_slots(UINT64_C(8) << 30, &shape), 0);
	shape = (struct tier_area_shape){ .lane_bytes = UINT64_MAX - 4095, .lanes = 64 };
	ck_assert_uint_eq(nvme_part_slots(UINT64_C(8) << 30, &shape), 0);
	shape = (struct tier_area_shape){ .lane_bytes = 4096, .lanes = 0 };
	ck_assert_uint_eq(nvme_part_slots(MIB, &shape), 0);
	shape.lanes = 1;
	ck_assert_uint_eq(nvme_part_slots(0, &shape), 0);
	ck_assert_uint_eq(nvme_part_slots(8192, &shape), 0);
	ck_assert_uint_eq(nvme_part_slots(8192 + 4096, &shape), 0);
	ck_assert_uint_eq(nvme_part_slots(8192 + 8192, &shape), 1);
	ck_assert_uint_eq(nvme_areas_in(0, MIB), 0);
	ck_assert_uint_eq(nvme_areas_in(2 * MIB, MIB), 0);
	ck_assert_uint_eq(nvme_areas_in(2 * MIB + 4096, MIB), 1);
	ck_assert_uint_eq(nvme_areas_in(UINT64_MAX, 4096), NVME_AREAS_MAX);
	ck_assert_uint_eq(nvme_areas_in(UINT64_MAX, 0), 0);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("nvme_format");
	TCase *tc = tcase_create("nvme_format");

	tcase_add_test(tc, superblock_bytes);
	tcase_add_test(tc, header_bytes);
	tcase_add_test(tc, record_bytes_are_golden);
	tcase_add_test(tc, every_flipped_bit_of_a_block_is_noticed);
	tcase_add_test(tc, every_flipped_bit_of_a_record_is_noticed);
	tcase_add_test(tc, a_record_is_bound_to_place_life_owner_and_set);
	tcase_add_test(tc, superblocks_that_make_no_sense);
	tcase_add_test(tc, nothing_overlaps);
	tcase_add_test(tc, shapes_and_sizes_at_their_limits);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	SRunner *sr = srunner_create(suite());
	int failed;

	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
