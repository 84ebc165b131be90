/* SPDX-License-Identifier: Apache-2.0 */
/* Inside tier/nvme*.c only: the tier's state and what its files call of each other.
 *
 * nvme.c         areas, the face                nvme_io.c      copies: queue, dispatch, completion, health
 * nvme_open.c    files, superblocks at start    nvme_record.c  records, headers, superblocks while it runs
 * nvme_recover.c scanning                       nvme_memory.c  registered host memory
 */
#ifndef KVBMD_TIER_NVME_STATE_H
#define KVBMD_TIER_NVME_STATE_H

#include "loop/loop.h"
#include "loop/uring.h"
#include "tier/nvme.h"
#include "tier/nvme_format.h"

#define NVME_METAS 16u /* blocks of metadata being written at once; filling one takes microseconds of the loop */
#define NVME_SCANS 8u  /* reads of recovery at once */
#define NVME_SCAN_BYTES (UINT64_C(1) << 20)
#define NVME_GROUP 16u      /* records that make a group */
#define NVME_ERRORS_MAX 10u /* in a minute, then it goes offline */
#define NVME_NOTE_BYTES 320u
#define NVME_IN_FLIGHT_BYTES (UINT64_C(16) << 20) /* a drive; a single larger copy may be */
#define NVME_FILES NVME_DRIVES_MAX
#define NVME_BUFFERS 4096u

struct nvme;

struct nvme_timer {
	struct loop_timer timer;
	struct nvme *t; /* borrows */
};

/* One operation of the ring.  Whoever has it is told once: 0 (all bytes), or TIER_E_IO. */
struct nvme_op {
	struct uring_op op;
	struct list link; /* nvme.flying, oldest first; otherwise its owner's */
	struct nvme *t;   /* borrows */
	uint64_t since_ns;
	uint32_t drive;
	bool retried;
	void (*done)(struct nvme_op *o, int r);
};

/* A part of a copy. */
struct nvme_piece {
	struct nvme_op o; /* first */
	struct tier_io *io;
};

/* A block of metadata being written. */
struct nvme_meta {
	struct nvme_op o; /* first */
	uint8_t *block;   /* in nvme.meta_blocks */
	enum nvme_meta_kind { NVME_META_RECORDS, NVME_META_HEADER, NVME_META_SUPER } kind;
	uint32_t area;
	uint32_t number; /* sector; drive * copies + copy; copy */
};

struct nvme_drive {
	char *path;                  /* owns */
	int fd, lock_fd;             /* owns */
	bool device, buffered, made; /* made: by us, in this start */
	uint64_t size;
	uint32_t file;      /* the ring's number */
	struct nvme_op sys; /* probe or flush: never both */
	bool sys_busy;
	bool alone;                     /* no earlier daemon's ring holds it any more: see nvme_drives_alone() */
	uint8_t super_todo, super_busy; /* bits of copies */
};

#define NVME_ALONE_NS (20 * CLOCK_NS_PER_MS) /* between two looks at whether a dead daemon's writes are done */

enum nvme_area_state {
	NVME_AREA_FREE = 0,
	NVME_AREA_USED,
	NVME_AREA_DROPPED, /* free, once nothing of it is being written */
};

struct nvme_area {
	enum nvme_area_state state;
	struct nvme_life life;
	struct tier_area_shape shape;
	uint32_t n_slots, n_sectors, n_dirty, n_busy; /* sectors; n_busy counts headers too */
	uint32_t in_flight, next; /* copies, waiting ones too; where the search for dirty sectors goes on */
	uint64_t *dirty, *busy;   /* bits, one a sector; NULL unless USED or DROPPED.  dirty owns them all */
	uint64_t *listed;         /* one a place: a record on the drive may say that it is in use */
	uint64_t *writing;        /* one a place: it is, or is about to be, overwritten */
	struct tier_owner *owner; /* owns; NULL unless USED or DROPPED */
	uint64_t header_seq;
	bool header_known; /* a header of this life is on the drive, so that records of others are void */
	uint32_t header_todo, header_busy; /* bits: drive * NVME_HEADER_COPIES + copy */
	struct list link;                  /* nvme.unsaved, while something is dirty */
};

