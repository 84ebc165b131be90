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

enum {
	TIER_E_FULL = 1, /* the budget does not allow it */
	TIER_E_NOMEM,    /* the system refused memory */
};

#define TIER_MAX_LANES 64u

/* A range clients can map.  The tier owns all of it until region_drop(). */
struct tier_region {
	void *base;    /* the daemon's own mapping, read-write; NULL in a simulation */
	uint64_t size; /* bytes, a multiple of the tier's grain */
	int fd;        /* read-write memfd, sealed against growing and shrinking; -1 in a simulation */
	int ro_fd;     /* the same re-opened O_RDONLY: what a reader is sent */
	bool huge;     /* on huge pages */
	void *priv;    /* the tier's */
};

/* A small shared object with one writer.  For the daemon's own (index, records) clients are sent ro_fd only; for a session page
 * the client is sent fd and the daemon maps it too. */
struct tier_object {
	void *base;
	uint64_t size;
	int fd, ro_fd;
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

#endif
