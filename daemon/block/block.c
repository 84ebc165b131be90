/* Blocks: registration, the two-step drop, and kinship.
 *
 * Life of a block
 *   0 none         1 registered   in the index; matchable
 *   2 condemned    not in the index; may be pardoned
 *   0->1 block_register   1->2 block_condemn   2->1 block_pardon   2->0 block_forget
 *
 * Kinship: a child knows the slot and generation of its parent if that was here when the child came; otherwise, and when the parent is
 * forgotten before its children (a region taken back, an explicit drop), the orphan table counts, by the tag of the parent's key, the
 * children that cannot name its slot.  A parent that comes (back) takes them on.  Invariant: block.children is the number of
 * registered blocks that name it, by slot and generation or through the table, and block.leaving that of those marked HEAT_F_COUNTED.  Of two blocks with one tag (keys of more than 16 bytes can be
 * made so) the table knows the first.
 */
#include "block/block.h"

#include <assert.h>
#include <stdlib.h>

#include <xxhash.h>

#include "base/metrics.h"
#include "block/table.h"

struct orphan {
	uint64_t tag;   /* of the parent's key */
	uint32_t count; /* 0 while the parent is here and its last orphan is condemned: it may be pardoned */
	uint32_t slot;  /* of the parent if it is here, else NS_NONE */
	UT_hash_handle hh;
};

static struct orphan *block_orphan_find(const struct ns *ns, uint64_t tag)
{
	struct orphan *o = NULL;

	if (ns->orphans)
		HASH_FIND(hh, ns->orphans, &tag, sizeof(tag), o);
	return o;
}

/* @slot has another child: it and what is above it belong to more than one chain. Each block is marked once, so this walk is paid for. */
static void block_mark_shared(struct ns *ns, uint32_t slot)
{
	while (slot != NS_NONE && !(ns->blocks[slot].heat.flags & HEAT_F_SHARED)) {
		ns->blocks[slot].heat.flags |= HEAT_F_SHARED;
		slot = block_parent(ns, slot);
	}
}

static void block_orphan_add(struct ns *ns, uint64_t tag, uint32_t n)
{
	struct orphan *o = block_orphan_find(ns, tag);

	if (!o) {
		o = calloc(1, sizeof(*o));
		if (!o)
			return; /* those children then do not keep their parent: order suffers, nothing else */
		o->tag = tag;
		o->slot = NS_NONE;
		HASH_ADD(hh, ns->orphans, tag, sizeof(o->tag), o);
		if (!o->hh.tbl) {
			free(o);
			return;
		}
	}
	o->count += n;
	if (o->slot == NS_NONE)
		return;
	ns->blocks[o->slot].children += n;
	if (ns->blocks[o->slot].children > 1)
		block_mark_shared(ns, o->slot);
}

static void block_orphan_tidy(struct ns *ns, struct orphan *o)
{
	if (o->count || o->slot != NS_NONE)
		return;
	HASH_DEL(ns->orphans, o);
	free(o);
}

static void block_child_gone(struct ns *ns, uint32_t parent)
{
	struct block *p = &ns->blocks[parent];

	assert(p->children > 0);
	/* Those left are on their way out before it: it may at least be written down. */
	if (--p->children <= p->leaving)
		heat_unpark(&ns->heat, parent);
}

static void block_orphan_sub(struct ns *ns, uint64_t tag)
{
	struct orphan *o = block_orphan_find(ns, tag);

	if (!o || o->count == 0)
		return; /* it was not counted, for want of memory */
	if (o->slot != NS_NONE)
		block_child_gone(ns, o->slot);
	o->count--;
	block_orphan_tidy(ns, o);
}

/* The parent of @slot by slot and generation; NS_NONE: it has none, or is an orphan. */
static uint32_t block_named_parent(const struct ns *ns, uint32_t slot)
{
	const struct block *b = &ns->blocks[slot];

	if (b->parent == NS_NONE || ns_slot_generation(ns, b->parent) != b->parent_generation ||
	    ns_slot_state(ns, b->parent) != SHM_REGISTERED)
		return NS_NONE;
	return b->parent;
}

