/* Leases and pins.
 *
 * Life of a partial (a slot being written)
 *   0 none   1 open      some lanes reserved or written; slot PARTIAL
 *   2 aborted            never visible; slot in QUARANTINE until its last lease ends
 *   0->1 lease_write_new   1 lease_write_join, lease_write_lanes   1->0 lease_write_done
 *   1->2 lease_abort, lease_partial_abort   1->0, 2->0 lease_abort (the last lease: slot free)
 *
 * Pins are read where they lie: in the session page, which the client may change at any time, so each word is loaded once and
 * believed only as far as that client's own blocks go: a lying client can keep blocks from being dropped, up to its pin limit, or lose
 * its own protection.  Nothing else follows from a pin word.
 */
#include "block/lease.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

void lease_holder_init(struct holder *h, struct ns *ns)
{
	memset(h, 0, sizeof(*h));
	h->ns = ns;
	list_init(&h->leases);
	list_add_tail(&ns->holders, &h->in_ns);
	ns->n_holders++;
}

/* The pin word of @slot in @page, which may be NULL. */
static uint32_t lease_word(const struct ns *ns, const struct shm_page *page, uint32_t slot)
{
	return page ? shm_page_pin(page, slot, ns->group_shift) : 0;
}

/* The full tick behind a 20-bit stamp: the newest one that is not in the future. */
static uint32_t lease_tick(const struct ns *ns, uint32_t word)
{
	return ns->heat.clock - ((ns->heat.clock - shm_pin_stamp(word)) & SHM_STAMP_MASK);
}

static bool lease_look(const struct ns *ns, uint32_t word, uint32_t *touch)
{
	uint32_t tick;

	if (word == 0)
		return false;
	tick = lease_tick(ns, word);
	if ((int32_t)(tick - *touch) > 0)
		*touch = tick;
	return shm_pin_count(word) > 0;
}

/* A copy is being made of it, or somebody who is being served needs it: no session's doing. */
static bool lease_is_moving(const struct ns *ns, uint32_t slot)
{
	return (ns->moving && ns->moving[slot]) || (ns->kept && ns->kept[slot]) || (ns->copies && ns->copies[slot]);
}

bool lease_is_held(struct ns *ns, uint32_t slot, uint32_t *touch)
{
	bool held = lease_is_moving(ns, slot);

	list_for_each(it, &ns->holders) {
		const struct holder *h = container_of(it, struct holder, in_ns);

		held |= lease_look(ns, lease_word(ns, h->page, slot), touch);
		held |= lease_look(ns, lease_word(ns, h->own, slot), touch);
	}
	return held;
}

bool lease_is_pinned(struct ns *ns, uint32_t slot)
{
	if (lease_is_moving(ns, slot))
		return true;
	list_for_each(it, &ns->holders) {
		const struct holder *h = container_of(it, struct holder, in_ns);

		if (shm_pin_count(lease_word(ns, h->page, slot)) || shm_pin_count(lease_word(ns, h->own, slot)))
			return true;
	}
	return false;
}

void lease_prefetch(const struct ns *ns, uint32_t slot)
{
	unsigned n = 0;

	list_for_each(it, &ns->holders) {
		const struct holder *h = container_of(it, struct holder, in_ns);

		if (h->page && shm_page_is_marked(h->page, slot, ns->group_shift))
			__builtin_prefetch(&h->page->pins[slot]);
		if (++n == 4)
			break;
	}
}

uint32_t lease_pins(const struct ns *ns, uint32_t slot, uint32_t *ret_holders)
{
	uint32_t pins = 0, holders = 0;

	list_for_each(it, &ns->holders) {
		const struct holder *h = container_of(it, struct holder, in_ns);
		uint32_t n = shm_pin_count(lease_word(ns, h->page, slot)) + shm_pin_count(lease_word(ns, h->own, slot));

		pins += n;
		holders += n > 0;
	}
	*ret_holders = holders;
	return pins;
}

uint64_t lease_claimed_pins(const struct holder *h)
{
	return h->page ? atomic_load_explicit(&h->page->pinned, memory_order_relaxed) : 0;
}