/* Moving estimates of one direction. */
struct nvme_meter {
	uint64_t rate, latency_ns;
	uint64_t busy_since_ns, busy_ns, bytes;
	uint32_t in_flight;
};

/* A piece of host memory that copies name. */
struct nvme_host {
	const struct tier_region *region; /* borrows */
	uint64_t chunk;                   /* bytes a buffer */
	uint32_t n, n_known;              /* buffers it needs, and has; of the first n_known */
	uint32_t *buffers;                /* owns */
};

enum nvme_phase { NVME_NEW, NVME_RECOVERING, NVME_SERVING, NVME_CLOSING };
enum nvme_close_step {
	NVME_CLOSE_DRAIN,
	NVME_CLOSE_STORE,
	NVME_CLOSE_FLUSH,
	NVME_CLOSE_MARK,
	NVME_CLOSE_SEAL,
	NVME_CLOSE_RING
};

struct nvme_scan;

struct nvme {
	struct tier_lower lower; /* first */
	struct loop *loop;       /* borrows */
	struct uring *ring;      /* owns */
	enum nvme_phase phase;
	bool areas_known; /* on_area() was called for all there are */
	bool offline, was_clean, fresh, recovered, mark_clean;
	bool deadline_running;
	char note[NVME_NOTE_BYTES], why[NVME_NOTE_BYTES], stat_note[1024]; /* fall-backs; why offline */
	/* drives */
	struct nvme_drive drives[NVME_DRIVES_MAX];
	struct nvme_layout layout;
	struct nvme_super super; /* but for drive and size */
	uint8_t *meta_blocks;    /* owns: NVME_METAS of metadata, then one a drive for probes */
	uint32_t meta_buffer;
	uint32_t sys_left; /* probes or flushes under way */
	bool sys_failed;
	/* areas */
	struct nvme_area *areas; /* owns */
	uint32_t n_areas, n_free, areas_next;
	uint64_t epoch, seq, super_seq;
	/* copies */
	struct list queues[TIER_PRIORITIES][2]; /* borrows; [write] */
	uint32_t n_queued[2];
	uint32_t depth, queue_max, in_flight, writes_in_flight;
	uint64_t bytes_in_flight;
	struct nvme_piece *pieces; /* owns */
	struct list pieces_free;   /* of pieces */
	uint32_t n_pieces_free;
	struct list held; /* borrows: writes that wait until no record speaks of their place */
	struct loop_deferred hurry;
	struct list flying; /* nvme_op, oldest first */
	struct nvme_meter meters[2];
	uint64_t done_bytes[2], today_bytes, today_since_ns, budget_bytes, errors;
	uint64_t error_ns[NVME_ERRORS_MAX]; /* a ring of the last ones */
	uint32_t error_next;
	uint64_t io_deadline_ns, probe_ns, record_delay_ns, grace_ns, writes_from_ns;
	struct nvme_timer deadline, probe, group, grace, pinning;
	/* metadata */
	struct nvme_meta metas[NVME_METAS];
	struct list metas_free;
	struct list unsaved; /* areas with something dirty */
	uint32_t n_group, n_metas_busy;
	bool storing; /* a group is being written out */
	/* recovery */
	struct nvme_scan *scan; /* owns */
	/* host memory */
	struct nvme_host *hosts; /* owns; by address of region */
	uint32_t n_hosts, hosts_max;
	bool pin_refused;
	/* the end */
	struct loop_deferred tick;
	enum nvme_close_step step;
	uint32_t closes_due;
	void (*closed)(void *arg);
	void *closed_arg;
};

static inline struct nvme *nvme_of(struct tier_lower *t)
{
	return container_of(t, struct nvme, lower);
}