void block_leaving(struct ns *ns, uint32_t slot, bool on)
{
	struct heat_mark *m = &ns->blocks[slot].heat;
	uint32_t parent = block_named_parent(ns, slot);
	struct block *p = &ns->blocks[parent == NS_NONE ? slot : parent];

	if (on && parent != NS_NONE) {
		m->flags |= HEAT_F_COUNTED;
		if (p->children <= ++p->leaving)
			heat_unpark(&ns->heat, parent);
	} else if (!on && (m->flags & HEAT_F_COUNTED)) {
		m->flags &= (uint16_t)~HEAT_F_COUNTED;
		p->leaving -= parent != NS_NONE; /* NONE: it was forgotten first */
	}
}

uint64_t block_tag(const struct ns *ns, uint32_t slot)
{
	return index_hash(&ns->index, ns->records[slot].key).tag;
}

uint32_t block_parent(const struct ns *ns, uint32_t slot)
{
	uint32_t p = block_named_parent(ns, slot);
	struct orphan *o;

	if (p != NS_NONE || ns->records[slot].parent == 0)
		return p;
	o = block_orphan_find(ns, ns->records[slot].parent);
	return o ? o->slot : NS_NONE;
}

uint32_t block_find(const struct ns *ns, const uint8_t *key)
{
	return block_find_hashed(ns, key, index_hash(&ns->index, key));
}

uint32_t block_find_hashed(const struct ns *ns, const uint8_t *key, struct shm_hash h)
{
	struct shm_entry *e = index_find(&ns->index, key, h);

	return e ? e->slot : NS_NONE;
}

static void block_link_parent(struct ns *ns, uint32_t slot, const uint8_t *parent_key, struct shm_hash parent_hash)
{
	struct block *b = &ns->blocks[slot];

	b->parent = NS_NONE;
	if (!parent_key)
		return;
	b->parent = block_find_hashed(ns, parent_key, parent_hash);
	if (b->parent == slot)
		b->parent = NS_NONE; /* a block that names itself is a root */
	if (b->parent == NS_NONE) {
		block_orphan_add(ns, ns->records[slot].parent, 1);
		return;
	}
	b->parent_generation = ns_slot_generation(ns, b->parent);
	if (++ns->blocks[b->parent].children > 1)
		block_mark_shared(ns, b->parent);
	if (ns->blocks[b->parent].heat.flags & HEAT_F_RELEASED)
		heat_touch(&ns->heat, b->parent); /* somebody goes on where that ended */
}

#define BLOCK_MAX_WALK 1024u

/* Is the block of @tag, which is just coming, among the ancestors of @slot?  Blocks in a circle would keep one another for ever.  A walk that
 * does not end is taken for one. */
static bool block_is_ancestor(const struct ns *ns, uint64_t tag, uint32_t slot)
{
	for (uint32_t steps = 0; slot != NS_NONE; steps++) {
		if (steps == BLOCK_MAX_WALK || ns->records[slot].parent == tag)
			return true;
		slot = block_parent(ns, slot);
	}
	return false;
}

/* Over all that a successor relies on: the 48 bytes before @crc, generation and key length. */
static uint32_t block_record_check(const struct shm_record *rec)
{
	uint32_t tail[2] = { atomic_load_explicit(&rec->generation, memory_order_relaxed), rec->key_bytes };

	return (uint32_t)XXH3_64bits_withSeed(rec, offsetof(struct shm_record, check), XXH3_64bits(tail, sizeof(tail)));
}

/* The record is complete but for check and state.  Outcome: BLOCK_E_FULL. */
static int block_enter(struct ns *ns, uint32_t slot, struct shm_hash h)
{
	struct shm_record *rec = &ns->records[slot];

	rec->key_bytes = (uint8_t)ns->desc->key_bytes;
	rec->check = block_record_check(rec);
	atomic_store_explicit(&rec->state, SHM_REGISTERED, memory_order_release);
	if (index_insert(&ns->index, h, ns_slot_generation(ns, slot), slot) != 0) {
		atomic_store_explicit(&rec->state, SHM_PARTIAL, memory_order_release);
		return BLOCK_E_FULL;
	}
	ns->n_partial--;
	ns->n_used++;
	ns->blocks[slot] = (struct block){ .heat = { .touch = ns->heat.clock }, .parent = NS_NONE };
	return 0;
}