static uint64_t lease_sweep_group(struct ns *ns, const struct shm_page *page, uint32_t from, uint32_t to, bool remember)
{
	uint64_t pins = 0;

	for (uint32_t slot = from; slot < to; slot++) {
		uint32_t word = shm_pin_load(&page->pins[slot]);

		if (word == 0)
			continue;
		pins += shm_pin_count(word);
		if (remember && ns_slot_state(ns, slot) == SHM_REGISTERED)
			lease_look(ns, word, &ns->blocks[slot].heat.touch);
	}
	return pins;
}

/* Counts the pins in @page, which may be NULL, of slots with memory; @remember: the blocks learn when they were used. */
static uint64_t lease_sweep(struct ns *ns, const struct shm_page *page, bool remember)
{
	uint32_t group = 1u << ns->group_shift;
	uint64_t pins = 0;

	for (uint32_t r = 0; page && r < ns->geo.n_regions; r++) {
		uint32_t end = (r << ns->geo.shift) + ns->regions[r].n_slots, next;

		for (uint32_t slot = r << ns->geo.shift; slot < end; slot = next) {
			next = (slot | (group - 1)) + 1;
			if (next > end)
				next = end;
			if (shm_page_is_marked(page, slot, ns->group_shift))
				pins += lease_sweep_group(ns, page, slot, next, remember);
		}
	}
	return pins;
}

uint64_t lease_counted_pins(const struct holder *h)
{
	return lease_sweep(h->ns, h->page, false);
}

void lease_holder_unpin(struct holder *h)
{
	struct ns *ns = h->ns;

	lease_sweep(ns, h->page, true);
	lease_sweep(ns, h->own, true);
	h->page = NULL;
	free(h->own);
	h->own = NULL;
	if (h->own_total)
		quota_return(h->user, QUOTA_HOLDS, h->own_total);
	h->own_total = 0;
	list_del(&h->in_ns);
	ns->n_holders--;
}

/* ---- held by message ---- */

int lease_hold(struct holder *h, uint32_t slot)
{
	struct ns *ns = h->ns;
	uint32_t stamp = ns->heat.clock & SHM_STAMP_MASK;

	if (!h->own) {
		h->own = calloc(1, shm_page_bytes(ns->geo.n_regions << ns->geo.shift));
		if (!h->own)
			return LEASE_E_NOMEM;
	}
	if (!shm_page_raise(h->own, slot, ns->group_shift, stamp, SHM_PIN_COUNT_MASK))
		return LEASE_E_NOMEM;
	h->own_total++;
	return 0;
}

bool lease_holds(const struct holder *h, uint32_t slot)
{
	return shm_pin_count(lease_word(h->ns, h->own, slot)) > 0;
}

void lease_unhold(struct holder *h, uint32_t slot)
{
	assert(lease_holds(h, slot));
	shm_pin_lower(&h->own->pins[slot]);
	h->own_total--;
}

/* ---- writing ---- */

static int lease_partial_number(struct ns *ns, uint32_t *ret_number)
{
	/* Free numbers are chained through the table: entry n holds (next + 1) << 1 | 1. */
	if (ns->partial_free) {
		*ret_number = ns->partial_free - 1;
		ns->partial_free = (uint32_t)((uintptr_t)ns->partial_at[*ret_number] >> 1);
		return 0;
	}
	if (ns->partial_cap % 1024 == 0) {
		struct partial **at = realloc(ns->partial_at, (ns->partial_cap + 1024) * sizeof(struct partial *));

		if (!at)
			return LEASE_E_NOMEM;
		ns->partial_at = at;
	}
	*ret_number = ns->partial_cap++;
	return 0;
}

static int lease_key_link(struct ns *ns, struct partial *p, const uint8_t *key)
{
	struct partial *first;

	memcpy(p->key, key, ns->desc->key_bytes);
	HASH_FIND(hh, ns->partial_by_key, p->key, KEY_MAX, first);
	if (first) {
		p->next_same_key = first->next_same_key;
		first->next_same_key = p;
	} else {
		HASH_ADD(hh, ns->partial_by_key, key, KEY_MAX, p);
		if (!p->hh.tbl)
			return LEASE_E_NOMEM;
	}
	p->keyed = true;
	return 0;
}

