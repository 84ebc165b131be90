/* SPDX-License-Identifier: Apache-2.0 */
/* A drive of the NVMe tier while no daemon has it: checked, shown, mended, emptied.
 *
 * Blocking, any thread, one file or device at a time; each of a set is looked at for itself.  It sees tags, no keys: those
 * are their owner's to read.
 */
#ifndef KVBMD_TIER_NVME_FILE_H
#define KVBMD_TIER_NVME_FILE_H

#include "tier/nvme.h"
#include "tier/nvme_format.h"

enum nvme_file_state {
	NVME_FILE_GOOD,
	NVME_FILE_STALE,   /* of another life of the area, or older: normal */
	NVME_FILE_DAMAGED, /* or in another's place */
};

struct nvme_file_area {
	uint32_t area, n_slots; /* of all drives */
	uint64_t epoch, seq;
	struct tier_area_shape shape;
	struct tier_owner owner;
};

struct nvme_file_record {
	uint32_t area, place;
	enum nvme_file_state state;
	uint64_t offset;     /* of its slot on this drive */
	struct tier_tag tag; /* GOOD only */
};

struct nvme_file_report {
	struct nvme_super super;
	uint32_t supers_good, supers_stale, supers_damaged; /* of NVME_SUPER_COPIES; zeros count as damaged */
	uint32_t areas_used, headers_good, headers_stale, headers_damaged;
	uint64_t slots, records_good, records_stale, records_damaged, records_free;
	uint64_t unreadable; /* blocks of 4 KiB */
	uint64_t repaired;   /* blocks of 4 KiB written */
};

struct nvme_file_ask {
	/* Superblocks and headers are copied over those that differ from the best; records that are damaged are cleared. */
	bool repair;
	/* May be NULL: an area in use, then each of its records on this drive that is not free. */
	void (*on_area)(void *ctx, const struct nvme_file_area *area);
	void (*on_record)(void *ctx, const struct nvme_file_record *record);
	void *ctx;
};

/* Outcomes: NVME_E_OPEN, NVME_E_BUSY, NVME_E_FOREIGN, NVME_E_VERSION, NVME_E_DAMAGED (no valid superblock), NVME_E_IO (a
 * repair could not be written), with a sentence in @ret_why.  Damage elsewhere is no outcome: it is in the report. */
int nvme_file_check(const char *path, const struct nvme_file_ask *ask, char *ret_why, struct nvme_file_report *ret_report);

/* All that it holds is lost: the next daemon finds it empty.  Outcomes: NVME_E_OPEN, NVME_E_BUSY, NVME_E_IO; NVME_E_FOREIGN: it
 * holds something that is not ours, which is left as it is. */
int nvme_file_wipe(const char *path, char *ret_why);

#endif