/* Would the block of @tag, which is just coming, be its own ancestor?  Only with children that came before it can there be a circle. */
static bool block_makes_circle(const struct ns *ns, uint64_t tag, const uint8_t *parent_key)
{
	const struct orphan *o = block_orphan_find(ns, tag);

	return o && o->count && block_is_ancestor(ns, tag, block_find(ns, parent_key));
}

/* Those that named it as parent while it was away. */
static void block_take_on(struct ns *ns, uint32_t slot, uint64_t tag)
{
	struct orphan *o = block_orphan_find(ns, tag);

	if (o && o->slot == NS_NONE) {
		o->slot = slot;
		ns->blocks[slot].children = o->count;
		if (o->count) /* of which nobody knows what is below them */
			block_mark_shared(ns, slot);
	}
}

static bool block_is_below(const struct ns *ns, const uint8_t *key)
{
	return ns->lower && lower_find(ns->lower, key) != LOWER_NONE;
}

int block_register(struct ns *ns, uint32_t slot, const uint8_t *key, const uint8_t *parent_key, uint32_t *ret_slot)
{
	struct block_new b = { .key = key, .parent_key = parent_key, .hash = index_hash(&ns->index, key) };

	if (parent_key)
		b.parent_hash = index_hash(&ns->index, parent_key);
	return block_register_hashed(ns, slot, &b, ret_slot);
}

int block_register_hashed(struct ns *ns, uint32_t slot, const struct block_new *b, uint32_t *ret_slot)
{
	const uint8_t *key = b->key, *parent_key = b->parent_key;
	struct shm_hash h = b->hash;
	struct shm_entry *e = index_find(&ns->index, key, h);
	struct shm_record *rec = &ns->records[slot];
	uint32_t kb = ns->desc->key_bytes;

	assert(ns_slot_state(ns, slot) == SHM_PARTIAL);
	if (e) {
		*ret_slot = e->slot;
		return BLOCK_E_EXISTS;
	}
	memset(rec->key, 0, sizeof(rec->key));
	memcpy(rec->key, key, kb);
	if (parent_key && (memcmp(parent_key, key, kb) == 0 || block_makes_circle(ns, h.tag, parent_key)))
		parent_key = NULL;
	rec->parent = parent_key ? b->parent_hash.tag : 0;
	rec->sum = 0;
	if (block_enter(ns, slot, h) != 0)
		return BLOCK_E_FULL;
	ns->counts.stored++;
	metrics_add(METRIC_blocks_stored, 1);
	if (block_is_below(ns, key)) { /* the node had it: one block, two copies */
		ns->twins++;
		ns->counts.deduplicated++;
		metrics_add(METRIC_blocks_deduplicated, 1);
	}
	block_link_parent(ns, slot, parent_key, b->parent_hash);
	block_take_on(ns, slot, h.tag);
	*ret_slot = slot;
	return 0;
}

int block_restore(struct ns *ns, uint32_t slot, const struct block_back *back, uint32_t *ret_slot)
{
	struct shm_hash h = index_hash(&ns->index, back->key);
	struct shm_entry *e = index_find(&ns->index, back->key, h);
	struct shm_record *rec = &ns->records[slot];
	const uint8_t *parent_key = back->parent_key;
	uint32_t kb = ns->desc->key_bytes;
	const struct orphan *o;

	assert(ns_slot_state(ns, slot) == SHM_PARTIAL && ns->blocks[slot].parent == NS_NONE);
	if (e) {
		*ret_slot = e->slot;
		return BLOCK_E_EXISTS;
	}
	memset(rec->key, 0, sizeof(rec->key));
	memcpy(rec->key, back->key, kb);
	if (parent_key &&
	    (index_hash(&ns->index, parent_key).tag != back->parent || memcmp(parent_key, back->key, kb) == 0))
		parent_key = NULL;
	/* A parent that is not known by its key is counted by its tag, unless the block may be its ancestor. */
	o = block_orphan_find(ns, h.tag);
	if (parent_key ? block_makes_circle(ns, h.tag, parent_key) : o && o->count)
		rec->parent = 0;
	else
		rec->parent = back->parent;
	rec->sum = back->sum;
	if (block_enter(ns, slot, h) != 0)
		return BLOCK_E_FULL;
	if (block_is_below(ns, back->key))
		ns->twins++;
	if (rec->parent && parent_key)
		block_link_parent(ns, slot, parent_key, index_hash(&ns->index, parent_key));
	else if (rec->parent)
		block_orphan_add(ns, rec->parent, 1);
	block_take_on(ns, slot, h.tag);
	*ret_slot = slot;
	return 0;
}