static void lease_key_unlink(struct ns *ns, struct partial *p)
{
	struct partial *first;

	if (!p->keyed)
		return;
	p->keyed = false;
	HASH_FIND(hh, ns->partial_by_key, p->key, KEY_MAX, first);
	assert(first);
	if (first != p) {
		while (first->next_same_key != p)
			first = first->next_same_key;
		first->next_same_key = p->next_same_key;
		return;
	}
	HASH_DEL(ns->partial_by_key, p);
	first = p->next_same_key;
	if (first)
		HASH_ADD(hh, ns->partial_by_key, key, KEY_MAX, first);
	if (first && !first->hh.tbl) /* no memory: nobody joins those any more */
		for (; first; first = first->next_same_key)
			first->keyed = false;
}

/* ---- memory of partials and leases: some are kept for the next ones ---- */

#define LEASE_POOL_MAX 1024u

static void *lease_pool_get(struct lease_pool *pool, size_t size)
{
	struct list *first = pool->free;

	if (!first)
		return malloc(size);
	pool->free = first->next;
	pool->n--;
	return first;
}

static void lease_pool_put(struct lease_pool *pool, void *p)
{
	struct list *first = p;

	if (pool->n == LEASE_POOL_MAX) {
		free(p);
		return;
	}
	first->next = pool->free;
	pool->free = first;
	pool->n++;
}

static void lease_pool_free(struct lease_pool *pool)
{
	while (pool->free) {
		struct list *first = pool->free;

		pool->free = first->next;
		free(first);
	}
	pool->n = 0;
}

static int lease_new(struct holder *h, struct partial *p, uint64_t lanes)
{
	struct lease *lease = lease_pool_get(&h->ns->lease_pool, sizeof(*lease));

	if (!lease)
		return LEASE_E_NOMEM;
	memset(lease, 0, sizeof(*lease));
	lease->holder = h;
	lease->partial = p;
	lease->lanes = lanes;
	list_add_tail(&h->leases, &lease->in_holder);
	list_add_tail(&p->leases, &lease->in_partial);
	h->n_leases++;
	p->lanes_open &= ~lanes;
	return 0;
}

static void lease_free(struct lease *lease)
{
	lease->holder->n_leases--;
	quota_return(lease->holder->user, QUOTA_SLOTS, 1);
	list_del(&lease->in_holder);
	list_del(&lease->in_partial);
	lease_pool_put(&lease->holder->ns->lease_pool, lease);
}

static void lease_partial_free(struct ns *ns, struct partial *p)
{
	assert(list_empty(&p->leases));
	lease_key_unlink(ns, p);
	list_del(&p->by_deadline);
	ns->partial_at[p->number] = (struct partial *)((uintptr_t)ns->partial_free << 1 | 1);
	ns->partial_free = p->number + 1;
	lease_pool_put(&ns->partial_pool, p);
}

uint64_t lease_all_lanes(const struct ns *ns)
{
	return ns->desc->lanes == 64 ? UINT64_MAX : (1ull << ns->desc->lanes) - 1;
}

/* Nearly always the last place: a reload may have shortened the time that writers have. */
static void lease_by_deadline(struct ns *ns, struct partial *p)
{
	struct list *after = ns->partials.prev;

	while (after != &ns->partials && container_of(after, struct partial, by_deadline)->deadline_ns > p->deadline_ns)
		after = after->prev;
	list_add_head(after, &p->by_deadline);
}

int lease_write_new(struct holder *h, const uint8_t *key, uint64_t lanes, uint64_t deadline_ns, uint32_t *ret_slot)
{
	struct ns *ns = h->ns;
	struct partial *p = lease_pool_get(&ns->partial_pool, sizeof(*p));

	if (!p)
		return LEASE_E_NOMEM;
	memset(p, 0, sizeof(*p));
	if (lease_partial_number(ns, &p->number) != 0) {
		lease_pool_put(&ns->partial_pool, p);
		return LEASE_E_NOMEM;
	}
	ns->partial_at[p->number] = p;
	list_init(&p->leases);
	p->deadline_ns = deadline_ns;
	lease_by_deadline(ns, p);
	p->lanes_open = lease_all_lanes(ns);
	if ((key && ns->desc->lanes > 1 && lease_key_link(ns, p, key) != 0) || lease_new(h, p, lanes) != 0) {
		lease_partial_free(ns, p);
		return LEASE_E_NOMEM;
	}
	p->slot = ns_slot_take(ns);
	ns->blocks[p->slot].parent = p->number;
	*ret_slot = p->slot;
	return 0;
}