static inline struct nvme *nvme_of_timer(struct loop_timer *timer)
{
	return container_of(timer, struct nvme_timer, timer)->t;
}

static inline bool nvme_bit(const uint64_t *bits, uint32_t i)
{
	return bits[i / 64] >> (i % 64) & 1;
}

static inline void nvme_bit_set(uint64_t *bits, uint32_t i)
{
	bits[i / 64] |= UINT64_C(1) << (i % 64);
}

static inline void nvme_bit_clear(uint64_t *bits, uint32_t i)
{
	bits[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

static inline uint64_t nvme_slot_bytes(const struct tier_area_shape *shape)
{
	return shape->lane_bytes * shape->lanes;
}

/* ---- nvme.c ---- */
void nvme_area_drop(struct tier_lower *lower, uint32_t area);
int nvme_area_use(struct nvme *t, const struct nvme_header *h);
/* DROPPED -> FREE when nothing of it is under way. */
void nvme_area_settle(struct nvme *t, uint32_t area);
/* Closing: something may be done. */
void nvme_tick(struct nvme *t);
void nvme_note(struct nvme *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- nvme_open.c ---- */
int nvme_open_drives(struct nvme *t, const struct nvme_config *config, char *ret_why);
void nvme_close_drives(struct nvme *t);

/* ---- nvme_io.c ---- */
/* The rest of @o->op is filled in. */
void nvme_op_start(struct nvme *t, struct nvme_op *o, uint32_t drive);
int nvme_submit(struct tier_lower *lower, struct tier_io *io);
void nvme_dispatch(struct nvme *t);
void nvme_queue_fail(struct nvme *t);
bool nvme_is_online(const struct nvme *t);
/* An operation is older than the deadline. */
bool nvme_is_overdue(const struct nvme *t);
/* @kind on all drives: URING_READ probes.  nvme_sys_done() follows. */
void nvme_sys_start(struct nvme *t, enum uring_kind kind);
void nvme_on_deadline(struct loop_timer *timer);
void nvme_on_grace(struct loop_timer *timer);
/* Is nothing in flight any more that a dead daemon has begun?  Asked again until it is. */
bool nvme_drives_alone(struct nvme *t);
void nvme_stat(struct tier_lower *lower, struct tier_lower_stat *ret_stat);

/* ---- nvme_record.c ---- */
/* @written: a crash would lose it; otherwise it is a slot set free, whose record waits for others. */
void nvme_record_dirty(struct nvme *t, uint32_t area, uint32_t place, bool written);
void nvme_header_dirty(struct nvme *t, uint32_t area);
void nvme_super_dirty(struct nvme *t, bool clean);
bool nvme_super_is_stored(const struct nvme *t);
/* @io is a write.  Its place is free from now on, whatever its owner says, until nvme_place_written().  true: it is in nvme.held, because a record on
 * the drive may say what is in the place. */
bool nvme_place_hold(struct nvme *t, struct tier_io *io);
void nvme_place_written(struct nvme *t, const struct tier_io *io);
/* Writes what is dirty, as far as there are blocks for it; goes on by itself. */
void nvme_store(struct nvme *t);
bool nvme_is_stored(const struct nvme *t);

/* ---- nvme_recover.c ---- */
void nvme_recover(struct nvme *t);
/* Superblocks were stored. */
void nvme_recover_step(struct nvme *t);
/* No new reads, and nothing more is told. */
void nvme_recover_stop(struct nvme *t);
void nvme_recover_free(struct nvme *t);

/* ---- nvme_memory.c ---- */
void nvme_region_seen(struct tier_lower *lower, const struct tier_region *region);
void nvme_region_gone(struct tier_lower *lower, const struct tier_region *region);
/* The registered buffer that holds all of it, or URING_NO_BUFFER. */
uint32_t nvme_buffer_of(const struct nvme *t, const struct tier_region *region, uint64_t offset, uint64_t length);
void nvme_memory_free(struct nvme *t);

#endif