void block_set_sum(struct ns *ns, uint32_t slot, uint64_t sum)
{
	struct shm_record *rec = &ns->records[slot];

	assert(ns_slot_state(ns, slot) == SHM_REGISTERED && sum != 0);
	rec->sum = sum;
	rec->check = block_record_check(rec);
}

void block_condemn(struct ns *ns, uint32_t slot)
{
	const struct shm_record *rec = &ns->records[slot];
	struct shm_entry *e = index_find(&ns->index, rec->key, index_hash(&ns->index, rec->key));
	uint32_t parent = block_named_parent(ns, slot);

	assert(ns_slot_state(ns, slot) == SHM_REGISTERED && e && e->slot == slot);
	index_tombstone(&ns->index, e);
	if (parent != NS_NONE)
		block_child_gone(ns, parent);
	else if (rec->parent)
		block_orphan_sub(ns, rec->parent);
}

void block_pardon(struct ns *ns, uint32_t slot)
{
	const struct shm_record *rec = &ns->records[slot];
	struct shm_hash h = index_hash(&ns->index, rec->key);
	uint32_t parent = block_named_parent(ns, slot);

	index_restore(&ns->index, index_find_tombstone(&ns->index, h, slot), h, ns_slot_generation(ns, slot), slot);
	if (parent != NS_NONE)
		ns->blocks[parent].children++;
	else if (rec->parent)
		block_orphan_add(ns, rec->parent, 1);
	if (ns->blocks[slot].heat.where == HEAT_NOWHERE)
		heat_place(&ns->heat, slot);
}

void block_forget(struct ns *ns, uint32_t slot, enum why_reason reason)
{
	struct block *b = &ns->blocks[slot];
	struct shm_hash h = index_hash(&ns->index, ns->records[slot].key);
	struct orphan *o = block_orphan_find(ns, h.tag);
	uint32_t counted = 0, below;

	index_remove(&ns->index, index_find_tombstone(&ns->index, h, slot));
	if (o && o->slot == slot) {
		counted = o->count;
		o->slot = NS_NONE;
	}
	assert(b->children >= counted);
	if (b->children > counted)
		block_orphan_add(ns, h.tag, b->children - counted);
	else if (o)
		block_orphan_tidy(ns, o);
	below = ns->lower ? lower_find(ns->lower, ns->records[slot].key) : LOWER_NONE;
	if (below != LOWER_NONE) {
		/* The block lives on below, and is as warm there as it was here: or a parent would be colder than its children. */
		lower_touch(ns->lower, below, b->heat.touch);
		ns->twins--;
	} else {
		why_note(ns->why, h.tag, reason, ns->now_ns);
		ns->counts.dropped++;
		metrics_add(METRIC_blocks_dropped, 1);
	}
	heat_forget(&ns->heat, slot);
	ns_slot_free(ns, slot, SHM_REGISTERED);
}

#define BLOCK_MAX_LOOK 65536u

uint32_t block_children(const struct ns *ns, uint32_t slot, uint32_t *ret_slots, uint32_t max)
{
	uint32_t all = ns->geo.n_regions << ns->geo.shift, n = 0, s = slot;
	uint64_t tag = block_tag(ns, slot);

	if (max > ns->blocks[slot].children)
		max = ns->blocks[slot].children;
	/* Mostly they came after it and lie near. */
	for (uint32_t looks = 0; n < max && looks < all && looks < BLOCK_MAX_LOOK; looks++) {
		s = s + 1 < all ? s + 1 : 0;
		if (ns_slot_valid(ns, s) && ns_slot_state(ns, s) == SHM_REGISTERED && ns->records[s].parent == tag)
			ret_slots[n++] = s;
	}
	return n;
}

void block_orphans_free(struct ns *ns)
{
	struct orphan *o, *next;

	HASH_ITER(hh, ns->orphans, o, next) {
		HASH_DEL(ns->orphans, o);
		free(o);
	}
}

uint64_t block_orphan_bytes(const struct ns *ns)
{
	return HASH_COUNT(ns->orphans) * (uint64_t)sizeof(struct orphan);
}
