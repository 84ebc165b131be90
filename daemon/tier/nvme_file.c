/* SPDX-License-Identifier: Apache-2.0 */
/* Reads a drive from end to end, metadata only, through the page cache.
 * Invariant: nothing is written without repair, and nothing at all that is not certainly ours. */
#include "tier/nvme_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

#define CHUNK_SECTORS 256u

struct file {
	int fd; /* owns */
	uint64_t there;
	const char *path; /* borrows */
	const struct nvme_file_ask *ask;
	struct nvme_file_report *report;
	struct nvme_layout layout;
	char *why;
	bool write_failed;
};

#define say(why, ...) ((void)snprintf((why), NVME_WHY_BYTES, __VA_ARGS__))

static int file_open(struct file *f, bool write)
{
	struct stat st;

	f->fd = open(f->path, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (f->fd < 0 || fstat(f->fd, &st) != 0) {
		say(f->why, "%s: cannot be opened (%s)", f->path, strerror(errno));
		return NVME_E_OPEN;
	}
	if (S_ISREG(st.st_mode)) {
		f->there = (uint64_t)st.st_size;
	} else if (!S_ISBLK(st.st_mode) || ioctl(f->fd, BLKGETSIZE64, &f->there) != 0) {
		say(f->why, "%s: is neither a file nor a block device", f->path);
		return NVME_E_OPEN;
	}
	if (flock(f->fd, (write ? LOCK_EX : LOCK_SH) | LOCK_NB) != 0) {
		say(f->why, "%s: is in use by a daemon; stop it first", f->path);
		return NVME_E_BUSY;
	}
	return 0;
}

/* What is not there or cannot be read is zeros. */
static void file_read(struct file *f, uint8_t *buf, uint64_t size, uint64_t offset)
{
	for (uint64_t at = 0; at < size; at += NVME_BLOCK) {
		ssize_t n = pread(f->fd, buf + at, NVME_BLOCK, (off_t)(offset + at));

		if (n == (ssize_t)NVME_BLOCK)
			continue;
		memset(buf + at + (n > 0 ? n : 0), 0, NVME_BLOCK - (size_t)(n > 0 ? n : 0));
		f->report->unreadable++;
	}
}

static void file_write(struct file *f, const uint8_t *block, uint64_t offset)
{
	if (offset + NVME_BLOCK > f->there)
		return; /* cut off; the daemon makes it long again */
	if (pwrite(f->fd, block, NVME_BLOCK, (off_t)offset) == (ssize_t)NVME_BLOCK) {
		f->report->repaired++;
		return;
	}
	say(f->why, "%s: cannot be written (%s)", f->path, strerror(errno));
	f->write_failed = true;
}

/* ---- superblocks ---- */

static uint64_t last_super(const struct file *f, const struct nvme_super *best)
{
	uint64_t size = best ? best->size : f->there / NVME_BLOCK * NVME_BLOCK;

	return nvme_super_offset(size, NVME_SUPER_COPIES - 1);
}

static uint64_t super_at(const struct file *f, uint32_t copy, const struct nvme_super *best)
{
	return copy < NVME_SUPER_COPIES - 1 ? (uint64_t)copy * NVME_BLOCK : last_super(f, best);
}

static int supers_find(struct file *f, struct nvme_super *best)
{
	bool found = false, version = false, damaged = false, foreign = false;
	uint8_t block[NVME_BLOCK];
	struct nvme_super s;

	for (uint32_t i = 0; i < NVME_SUPER_COPIES; i++) {
		if (i == NVME_SUPER_COPIES - 1 && !found && f->there < NVME_HEAD_BYTES + NVME_BLOCK)
			break;
		file_read(f, block, NVME_BLOCK, super_at(f, i, found ? best : NULL));
		switch (nvme_super_decode(block, &s)) {
		case 0:
			if (!found || s.seq > best->seq)
				*best = s;
			found = true;
			break;
		case NVME_FORMAT_E_VERSION:
			version = true;
			break;
		case NVME_FORMAT_E_DAMAGED:
			damaged = true;
			break;
		case NVME_FORMAT_E_FOREIGN:
			foreign = true;
			break;
		default:
			break;
		}
	}
	if (found)
		return 0;
	say(f->why, "%s: %s", f->path,
	    version   ? "was written by another version of kvbmd"
	    : damaged ? "every superblock is damaged"
	    : foreign ? "is not kvbmd's"
	              : "is empty");
	return version ? NVME_E_VERSION : damaged ? NVME_E_DAMAGED : NVME_E_FOREIGN;
}

static void supers_check(struct file *f, const struct nvme_super *best)
{
	struct nvme_file_report *r = f->report;
	uint8_t block[NVME_BLOCK], good[NVME_BLOCK];
	struct nvme_super s;

	nvme_super_encode(best, good);
	for (uint32_t i = 0; i < NVME_SUPER_COPIES; i++) {
		file_read(f, block, NVME_BLOCK, super_at(f, i, best));
		if (memcmp(block, good, NVME_BLOCK) == 0) {
			r->supers_good++;
			continue;
		}
		if (nvme_super_decode(block, &s) == 0)
			r->supers_stale++;
		else
			r->supers_damaged++;
		if (f->ask->repair)
			file_write(f, good, super_at(f, i, best));
	}
}

/* ---- areas ---- */

static bool headers_check(struct file *f, uint32_t area, struct nvme_header *ret_best)
{
	struct nvme_file_report *r = f->report;
	const uint8_t *uuid = r->super.uuid;
	uint8_t blocks[NVME_HEADER_COPIES][NVME_BLOCK], good[NVME_BLOCK];
	bool found = false, written = false;
	struct nvme_header h;

	file_read(f, blocks[0], sizeof(blocks), nvme_area_offset(&f->layout, area));
	for (uint32_t i = 0; i < NVME_HEADER_COPIES; i++) {
		int d = nvme_header_decode(uuid, area, blocks[i], &h);

		written = written || d != NVME_FORMAT_E_EMPTY;
		if (d != 0 || (found && h.seq <= ret_best->seq))
			continue;
		*ret_best = h;
		found = true;
	}
	if (found)
		nvme_header_encode(uuid, ret_best, good);
	for (uint32_t i = 0; i < NVME_HEADER_COPIES && written; i++) {
		if (found && memcmp(blocks[i], good, NVME_BLOCK) == 0) {
			r->headers_good++;
			continue;
		}
		if (nvme_header_decode(uuid, area, blocks[i], &h) == 0)
			r->headers_stale++;
		else
			r->headers_damaged++;
		if (found && f->ask->repair)
			file_write(f, good, nvme_area_offset(&f->layout, area) + (uint64_t)i * NVME_BLOCK);
	}
	return found && ret_best->used &&
	       ret_best->n_slots == nvme_part_slots(f->layout.area_bytes, &ret_best->shape) * f->layout.drives;
}

static enum nvme_file_state record_state(const struct nvme_life *life, uint32_t place, const uint8_t *record,
                                         struct tier_tag *ret_tag)
{
	struct nvme_life claimed;
	uint32_t claimed_place;

	if (nvme_record_decode(life, place, record, ret_tag) == 0)
		return NVME_FILE_GOOD;
	if (!nvme_record_claims(life->uuid, record, &claimed, &claimed_place) ||
	    nvme_record_decode(&claimed, claimed_place, record, ret_tag) != 0 || claimed.epoch == life->epoch)
		return NVME_FILE_DAMAGED;
	return NVME_FILE_STALE;
}

/* True: the sector was changed. */
static bool sector_check(struct file *f, const struct nvme_header *h, const struct nvme_life *life, uint32_t sector,
                         uint8_t *block)
{
	static const uint8_t zeros[NVME_RECORD];
	struct nvme_file_report *r = f->report;
	bool changed = false;

	for (uint32_t i = 0; i < NVME_SECTOR_RECORDS; i++) {
		struct nvme_file_record record = { .area = h->area, .place = nvme_sector_place(&f->layout, sector, i) };
		uint8_t *at = block + (size_t)i * NVME_RECORD;

		if (record.place >= h->n_slots)
			continue;
		r->slots++;
		if (memcmp(at, zeros, NVME_RECORD) == 0) {
			r->records_free++;
			continue;
		}
		record.offset = nvme_slot_offset(&f->layout, h->area, h->n_slots, &h->shape, record.place);
		record.state = record_state(life, record.place, at, &record.tag);
		r->records_good += record.state == NVME_FILE_GOOD;
		r->records_stale += record.state == NVME_FILE_STALE;
		r->records_damaged += record.state == NVME_FILE_DAMAGED;
		if (f->ask->on_record)
			f->ask->on_record(f->ask->ctx, &record);
		if (record.state == NVME_FILE_DAMAGED && f->ask->repair) {
			memset(at, 0, NVME_RECORD);
			changed = true;
		}
	}
	return changed;
}

static void records_check(struct file *f, const struct nvme_header *h, uint8_t *chunk)
{
	uint32_t drive = f->report->super.drive, part = nvme_part_sectors(h->n_slots / f->layout.drives);
	struct nvme_life life = { .area = h->area, .epoch = h->epoch, .digest = nvme_owner_digest(&h->owner) };

	memcpy(life.uuid, f->report->super.uuid, NVME_UUID_BYTES);
	for (uint32_t first = 0; first < part; first += CHUNK_SECTORS) {
		uint32_t n = part - first < CHUNK_SECTORS ? part - first : CHUNK_SECTORS;

		file_read(f, chunk, (uint64_t)n * NVME_BLOCK,
		          nvme_sector_offset(&f->layout, h->area, first * f->layout.drives + drive));
		for (uint32_t i = 0; i < n; i++) {
			uint32_t sector = (first + i) * f->layout.drives + drive;
			uint8_t *block = chunk + (size_t)i * NVME_BLOCK;

			if (sector_check(f, h, &life, sector, block))
				file_write(f, block, nvme_sector_offset(&f->layout, h->area, sector));
		}
	}
}

static void areas_check(struct file *f, uint8_t *chunk)
{
	for (uint32_t i = 0; i < f->report->super.areas; i++) {
		struct nvme_header h;

		if (!headers_check(f, i, &h))
			continue;
		f->report->areas_used++;
		if (f->ask->on_area) {
			struct nvme_file_area area = { .area = i,
				                       .n_slots = h.n_slots,
				                       .epoch = h.epoch,
				                       .seq = h.seq,
				                       .shape = h.shape,
				                       .owner = h.owner };

			f->ask->on_area(f->ask->ctx, &area);
		}
		records_check(f, &h, chunk);
	}
}

int nvme_file_check(const char *path, const struct nvme_file_ask *ask, char *ret_why, struct nvme_file_report *ret_report)
{
	struct file f = { .fd = -1, .path = path, .ask = ask, .report = ret_report, .why = ret_why };
	_cleanup_(free_p) uint8_t *chunk = malloc((size_t)CHUNK_SECTORS * NVME_BLOCK);
	int r;

	if (!chunk)
		return error_origin(-ENOMEM);
	memset(ret_report, 0, sizeof(*ret_report));
	r = file_open(&f, ask->repair);
	if (r == 0)
		r = supers_find(&f, &ret_report->super);
	if (r == 0) {
		f.layout = (struct nvme_layout){ .area_bytes = ret_report->super.area_bytes,
			                         .drives = ret_report->super.drives };
		ret_report->unreadable = 0;
		supers_check(&f, &ret_report->super);
		areas_check(&f, chunk);
		if (f.write_failed || (ret_report->repaired > 0 && fdatasync(f.fd) != 0))
			r = NVME_E_IO;
	}
	close_p(&f.fd);
	return r;
}

int nvme_file_wipe(const char *path, char *ret_why)
{
	static const struct nvme_file_ask nothing;
	struct nvme_file_report report;
	struct file f = { .fd = -1, .path = path, .ask = &nothing, .report = &report, .why = ret_why };
	uint8_t zeros[NVME_BLOCK];
	struct nvme_super best;
	int r;

	memset(&report, 0, sizeof(report));
	memset(zeros, 0, sizeof(zeros));
	r = file_open(&f, true);
	if (r == 0)
		r = supers_find(&f, &best);
	if (r == 0 || r == NVME_E_VERSION || r == NVME_E_DAMAGED) {
		/* The end first: while a copy at the beginning is left, it is ours and can be wiped again. */
		if (r == 0 || f.there >= NVME_HEAD_BYTES + NVME_BLOCK)
			file_write(&f, zeros, last_super(&f, r == 0 ? &best : NULL));
		for (uint32_t i = NVME_SUPER_COPIES - 1; i-- > 0;)
			file_write(&f, zeros, (uint64_t)i * NVME_BLOCK);
		r = f.write_failed || fdatasync(f.fd) != 0 ? NVME_E_IO : 0;
	}
	close_p(&f.fd);
	return r;
}
