/* tier.h: the face of the tiers.  A tier provides memory in regions that hold numbered slots; it knows nothing of keys,
 * clients or policy.  Calls are made on the loop thread.
 *
 * Host memory (G2) is the hub.  It has a budget of bytes; regions are memfds cut from it, and so are the small shared
 * objects (index, slot records, session pages), which are not charged to it.
 */
#ifndef KVBMD_TIER_TIER_H
#define KVBMD_TIER_TIER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

enum {
	TIER_E_FULL = 1, /* the budget does not allow it */
	TIER_E_NOMEM,    /* the system refused memory */
	TIER_E_IO,       /* this slot's bytes are lost; the tier lives on */
	TIER_E_GONE,     /* the whole tier is offline */
};

#define TIER_MAX_LANES 64u

/* A range clients can map.  The tier owns all of it until region_drop(). */
struct tier_region {
	void *base;    /* the daemon's own mapping, read-write; NULL in a simulation */
	uint64_t size; /* bytes, a multiple of the tier's grain */
	int fd;        /* read-write memfd, sealed against growing and shrinking; -1 in a simulation */
	int ro_fd;     /* the same re-opened O_RDONLY: what a reader is sent */
	bool huge;     /* on huge pages */
	/* The tier's: all of it is there, or nobody makes it so ahead of its use.  Until then whoever pins it makes the pages, and keeps them where they are.  Loop
	 * thread; NULL: it is. */
	const bool *present;
	void *priv; /* the tier's */
	/* Device memory, which has no base: clients open it by this, or by fd (ro_fd is the same then: who has it may write). */
	const uint8_t *handle; /* the tier's; 64 bytes; NULL: by fd */
};

/* A small shared object with one writer.  For the daemon's own (index, records) clients are sent ro_fd only; for a session page
 * the client is sent fd and the daemon maps it too. */
struct tier_object {
	void *base;
	uint64_t size;
	int fd, ro_fd;
};

/* Whoever has to know of host memory from outside of move/: devices, for which it is pinned. */
struct tier_watch {
	void (*region_seen)(void *ctx, const struct tier_region *region);
	void (*region_gone)(void *ctx, const struct tier_region *region); /* no copy names it */
	void *ctx;
};

struct tier_stat {
	uint64_t size_bytes, used_bytes; /* of the budget */
	uint64_t populated_bytes;        /* touched so far, of prepared and used regions */
	uint32_t regions;                /* given out */
	uint32_t nodes;                  /* NUMA nodes memory is bound to; 1: no binding */
	bool huge, huge_wanted;
	const char *page_kind; /* "hugetlb", "thp", "4k", "simulated" */
	const char *note;      /* why it is not what was wished for; "" */
};

struct tier;
struct tier_ops {
	const char *name;

	/* Smallest unit of the budget (2 MiB), and the size of regions this tier prepares in advance. */
	uint64_t (*grain)(struct tier *t);
	uint64_t (*region_size)(struct tier *t);

	/* Makes a region of @size bytes (rounded up to the grain), or the largest smaller multiple of the grain that the
	 * budget still allows if that is at least @min_size.  @lane_area bytes from l * lane_area on belong to lane l,
	 * of @lanes: each is bound to a NUMA node (0: no preference).  The memory may still be untouched: it is
	 * touched in parallel in the background.  Outcomes: TIER_E_FULL, TIER_E_NOMEM. */
	int (*region_make)(struct tier *t, uint64_t size, uint64_t min_size, uint32_t lanes, uint64_t lane_area,
	                   struct tier_region *ret_region);

	/* Gives the memory back to the system at once, even where clients still map the region (they see zeros), and
	 * closes it.  The caller knows that nobody reads or writes it any more. */
	void (*region_drop)(struct tier *t, struct tier_region *region);

	/* Bytes region_make() could still give. */
	uint64_t (*room)(struct tier *t);

	/* @sparse: leave untouched, on small pages (session pages).  Otherwise on huge pages where possible, and nobody but the
	 * daemon can ever write to it, not even root.  What is dropped keeps its bytes for those who still map it, who may not know yet. */
	int (*object_make)(struct tier *t, const char *name, uint64_t size, bool sparse, struct tier_object *ret_object);
	void (*object_drop)(struct tier *t, struct tier_object *object);

	void (*stat)(struct tier *t, struct tier_stat *ret_stat);
};

/* Embedded first in each tier. */
struct tier {
	const struct tier_ops *ops;
};

/* ---- device memory: regions that are not mapped here, reached by copies from and to host memory ---- */

/* Lane l's slice is at l * lane_area + offset of its region, at both ends. */
struct tier_copy_block {
	const struct tier_region *device, *host; /* borrow */
	uint64_t device_offset, device_lane_area, host_offset, host_lane_area;
};

/* The caller's memory, which is the tier's from a copy() that returned 0 until cb. */
struct tier_copy {
	/* 0; TIER_E_IO: not copied, or not all of it; TIER_E_GONE: so, because the device was lost.  From then on nothing of it is touched,
	 * so that of a device that is lost it comes late, or not before the end.  Never inline. */
	void (*cb)(struct tier_copy *copy, int r);
	bool up;                     /* to the device */
	uint64_t lane_bytes, stride; /* device_offset is a multiple of @stride */
	uint32_t lanes, n;
	const struct tier_copy_block *blocks;
	/* the tier's */
	struct list link;
	void *room;
};

struct tier_device;
struct tier_device_ops {
	/* Outcomes: TIER_E_FULL, as many are under way as may be; TIER_E_GONE; TIER_E_NOMEM. */
	int (*copy)(struct tier_device *t, struct tier_copy *copy);
	/* Bytes that were given back, and that region_make() can give again when on_room() comes.  NULL: region_drop() gives back at once. */
	uint64_t (*coming)(struct tier_device *t);
};

