/* namespace.h: what may be shared with whom.  A namespace owns its slots, their records, the index over them and their heat.
 * It knows no sessions but their holders (lease.h), and gets its memory from space.c.
 */
#ifndef KVBMD_BLOCK_NAMESPACE_H
#define KVBMD_BLOCK_NAMESPACE_H

#include "base/list.h"
#include "block/desc.h"
#include "block/heat.h"
#include "block/index.h"
#include "block/key.h"
#include "block/lower.h"
#include "block/why.h"

#define NS_NONE UINT32_MAX

/* What the daemon keeps of a slot for itself: 32 bytes.  The rest is its record in shared memory. */
struct block {
	struct heat_mark heat;
	uint32_t parent; /* REGISTERED: slot of its parent if that was here when it came, else NS_NONE; PARTIAL: number of its partial;
			       * free: next free slot of its region + 1 */
	uint32_t children; /* resident blocks that name it as parent */
	uint32_t leaving; /* children that name it by slot and are clean or copying (heat.h): it may be written down before they go */
	uint32_t parent_generation; /* of @parent then: tells it from a later block in its slot */
};

/* A region's slots.  Slot numbers are (region << shift) + place. */
struct ns_region {
	uint32_t serial;         /* 0: no memory here now */
	uint32_t n_slots, fresh; /* places never used since the region was made begin at fresh */
	uint32_t free_head;      /* slot + 1 */
	uint32_t n_free;         /* fresh ones included */
	bool draining;           /* no slot is handed out: it is being taken back */
};

struct ns_geometry {
	uint64_t lane_stride, region_bytes;
	uint32_t slots_per_region, shift, n_regions, max_slots;
};

/* A parent that is not here, or came back after its children: so children that cannot name its slot find it. */
struct orphan;

/* Memory for the next ones of a kind. */
struct lease_pool {
	struct list *free; /* owns; by their first word */
	uint32_t n;
};

struct ns_counts {
	uint64_t stored, dropped, deduplicated, aborted;
	uint64_t looked_up, hits, hits_lower, misses; /* hits: in host memory */
};

struct ns {
	struct list link;           /* in the store's list */
	const struct ns_desc *desc; /* borrows from the store's copy */
	uint8_t fingerprint[16];
	struct ns_geometry geo;
	uint32_t group_shift; /* of session pages */
	/* shared memory; borrows from the store's objects */
	struct shm_ns *shm;
	struct shm_record *records;
	/* private */
	struct index index;
	uint8_t *behind; /* owns; the index's */
	struct heat heat;
	struct block *blocks;      /* owns */
	struct ns_region *regions; /* owns */
	struct orphan *orphans;    /* owns; uthash by tag of the parent */
	struct lower *lower;       /* borrows; the copies below host memory, NULL: there is no such tier */
	uint8_t *moving;           /* owns; 1: a copy from or to the slot is being made; NULL without lower */
	uint16_t *kept;            /* owns; onboards under way that keep the slot's block here; NULL without lower */
	uint16_t *copies;     /* owns; copies from or to a device that the slot is part of; NULL: there are no such */
	uint32_t twins;       /* blocks that are here and below */
	struct why *why;      /* owns */
	struct list holders;  /* borrows: struct holder */
	struct list partials; /* owns: struct partial, by deadline */
	struct partial **partial_at;    /* owns the table: number -> partial */
	struct partial *partial_by_key; /* borrows; uthash, only with several lanes */
	uint32_t partial_cap, partial_free;
	struct lease_pool partial_pool, lease_pool; /* own */
	uint32_t n_holders, next_serial, take_from;
	uint32_t n_slots, n_free, n_used, n_partial, n_quarantined; /* used: registered */
	struct ns_counts counts;
	uint64_t now_ns; /* of the request in hand: for notes of why */
};

/* How @lane_bytes * @lanes fit into regions of about @region_bytes, with at most @max_bytes.  Outcome: NS_E_BIG: not even one slot. */
enum { NS_E_BIG = 1 };
int ns_geometry(uint64_t lane_bytes, uint32_t lanes, uint64_t region_bytes, uint64_t grain, uint64_t max_bytes,
                struct ns_geometry *ret_geometry);
/* The same where regions are of exactly that size. */
int ns_geometry_fixed(uint64_t lane_bytes, uint32_t lanes, uint64_t region_bytes, uint64_t max_bytes,
                      struct ns_geometry *ret_geometry);
/* Slots in a region of @size bytes, and the bytes of one lane's area in it. */
uint32_t ns_region_slots(const struct ns_geometry *geo, uint32_t lanes, uint64_t size, uint64_t *ret_lane_area);

/* 128 bits over every field of @id. */
void ns_fingerprint(const struct ns_desc *id, uint8_t ret_fingerprint[16]);

struct ns_memory {
	struct shm_ns *shm;         /* zeroed; shm_ns_bytes() long */
	struct shm_record *records; /* zeroed; one a slot number */
	uint64_t salt[2], boot_id;
	uint32_t grace_percent, why_entries;
};
int ns_init(struct ns *ns, const struct ns_desc *id, const struct ns_geometry *geo, const struct ns_memory *memory);
void ns_deinit(struct ns *ns);

/* Regions come and go. */
uint32_t ns_region_add(struct ns *ns, uint64_t size);  /* the region's number, or NS_NONE: table full */
void ns_region_remove(struct ns *ns, uint32_t region); /* all its slots are free */
/* A draining region hands out no slots, and its free ones do not count as free. */
void ns_region_drain(struct ns *ns, uint32_t region, bool on);

/* Slots.  Taking one raises its generation and makes its record PARTIAL. */
uint32_t ns_slot_take(struct ns *ns); /* n_free > 0 */
void ns_slot_free(struct ns *ns, uint32_t slot, enum shm_state was);
void ns_slot_quarantine(struct ns *ns, uint32_t slot);

static inline uint32_t ns_region_of(const struct ns *ns, uint32_t slot)
{
	return slot >> ns->geo.shift;
}

static inline bool ns_slot_valid(const struct ns *ns, uint32_t slot)
{
	return slot < (uint64_t)ns->geo.n_regions << ns->geo.shift && ns->regions[slot >> ns->geo.shift].serial &&
	       (slot & ((1u << ns->geo.shift) - 1)) < ns->regions[slot >> ns->geo.shift].n_slots;
}

static inline uint8_t ns_slot_state(const struct ns *ns, uint32_t slot)
{
	return atomic_load_explicit(&ns->records[slot].state, memory_order_relaxed);
}

static inline uint32_t ns_slot_generation(const struct ns *ns, uint32_t slot)
{
	return atomic_load_explicit(&ns->records[slot].generation, memory_order_relaxed);
}

uint64_t ns_metadata_bytes(const struct ns *ns);

#endif
