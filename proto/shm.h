/* shm.h: layout of what is in shared memory, and the few functions that both ends use on it.  The session page is in shm_pin.h.
 *
 * Every object has one writer.  The daemon writes the life page, the index and the slot records of a namespace; a client
 * writes the session page of its own session in that namespace (but for one word), and nothing else.  A client maps what it does not
 * write read-only.  proto/README.md argues why the orderings below suffice, on x86-64 and on aarch64.
 *
 *   life page   one a daemon     boot id, and a robust futex that the kernel marks when the daemon dies
 *   index       one a namespace  struct shm_ns, region table, then lines of four entries {tag, generation, slot}
 *   records     one a namespace  struct shm_record, one a slot: enough to rebuild the index
 *   page        one a session and namespace   counters and one pin word a slot (shm_pin.h)
 *
 * A slot is named by a number; slot >> region_shift is its region, the rest its place in the region.  Lanes of a region
 * lie one after the other: byte b of lane l of slot s is at  l * lane_area + place(s) * lane_stride + b.
 */
#ifndef KVBM_PROTO_SHM_H
#define KVBM_PROTO_SHM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#define SHM_MAGIC 0x314d5648u /* "HVM1" */
#define SHM_VERSION 2u
#define SHM_NO_SLOT UINT32_MAX
#define SHM_ALIGN 4096u /* where lines, records' and pins' arrays begin in their object */

/* ---- life page ---- */

/* @life is a glibc robust, process-shared mutex held by the daemon's loop thread for ever.  When that thread ends, in whatever
 * way, the kernel sets FUTEX_OWNER_DIED in its first word (robust-futex-ABI), which a client sees by a plain load. */
struct shm_life {
	uint32_t magic, version;
	uint64_t boot_id;
	_Alignas(64) _Atomic uint32_t life_word; /* first word of the mutex */
	uint8_t life_rest[60];
};
_Static_assert(sizeof(struct shm_life) == 128, "shm_life");

#define SHM_OWNER_DIED 0x40000000u

static inline bool shm_daemon_alive(const struct shm_life *life)
{
	uint32_t w = atomic_load_explicit(&((struct shm_life *)life)->life_word, memory_order_relaxed);

	return w != 0 && !(w & SHM_OWNER_DIED);
}

/* ---- namespace: header, regions, index lines ---- */

/* Changes when a region is taken back and made anew; 0: no region there now. */
struct shm_region {
	_Atomic uint32_t serial;
	uint32_t n_slots;
	uint64_t size; /* bytes of its memfd */
	uint64_t lane_area;
};

struct shm_ns {
	uint32_t magic, version;
	uint64_t boot_id;
	uint64_t salt[2];      /* of the fingerprints below */
	uint64_t n_lines;      /* index lines */
	uint64_t lines_offset; /* in this object; lines are 64-byte aligned */
	uint64_t lane_bytes;   /* length of a lane's slice */
	uint64_t lane_stride;  /* distance of two slots in a lane area */
	uint32_t n_slots;      /* slot numbers are below this */
	uint32_t n_regions;    /* length of the region table */
	uint32_t region_shift;
	uint32_t lanes;
	uint32_t key_bytes;
	uint32_t confirm;                    /* 1: readers compare the key in the record too */
	_Alignas(64) _Atomic uint32_t clock; /* stamps pins; low 20 bits are used */
	_Atomic uint32_t closed;             /* 1: the namespace is gone, every look-up is a miss */
	_Alignas(64) struct shm_region regions[];
};
_Static_assert(sizeof(struct shm_ns) == 192, "shm_ns");
_Static_assert(sizeof(struct shm_region) == 24, "shm_region");

/* One aligned 16-byte load or store.  generation 0: empty. */
struct shm_entry {
	_Alignas(16) uint64_t tag;
	uint32_t generation;
	uint32_t slot;
};
/* Of no key, but probing goes on behind it; its slot says nothing to readers. */
#define SHM_TOMBSTONE ((struct shm_entry){ .tag = 0, .generation = UINT32_MAX, .slot = SHM_NO_SLOT })
#define SHM_LINE_ENTRIES 4u
/* Lines looked at from the home line on, at most.  It bounds what a broken index costs; at the load of 3/4 that the index is sized for, runs of
 * full lines reach 16 for one block in 3,000, which then could not be kept, and never 64. */
#define SHM_MAX_PROBE 64u
struct shm_line {
	_Alignas(64) struct shm_entry entries[SHM_LINE_ENTRIES];
};
_Static_assert(sizeof(struct shm_line) == 64, "shm_line");

/* Aligned 16-byte SSE accesses are single accesses on every CPU with AVX (Intel SDM 8.1.1, AMD APM 7.3.2); aarch64 has
 * the same from LSE2 on (ldp/stp of an aligned pair).  TSan does not know that, so under it two halves are used and the
 * generation, which changes with every reuse, is read twice. */
#if defined(__SANITIZE_THREAD__) || (defined(__has_feature) && !defined(__GNUC__))
#define SHM_TWO_HALVES 1
#endif
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SHM_TWO_HALVES 1
#endif
#endif

typedef uint64_t __attribute__((may_alias)) shm_half; /* half an entry, whatever it was declared as */
union shm_entry_words {
	struct shm_entry entry;
	uint64_t half[2];
};