/* What such a tier tells its one user. */
struct tier_device_user {
	/* It is there, and its memory new; or it is lost, and with it all that was in its regions. */
	void (*on_online)(void *ctx, bool online);
	/* region_make() may give something that it did not have before. */
	void (*on_room)(void *ctx);
	void *ctx;
};

/* Embedded first.  Its tier makes no objects. */
struct tier_device {
	struct tier tier;
	const struct tier_device_ops *ops;
	struct tier_device_user user; /* the user's to set */
	bool lends_handles;           /* a region must not be dropped while somebody may have it open */
};

/* ---- tiers below host memory: slots in areas, reached by copies from and to host memory ---- */

#define TIER_TAG_BYTES 80u
#define TIER_OWNER_BYTES 2048u

/* Stored with a slot's bytes and given back by recovery: the owner's, opaque to the tier. */
struct tier_tag {
	uint8_t bytes[TIER_TAG_BYTES];
};

/* Who an area belongs to; stored with the area, opaque too. */
struct tier_owner {
	uint32_t length;
	uint8_t bytes[TIER_OWNER_BYTES];
};

struct tier_area_shape {
	uint64_t lane_bytes;
	uint32_t lanes;
};

struct tier_area {
	uint32_t id;      /* below areas() */
	uint32_t n_slots; /* places 0..n_slots-1 */
};

enum tier_priority { TIER_WANTED = 0, TIER_BACKGROUND, TIER_AHEAD, TIER_PRIORITIES };

/* One copy between a slot and host memory.  The caller's memory, which is the tier's from a submit() that returned 0 until cb. */
struct tier_io {
	/* 0; TIER_E_IO: failed, short or torn, this slot's bytes are lost; TIER_E_GONE: the tier is offline.  Never inline. */
	void (*cb)(struct tier_io *io, int r);
	bool write;
	enum tier_priority priority;
	uint32_t area, place;
	struct tier_area_shape shape;     /* the area's */
	const struct tier_region *region; /* borrows; region_seen() was told of it */
	uint64_t offset, lane_area;       /* lane l's slice is at region->base + l * lane_area + offset */
	struct tier_tag tag;              /* write: stored with the slot */
	/* the tier's */
	struct list link;
	uint64_t since_ns, bytes_left;
	uint32_t pieces;
	int result;
};

struct tier_lower_stat {
	uint64_t size_bytes, used_bytes;            /* of areas, and of those given out */
	uint64_t written_bytes, read_bytes;         /* since the start */
	uint64_t written_today_bytes, budget_bytes; /* budget 0: none */
	uint32_t in_flight, queued, drives;
	uint64_t read_bytes_per_s, write_bytes_per_s; /* moving estimates; 0: nothing was measured yet */
	uint64_t read_latency_ns, write_latency_ns;   /* of one copy, waiting included */
	uint64_t errors;
	bool online;
	const char *state; /* "online", "recovering", "offline" */
	const char *note;  /* why; fall-backs; "" */
};

struct tier_lower;
struct tier_lower_ops {
	const char *name;

	/* Areas there are, and those nobody has. */
	uint32_t (*areas)(struct tier_lower *t);
	uint32_t (*areas_free)(struct tier_lower *t);

	/* Slots of that shape in an area; 0: the tier cannot take it (named in its header). */
	uint32_t (*area_slots)(struct tier_lower *t, const struct tier_area_shape *shape);

	/* Outcomes: TIER_E_FULL, TIER_E_GONE.  @owner is stored in the background. */
	int (*area_make)(struct tier_lower *t, const struct tier_area_shape *shape, const struct tier_owner *owner,
	                 struct tier_area *ret_area);
	/* No copy of it is in flight. */
	void (*area_drop)(struct tier_lower *t, uint32_t area);

	/* Outcomes: TIER_E_FULL, too much waits, today's writes are used up, or it is too early to write after a crash: try again when something is
	 * done, or later;
	 * TIER_E_GONE. */
	int (*submit)(struct tier_lower *t, struct tier_io *io);

	/* The slot is free: recovery will not find it, once that is stored. */
	void (*forget)(struct tier_lower *t, uint32_t area, uint32_t place);

	/* Host memory that copies will name, or no longer name: to be registered with the system. */
	void (*region_seen)(struct tier_lower *t, const struct tier_region *region);
	void (*region_gone)(struct tier_lower *t, const struct tier_region *region);

	void (*stat)(struct tier_lower *t, struct tier_lower_stat *ret_stat);
};

/* What such a tier asks and tells its one user. */
struct tier_lower_user {
	/* The tag of a slot, for writing its record anew together with its neighbours'.  false: the slot is free. */
	bool (*tag)(void *ctx, uint32_t area, uint32_t place, struct tier_tag *ret_tag);

	/* Recovery, before anything else: an area with its owner; false: the area is given up.  Then each of its slots; then,
	 * once, the end, after which the tier is online. */
	bool (*on_area)(void *ctx, const struct tier_area *area, const struct tier_area_shape *shape,
	                const struct tier_owner *owner);
	void (*on_slot)(void *ctx, uint32_t area, uint32_t place, const struct tier_tag *tag);
	void (*on_recovered)(void *ctx, bool clean);

	/* It went offline, or came back. */
	void (*on_online)(void *ctx, bool online);
	void *ctx;
};

/* Embedded first. */
struct tier_lower {
	const struct tier_lower_ops *ops;
	struct tier_lower_user user; /* set before it is started */
};

#endif
