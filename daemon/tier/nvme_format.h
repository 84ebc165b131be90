/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes on a drive: one regular file or block device each.  Pure: buffers in, values out; fuzzed.
 *
 * All numbers are little-endian and unsigned.  check: XXH3-64 of what stands before it, with a seed of its kind.
 *
 * A drive
 *	0       superblock, copies 0..3, 4 KiB each
 *	16 KiB  zeros
 *	1 MiB   areas, area_bytes each, the same on every drive of a set
 *	size - 4 KiB   superblock, copy 4
 *
 * Superblock, 4096 bytes
 *	0     8  "kvbmdG3\n"
 *	8     4  version, 1
 *	12    4  flags: 1 CLEAN: ended in order, nothing was under way
 *	16   16  uuid of the set of drives
 *	32    4  drive, of
 *	36    4  drives
 *	40    8  size of this file or device, as far as it is used
 *	48    8  area_bytes: an area's part on one drive
 *	56    4  areas
 *	60    4  zero
 *	64    8  seq: rises with each writing; the highest valid one is believed
 *	72   16  boot id of the machine when it was written: writes of a dead daemon do not survive a boot
 *	88       zeros
 *	504   8  check
 *	512      zeros
 * Whatever comes after version 1 keeps the first 12 bytes, so that it is refused and not taken for damage or emptiness.
 *
 * An area's part on a drive.  Place p of the area is on drive p % drives, there number p / drives
 *	0       area header, two copies, 4 KiB each; all copies on all drives are alike, the highest valid seq is believed
 *	8 KiB   records, 128 bytes each, 32 to a sector of 4 KiB
 *	        zeros or old bytes
 *	end - (part's slots) * slot bytes    slots; in each lane 0's bytes, lane 1's, ...
 *
 * Area header, 4096 bytes
 *	0     8  "kvbmdAR\n"
 *	8     4  version, 1
 *	12    4  state: 0 free, 1 used
 *	16   16  uuid of the set
 *	32    4  area
 *	36    4  slots, on all drives together
 *	40    8  epoch: a number no other life of any area had
 *	48    8  seq
 *	56    8  lane_bytes, a multiple of 4096
 *	64    4  lanes
 *	68    4  length of owner
 *	72 2048  owner: opaque, zeros behind its length
 *	2120     zeros
 *	4088  8  check
 *
 * Record, 128 bytes; all zeros: the slot is free
 *	0     4  "KVr1"
 *	4     4  state: 1 used
 *	8     4  area
 *	12    4  place
 *	16    8  epoch of the area
 *	24    8  seq of the writing of its sector
 *	32    8  digest of the owner (XXH3-64)
 *	40   80  tag: opaque; the owner's key and the checksum of the payload are in there
 *	120   8  check, seeded with the set's uuid too
 *
 * Order.  A slot goes through four steps, each begun when the drive has answered the one before, none followed by a flush:
 *	1  a sector of records in which it is free     (with a group, some time ahead: owners set slots free before they need them)
 *	2  an area header of this life                 (once; then all records of former lives are void)
 *	3  its data
 *	4  a sector of records with its own            (with a group: 16 of them, or 50 ms)
 * So where all that a drive has answered is there (the daemon dies, the machine lives), no record speaks of a slot that was overwritten, in whole or in
 * part; what is lost is at most what was between 3 and 4, and places set free.
 *
 * Crash windows.  When the power fails a drive may have kept any of it.  Nothing here relies on the order in which writes become durable, nor
 * on any flush:
 *	data written, record not       the slot is lost; or, if 1 did not last, a former record of it is found: its tag's checksum
 *	                               of the payload does not fit, which the owner sees.  A miss.
 *	record written, data not       the same.  (Not our order, but a drive may choose it.)
 *	record sector torn             records are within 512 bytes; those of the torn part are old ones, of this or another
 *	                               life of the area: the epoch tells.
 *	area header not written        the area's former life is found.  Its records that were overwritten name another epoch;
 *	                               those that were not are right, or their payload was overwritten: a miss.
 *	header torn                    its check fails; the other copies are older or newer.
 *	superblock torn                its bytes are within 512; and there are four other copies.
 *	anything in another's place    uuid, area, place, epoch are in what is checked.
 *	writes of a dead daemon        land late, on slots that were given anew: the payload does not fit its record.  So
 *	                               that this is rare, a daemon that finds no CLEAN waits before it writes.
 *	first formatting               has seq 1; the daemon goes on with 2 before it writes anything else.  So drives that are
 *	                               empty beside others with seq 1 are formatted, together with those.
 * CLEAN only saves that waiting.  Nobody believes a slot because of it.
 */
#ifndef KVBMD_TIER_NVME_FORMAT_H
#define KVBMD_TIER_NVME_FORMAT_H

#include "tier/tier.h"

#define NVME_BLOCK 4096u
#define NVME_RECORD 128u
#define NVME_SECTOR_RECORDS (NVME_BLOCK / NVME_RECORD)
#define NVME_VERSION 1u
#define NVME_SUPER_COPIES 5u
#define NVME_HEADER_COPIES 2u /* on each drive */
#define NVME_DRIVES_MAX 16u
#define NVME_AREAS_MAX (1u << 20)
#define NVME_HEAD_BYTES (UINT64_C(1) << 20)
#define NVME_SLOT_MAX (UINT64_C(1) << 30)
#define NVME_UUID_BYTES 16u

enum {
	NVME_FORMAT_E_EMPTY = 1, /* zeros */
	NVME_FORMAT_E_FOREIGN,   /* none of ours */
	NVME_FORMAT_E_VERSION,   /* ours, of another version */
	NVME_FORMAT_E_DAMAGED,   /* ours, but not whole; or of another place, life or set */
};

struct nvme_super {
	uint8_t uuid[NVME_UUID_BYTES], boot_id[16];
	uint32_t drive, drives, areas;
	uint64_t size, area_bytes, seq;
	bool clean;
};

void nvme_super_encode(const struct nvme_super *s, uint8_t *block);
int nvme_super_decode(const uint8_t *block, struct nvme_super *ret_super);

/* Where copy @copy is on a drive of @size bytes. */
uint64_t nvme_super_offset(uint64_t size, uint32_t copy);

/* Areas of @area_bytes that a drive has room for. */
uint64_t nvme_areas_in(uint64_t size, uint64_t area_bytes);

/* Slots of a part of an area; 0: lane_bytes is no multiple of 4096, too many lanes, larger than 1 GiB, does not fit. */
uint32_t nvme_part_slots(uint64_t area_bytes, const struct tier_area_shape *shape);

struct nvme_header {
	bool used;
	uint32_t area, n_slots;
	uint64_t epoch, seq;
	struct tier_area_shape shape;
	struct tier_owner owner;
};

void nvme_header_encode(const uint8_t *uuid, const struct nvme_header *h, uint8_t *block);
/* @area: the one in whose place it was found. */
int nvme_header_decode(const uint8_t *uuid, uint32_t area, const uint8_t *block, struct nvme_header *ret_header);

uint64_t nvme_owner_digest(const struct tier_owner *owner);

/* What a record is bound to, besides its place. */
struct nvme_life {
	uint8_t uuid[NVME_UUID_BYTES];
	uint32_t area;
	uint64_t epoch, digest;
};

void nvme_record_encode(const struct nvme_life *life, uint32_t place, uint64_t seq, const struct tier_tag *tag,
                        uint8_t *record);
/* Outcomes: NVME_FORMAT_E_EMPTY, NVME_FORMAT_E_DAMAGED. */
int nvme_record_decode(const struct nvme_life *life, uint32_t place, const uint8_t *record, struct tier_tag *ret_tag);

/* What a record says of itself, whether it is true or not: given to nvme_record_decode() it tells a record of another life
 * from a damaged one.  False: no record. */
bool nvme_record_claims(const uint8_t *uuid, const uint8_t *record, struct nvme_life *ret_life, uint32_t *ret_place);

/* Where things are on a drive. */
struct nvme_layout {
	uint64_t area_bytes;
	uint32_t drives;
};

static inline uint64_t nvme_area_offset(const struct nvme_layout *l, uint32_t area)
{
	return NVME_HEAD_BYTES + (uint64_t)area * l->area_bytes;
}

static inline uint32_t nvme_place_drive(const struct nvme_layout *l, uint32_t place)
{
	return place % l->drives;
}

/* Sectors of records are numbered through an area: sector s is on drive s % drives, as its (s / drives)th there. */
static inline uint32_t nvme_place_sector(const struct nvme_layout *l, uint32_t place)
{
	return place / l->drives / NVME_SECTOR_RECORDS * l->drives + place % l->drives;
}

static inline uint32_t nvme_sector_place(const struct nvme_layout *l, uint32_t sector, uint32_t record)
{
	return (sector / l->drives * NVME_SECTOR_RECORDS + record) * l->drives + sector % l->drives;
}

static inline uint32_t nvme_part_sectors(uint32_t part_slots)
{
	return (part_slots + NVME_SECTOR_RECORDS - 1) / NVME_SECTOR_RECORDS;
}

static inline uint64_t nvme_sector_offset(const struct nvme_layout *l, uint32_t area, uint32_t sector)
{
	return nvme_area_offset(l, area) + ((uint64_t)NVME_HEADER_COPIES + sector / l->drives) * NVME_BLOCK;
}

static inline uint64_t nvme_slot_offset(const struct nvme_layout *l, uint32_t area, uint32_t n_slots,
                                        const struct tier_area_shape *shape, uint32_t place)
{
	uint64_t slot_bytes = shape->lane_bytes * shape->lanes, part_slots = n_slots / l->drives;

	return nvme_area_offset(l, area) + l->area_bytes - (part_slots - place / l->drives) * slot_bytes;
}

#endif