static inline __attribute__((always_inline)) struct shm_entry shm_entry_load(const struct shm_entry *p)
{
	union shm_entry_words w;
#if defined(__x86_64__) && !defined(SHM_TWO_HALVES)
	__m128i v = *(const volatile __m128i *)p;

	memcpy(&w, &v, sizeof(w));
#else
	const shm_half *h = (const shm_half *)p;

	do {
		w.half[1] = __atomic_load_n(&h[1], __ATOMIC_ACQUIRE);
		w.half[0] = __atomic_load_n(&h[0], __ATOMIC_ACQUIRE);
	} while (w.half[1] != __atomic_load_n(&h[1], __ATOMIC_RELAXED));
#endif
	return w.entry;
}

static inline __attribute__((always_inline)) void shm_entry_store(struct shm_entry *p, struct shm_entry e)
{
	union shm_entry_words w = { .entry = e };
#if defined(__x86_64__) && !defined(SHM_TWO_HALVES)
	__m128i v;

	memcpy(&v, &w, sizeof(v));
	*(volatile __m128i *)p = v;
#else
	shm_half *h = (shm_half *)p;

	__atomic_store_n(&h[1], 0, __ATOMIC_RELEASE); /* empty in between */
	__atomic_store_n(&h[0], w.half[0], __ATOMIC_RELEASE);
	__atomic_store_n(&h[1], w.half[1], __ATOMIC_RELEASE);
#endif
}

static inline bool shm_entry_equal(struct shm_entry a, struct shm_entry b)
{
	return a.tag == b.tag && a.generation == b.generation && a.slot == b.slot;
}

/* The second half of an entry, generation and slot, which no other block ever has.  It was stored in one piece with the first. */
static inline uint64_t shm_entry_where(struct shm_entry e)
{
	return (uint64_t)e.slot << 32 | e.generation;
}

/* The second look of the hand-shake: does the entry still say that the block is there? */
static inline __attribute__((always_inline)) bool shm_entry_is_still(const struct shm_entry *at, uint64_t where)
{
	return __atomic_load_n((const shm_half *)at + 1, __ATOMIC_ACQUIRE) == where;
}

/* Where a key lives: home line and tag.  Two folded 64x64 multiplications (wyhash's mum) over the first 16 bytes of the key,
 * zero-extended; the rest of the key, when there is one, is mixed in first so that keys that differ only there differ. */
struct shm_hash {
	uint64_t line, tag;
};

static inline uint64_t shm_mum(uint64_t a, uint64_t b)
{
	unsigned __int128 m = (unsigned __int128)a * b;

	return (uint64_t)m ^ (uint64_t)(m >> 64);
}

static inline __attribute__((always_inline)) struct shm_hash shm_hash_key(const uint8_t *key, uint32_t key_bytes,
                                                                          const uint64_t salt[2], uint64_t n_lines)
{
	uint64_t w[4] = { 0, 0, 0, 0 };
	uint64_t a, b, h, tag;

	memcpy(w, key, key_bytes <= 32 ? key_bytes : 32);
	a = w[0] ^ salt[0];
	b = w[1] ^ salt[1];
	if (key_bytes > 16) {
		a += (w[2] ^ 0x9e3779b97f4a7c15ull) * 0xd6e8feb86659fd93ull;
		b += (w[3] ^ 0xc2b2ae3d27d4eb4full) * 0xa0761d6478bd642full;
	}
	a ^= a >> 32;
	h = shm_mum(a ^ 0xa0761d6478bd642full, b ^ 0xe7037ed1a0b428dbull);
	tag = shm_mum(h ^ b, a ^ 0x1d8e4e27c47d124full) ^ h;
	return (struct shm_hash){
		.line = (uint64_t)(((unsigned __int128)shm_mum(h ^ 0x8ebc6af09c88c6e3ull, a + 0x589965cc75374cc3ull) *
		                    n_lines) >>
		                   64),
		.tag = tag ? tag : 1, /* 0 says "no parent" in a record */
	};
}

/* ---- slot records ---- */

enum shm_state {
	SHM_FREE = 0,
	SHM_PARTIAL = 1,    /* reserved; key may be unknown */
	SHM_REGISTERED = 2, /* immutable, in the index */
	SHM_QUARANTINE = 3, /* somebody may still write into it */
};

/* A successor rebuilds the index from REGISTERED records.  The daemon writes key, parent and sum first, then @check, and @state last,
 * with release; taking a slot back writes @state first.  @generation rises with every reservation. */
struct shm_record {
	uint8_t key[32]; /* zero-extended */
	uint64_t parent; /* tag of the parent's key; 0: a root */
	uint64_t sum;    /* checksum of the payload, bound to the key; while PARTIAL the mask of written lanes */
	uint32_t check;  /* low half of XXH3-64 over key, parent, sum; seeded with that of generation, key_bytes */
	_Atomic uint32_t generation;
	_Atomic uint8_t state; /* enum shm_state */
	uint8_t key_bytes;
	uint8_t spare[6];
};
_Static_assert(sizeof(struct shm_record) == 64, "shm_record");

static inline size_t shm_ns_bytes(uint32_t n_regions, uint64_t n_lines, uint64_t *ret_lines_offset)
{
	uint64_t head = sizeof(struct shm_ns) + (uint64_t)n_regions * sizeof(struct shm_region);

	*ret_lines_offset = (head + SHM_ALIGN - 1) / SHM_ALIGN * SHM_ALIGN;
	return *ret_lines_offset + n_lines * sizeof(struct shm_line);
}

#endif
