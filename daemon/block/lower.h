/* lower.h: the blocks of a namespace that have a copy in the tier below host memory (G3).  PURE: which key is in which slot of which
 * area, and which copies are cold; the bytes are the tier's, the copying is move/'s.
 *
 * About 88 bytes a copy with keys of 16 bytes, of a million: 56 here, 27 in the index, 5 in the order.  No kinship is kept: a block's touch is carried down with it, and
 * whoever uses a block uses its ancestors, so that by touch a parent never is colder than its child (leaf-first for free).
 *
 * Slots are numbered (area << shift) + place.
 */
#ifndef KVBMD_BLOCK_LOWER_H
#define KVBMD_BLOCK_LOWER_H

#include <stdbool.h>

#include "block/heat.h"
#include "block/index.h"

#define LOWER_NONE UINT32_MAX

enum lower_state {
	LOWER_FREE = 0,
	LOWER_WRITING, /* a copy is on its way down; not findable */
	LOWER_PRESENT, /* findable */
	LOWER_STUCK,   /* forgotten, but the kernel may still read or write there */
	LOWER_RETIRED, /* it lost blocks, and gets no more until its area is given back */
};
#define LOWER_BAD_MAX 2u /* times that a slot may */

struct lower_copy {
	uint64_t parent; /* tag of the parent's key, as in struct shm_record */
	uint64_t sum;    /* of the payload, bound to the key */
	struct heat_mark heat;
	uint32_t generation; /* rises with each use of the slot; never 0 or UINT32_MAX */
	uint32_t link;       /* FREE: the place set free after it + 1 */
	uint8_t state;       /* enum lower_state */
	uint8_t busy;        /* reads in flight */
	uint8_t bad;         /* times that it lost a block */
	uint8_t spare;
	uint8_t key[]; /* key_bytes */
};
_Static_assert(sizeof(struct lower_copy) == 40, "lower_copy");

struct lower_area {
	uint32_t n_slots; /* 0: not ours */
	uint32_t fresh, n_free, n_retired;
	uint32_t free_first, free_last; /* places below fresh, in the order in which they were set free, + 1; 0: none */
	bool draining, bad;             /* bad: slots of it are, or were once */
	bool foreign; /* what was in it when it was recovered names parents by tags that are not ours */
};

struct lower_counts {
	uint64_t offloaded, onboarded, dropped, lost; /* copies; lost: unreadable or wrong */
};

struct lower {
	struct index index;
	struct shm_line *lines; /* owns */
	uint8_t *behind;        /* owns; the index's */
	struct heat heat;
	uint8_t *copies; /* owns; zero where never used */
	size_t stride, copies_bytes, lines_bytes;
	struct lower_area *areas; /* owns */
	uint32_t n_areas, shift, max_slots, key_bytes;
	uint32_t area_next; /* from where lower_take() goes on */
	uint32_t n_slots, n_free, n_writing, n_present, n_stuck, n_retired;
	struct lower_counts counts;
	/* Newest touch of the same block's copy in host memory, if there is one. */
	bool (*twin)(void *ctx, const uint8_t *key, uint32_t *touch);
	void *ctx;
};

struct lower_config {
	uint32_t key_bytes, n_areas, area_slots;
	uint32_t max_slots;   /* at most that many of n_areas * area_slots are ever ours */
	const uint64_t *salt; /* 2: the namespace's, so that tags agree */
	bool (*twin)(void *ctx, const uint8_t *key, uint32_t *touch);
	void *ctx;
};
/* Memory is taken from the system at once and touched as it is used.  -ENOMEM, or LOWER_E_BIG: more slots than have numbers. */
enum { LOWER_E_BIG = 1 };
int lower_init(struct lower *l, const struct lower_config *config);
void lower_deinit(struct lower *l);

static inline struct lower_copy *lower_at(const struct lower *l, uint32_t slot)
{
	return (struct lower_copy *)(l->copies + (size_t)slot * l->stride);
}

static inline uint32_t lower_area_of(const struct lower *l, uint32_t slot)
{
	return slot >> l->shift;
}

static inline uint32_t lower_place_of(const struct lower *l, uint32_t slot)
{
	return slot & ((1u << l->shift) - 1);
}

/* Areas come and go; one that goes has no slot in use.  Another one's slots are elsewhere on the drive: what is known to be bad is forgotten. */
void lower_area_add(struct lower *l, uint32_t area, uint32_t n_slots);
void lower_area_remove(struct lower *l, uint32_t area);

/* Slot of a PRESENT copy of @key, or LOWER_NONE. */
uint32_t lower_find(const struct lower *l, const uint8_t *key);

/* A free slot becomes WRITING: n_free > 0.  Of an area the one that has been free longest, and one area after the other: so that who sets slots free ahead of
 * need gives the tier time to note that, and what is taken one after the other lies side by side. */
uint32_t lower_take(struct lower *l);
/* Recovery: that very slot, which is free and was never used. False: there is no such slot. */
bool lower_take_at(struct lower *l, uint32_t slot);
struct lower_what {
	const uint8_t *key;
	uint64_t parent, sum;
	uint32_t touch;
};
/* WRITING -> PRESENT, findable and in the order.  Outcomes: LOWER_E_EXISTS, LOWER_E_FULL (index): the slot is free again. */
enum { LOWER_E_EXISTS = 1, LOWER_E_FULL };
int lower_register(struct lower *l, uint32_t slot, const struct lower_what *what);
/* WRITING -> FREE, or STUCK where the kernel may still write. */
void lower_abort(struct lower *l, uint32_t slot, bool stuck);
/* PRESENT -> FREE.  Not while it is being read. */
void lower_forget(struct lower *l, uint32_t slot);
/* What was written to it, or was in it, is lost: the second time it becomes RETIRED where it would become FREE. */
void lower_bad(struct lower *l, uint32_t slot);
/* STUCK -> FREE. */
void lower_unstick(struct lower *l, uint32_t slot);

/* The coldest copy that nobody reads, taken out of the order: forget it, or put it back with heat_place().  LOWER_NONE: none.
 * @clock: the namespace's. */
uint32_t lower_pick(struct lower *l, uint32_t clock, uint64_t *budget);
/* It was used at @tick. */
void lower_touch(struct lower *l, uint32_t slot, uint32_t tick);

uint64_t lower_bytes(const struct lower *l);
/* Asserts every invariant; reads everything. For tests. */
void lower_check(const struct lower *l);

#endif