/* A partial of @key whose @lanes nobody has, or NULL. */
static struct partial *lease_joinable(const struct ns *ns, const uint8_t *key, uint64_t lanes)
{
	uint8_t padded[KEY_MAX] = { 0 };
	struct partial *p;

	if (ns->desc->lanes == 1)
		return NULL;
	memcpy(padded, key, ns->desc->key_bytes);
	HASH_FIND(hh, ns->partial_by_key, padded, KEY_MAX, p);
	while (p && (p->lanes_open & lanes) != lanes)
		p = p->next_same_key;
	return p;
}

bool lease_can_join(const struct ns *ns, const uint8_t *key, uint64_t lanes)
{
	return lease_joinable(ns, key, lanes) != NULL;
}

uint32_t lease_write_join(struct holder *h, const uint8_t *key, uint64_t lanes)
{
	struct partial *p = lease_joinable(h->ns, key, lanes);

	return p && lease_new(h, p, lanes) == 0 ? p->slot : NS_NONE;
}

struct lease *lease_find(const struct holder *h, uint32_t slot, uint32_t generation, uint64_t lanes)
{
	const struct ns *ns = h->ns;
	uint8_t state;

	if (!ns_slot_valid(ns, slot) || ns_slot_generation(ns, slot) != generation)
		return NULL;
	state = ns_slot_state(ns, slot);
	/* A slot that a copy is on its way into has no partial: no session writes it. */
	if ((state != SHM_PARTIAL && state != SHM_QUARANTINE) || ns->blocks[slot].parent == NS_NONE)
		return NULL;
	list_for_each(it, &lease_partial(ns, slot)->leases) {
		struct lease *lease = container_of(it, struct lease, in_partial);

		if (lease->holder == h && (lease->lanes & lanes) == lanes)
			return lease;
	}
	return NULL;
}

bool lease_write_lanes(struct lease *lease, uint64_t lanes, struct partial **ret_partial)
{
	struct partial *p = lease->partial;
	struct ns *ns = lease->holder->ns;

	assert(!p->aborted && (lease->lanes & lanes) == lanes);
	lease->lanes &= ~lanes;
	p->lanes_done |= lanes;
	ns->records[p->slot].sum = p->lanes_done;
	if (lease->lanes == 0)
		lease_free(lease);
	*ret_partial = p;
	return p->lanes_done == lease_all_lanes(ns);
}

void lease_write_done(struct ns *ns, struct partial *p)
{
	while (!list_empty(&p->leases))
		lease_free(container_of(list_first(&p->leases), struct lease, in_partial));
	lease_partial_free(ns, p);
}

void lease_partial_abort(struct ns *ns, struct partial *p)
{
	if (p->aborted)
		return;
	p->aborted = true;
	lease_key_unlink(ns, p);
	list_del(&p->by_deadline);
	ns->counts.aborted++;
	ns_slot_quarantine(ns, p->slot);
	if (list_empty(&p->leases)) {
		ns_slot_free(ns, p->slot, SHM_QUARANTINE);
		lease_partial_free(ns, p);
	}
}

void lease_abort(struct lease *lease)
{
	struct partial *p = lease->partial;
	struct ns *ns = lease->holder->ns;

	lease_free(lease);
	if (!p->aborted) {
		lease_partial_abort(ns, p);
	} else if (list_empty(&p->leases)) {
		ns_slot_free(ns, p->slot, SHM_QUARANTINE);
		lease_partial_free(ns, p);
	}
}

void lease_tables_free(struct ns *ns)
{
	lease_pool_free(&ns->lease_pool);
	lease_pool_free(&ns->partial_pool);
	free(ns->partial_at);
	ns->partial_at = NULL;
}
