/* shm_pin.h: the session page, in which a client says which slots it holds, and the hand-shake over it.
 *
 * The client writes its page, but for one word of the daemon's.  proto/README.md argues why that is enough.
 */
#ifndef KVBM_PROTO_SHM_PIN_H
#define KVBM_PROTO_SHM_PIN_H

#include "proto/shm.h"

/* Words of @groups.  A group is as many neighbouring slots as make their number fit: shm_group_shift(). */
#define SHM_GROUP_WORDS 1008u
#define SHM_GROUP_MIN_SHIFT 10u /* 4 KiB of pins */

/* pins[slot]: low 12 bits how often the client holds the slot, high 20 bits the namespace clock when it last pinned it. */
#define SHM_PIN_COUNT_BITS 12u
#define SHM_PIN_COUNT_MASK ((1u << SHM_PIN_COUNT_BITS) - 1u)
#define SHM_STAMP_MASK 0xfffffu

struct shm_page {
	uint32_t magic, version;
	_Atomic uint64_t looked_up, hits, misses; /* blocks, by the client through shared memory */
	_Atomic uint64_t pinned;                  /* sum of the counts below, for the limit on pins */
	_Atomic uint32_t live;                    /* the daemon's word: see shm_page_is_live() */
	uint8_t spare[20];
	/* A bit a group, set by the client before it pins in it for the first time, and never cleared: pins of other groups are not read, and
	 * count for nothing.  A page of millions of slots is mostly holes, which reading would fill. */
	_Alignas(64) _Atomic uint32_t groups[SHM_GROUP_WORDS];
	_Atomic uint32_t pins[];
};
_Static_assert(sizeof(struct shm_page) == SHM_ALIGN, "shm_page");

/* Does the daemon still read the pins?  It clears this word, fences, and only then forgets the session, whoever ended it and whether or
 * not the client knows.  So a client asks after its fence, together with the second look at the entry; and who has copied bytes out of a
 * held block knows, if this is true afterwards, that they were the block's. */
static inline bool shm_page_is_live(const struct shm_page *page)
{
	return atomic_load_explicit(&((struct shm_page *)page)->live, memory_order_acquire) != 0;
}

static inline uint32_t shm_pin_count(uint32_t word)
{
	return word & SHM_PIN_COUNT_MASK;
}

static inline uint32_t shm_pin_stamp(uint32_t word)
{
	return word >> SHM_PIN_COUNT_BITS;
}

/* The hand-shake: store, shm_fence(), load on both sides, so that whoever is second sees the other's store.
 *   client  shm_page_raise() of each slot found    shm_fence()   the entries again: as they were, or the pin is lowered
 *   daemon  SHM_TOMBSTONE in each victim's entry   shm_fence()   shm_page_pin() of every session: 0, or the entry comes back
 * A full fence, not an exchange: one serves a whole batch. */
static inline __attribute__((always_inline)) void shm_fence(void)
{
	atomic_thread_fence(memory_order_seq_cst);
}

/* One thread writes a page at a time.  False: the count is at @max. */
static inline __attribute__((always_inline)) bool shm_pin_raise(_Atomic uint32_t *pin, uint32_t stamp, uint32_t max)
{
	uint32_t word = atomic_load_explicit(pin, memory_order_relaxed);

	if (shm_pin_count(word) == max)
		return false;
	atomic_store_explicit(pin, stamp << SHM_PIN_COUNT_BITS | (shm_pin_count(word) + 1), memory_order_relaxed);
	return true;
}

/* The least with which groups of 1 << shift slots are not more than there are bits. */
static inline uint32_t shm_group_shift(uint32_t n_slots)
{
	uint32_t shift = SHM_GROUP_MIN_SHIFT;

	while (n_slots >> shift >= SHM_GROUP_WORDS * 32)
		shift++;
	return shift;
}

static inline __attribute__((always_inline)) bool shm_page_is_marked(const struct shm_page *page, uint32_t slot,
                                                                     uint32_t shift)
{
	uint32_t group = slot >> shift;

	return atomic_load_explicit(&((struct shm_page *)page)->groups[group / 32], memory_order_relaxed) >> group % 32 & 1;
}

/* Before the first pin in that group.  One thread writes a page at a time; what it has stored here once lies before any later fence. */
static inline __attribute__((always_inline)) void shm_page_mark(struct shm_page *page, uint32_t slot, uint32_t shift)
{
	_Atomic uint32_t *word = &page->groups[(slot >> shift) / 32];
	uint32_t was = atomic_load_explicit(word, memory_order_relaxed), bit = 1u << (slot >> shift) % 32;

	if (!(was & bit))
		atomic_store_explicit(word, was | bit, memory_order_relaxed);
}

static inline __attribute__((always_inline)) bool shm_page_raise(struct shm_page *page, uint32_t slot, uint32_t shift,
                                                                 uint32_t stamp, uint32_t max)
{
	shm_page_mark(page, slot, shift);
	return shm_pin_raise(&page->pins[slot], stamp, max);
}

static inline __attribute__((always_inline)) void shm_pin_lower(_Atomic uint32_t *pin)
{
	uint32_t word = atomic_load_explicit(pin, memory_order_relaxed);

	/* Release: what was read under the pin was read before. */
	atomic_store_explicit(pin, word - 1, memory_order_release);
}

/* Acquire, against that release: the slot's next bytes are written after they were read. */
static inline __attribute__((always_inline)) uint32_t shm_pin_load(const _Atomic uint32_t *pin)
{
	return atomic_load_explicit((_Atomic uint32_t *)pin, memory_order_acquire);
}

/* The word of @slot, as far as it counts. */
static inline __attribute__((always_inline)) uint32_t shm_page_pin(const struct shm_page *page, uint32_t slot, uint32_t shift)
{
	return shm_page_is_marked(page, slot, shift) ? shm_pin_load(&page->pins[slot]) : 0;
}

static inline size_t shm_page_bytes(uint32_t n_slots)
{
	return sizeof(struct shm_page) + (size_t)n_slots * sizeof(uint32_t);
}

#endif
