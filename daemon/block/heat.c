/* Heat decides which blocks are cold.  It never drops one: space.c asks, and may find the victim pinned meanwhile.
 *
 * Every live block is in exactly one of: a bucket (HEAT_ORDER), the parked set (has children, in no queue), the grace queue, or
 * proposed and in the caller's hands (HEAT_NOWHERE).  Queues hold slot numbers, not pointers, in chunks, so that the walk can
 * prefetch.  An entry is live when its block is in that kind of queue and, in the order, not placed later than the bucket's tick;
 * others are stale and skipped.  Stale ones come only from explicit drops and hints; heat_compact() bounds them.
 *
 * Ticks are compared modulo 2^32.  When the calendar is full its two oldest buckets are joined: their order is kept, so nothing
 * is lost where decisions are made.
 */
#include "block/heat.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define HEAT_SLAB_CHUNKS 1024u
#define HEAT_AHEAD 16u
#define HEAT_NEAR 8u

static struct heat_chunk *heat_chunk_at(const struct heat *h, uint32_t number)
{
	assert(number != 0 && number <= h->n_chunks);
	return &h->slabs[(number - 1) / HEAT_SLAB_CHUNKS][(number - 1) % HEAT_SLAB_CHUNKS];
}

static uint32_t heat_chunk_new(struct heat *h)
{
	uint32_t number = h->free_chunk;
	struct heat_chunk *c;

	if (number) {
		c = heat_chunk_at(h, number);
		h->free_chunk = c->next;
	} else {
		if (h->n_chunks == h->n_slabs * HEAT_SLAB_CHUNKS) {
			struct heat_chunk **slabs = realloc(h->slabs, (h->n_slabs + 1) * sizeof(*slabs));

			if (!slabs)
				return 0;
			h->slabs = slabs;
			slabs[h->n_slabs] = malloc(HEAT_SLAB_CHUNKS * sizeof(**slabs));
			if (!slabs[h->n_slabs])
				return 0;
			h->n_slabs++;
		}
		number = ++h->n_chunks;
		c = heat_chunk_at(h, number);
	}
	c->next = 0;
	c->n = 0;
	return number;
}

static bool heat_queue_push(struct heat *h, struct heat_queue *q, uint32_t slot)
{
	struct heat_chunk *c = q->tail ? heat_chunk_at(h, q->tail) : NULL;

	if (!c || c->n == HEAT_CHUNK_IDS) {
		uint32_t number = heat_chunk_new(h);

		if (!number)
			return false;
		if (c)
			c->next = number;
		else
			q->head = number;
		q->tail = number;
		c = heat_chunk_at(h, number);
	}
	c->ids[c->n++] = slot;
	h->entries++;
	return true;
}

/* Id number @at of a queue, counted from chunk @c on, which is at most one chunk away. */
static bool heat_peek(const struct heat *h, const struct heat_chunk *c, uint32_t at, uint32_t *ret_slot)
{
	if (at >= c->n && c->next) {
		at -= c->n;
		c = heat_chunk_at(h, c->next);
	}
	if (at >= c->n)
		return false;
	*ret_slot = c->ids[at];
	return true;
}

static void heat_prefetch(const struct heat *h, const struct heat_chunk *c, uint32_t at)
{
	uint32_t slot;

	if (heat_peek(h, c, at + HEAT_AHEAD, &slot))
		h->ops->prefetch(h->ctx, slot, false);
	if (heat_peek(h, c, at + HEAT_NEAR, &slot))
		h->ops->prefetch(h->ctx, slot, true);
}

static bool heat_queue_pop(struct heat *h, struct heat_queue *q, uint32_t *ret_slot)
{
	while (q->head) {
		struct heat_chunk *c = heat_chunk_at(h, q->head);
		uint32_t number = q->head;

		if (q->read < c->n) {
			heat_prefetch(h, c, q->read);
			*ret_slot = c->ids[q->read++];
			h->entries--;
			return true;
		}
		q->read = 0;
		q->head = c->next;
		if (!q->head)
			q->tail = 0;
		c->next = h->free_chunk;
		h->free_chunk = number;
	}
	return false;
}

/* Moves the ids of the chunk behind @number into it if they fit, so that joined buckets do not pile up half-empty chunks. */
static void heat_chunk_merge(struct heat *h, uint32_t number, uint32_t *tail)
{
	struct heat_chunk *c = heat_chunk_at(h, number);
	uint32_t next = c->next;
	struct heat_chunk *d = heat_chunk_at(h, next);

	if (c->n + d->n > HEAT_CHUNK_IDS)
		return;
	memcpy(c->ids + c->n, d->ids, d->n * sizeof(*d->ids));
	c->n += d->n;
	c->next = d->next;
	if (*tail == next)
		*tail = number;
	d->next = h->free_chunk;
	h->free_chunk = next;
}

/* All of @from in front of @to; @from is empty afterwards.  A half-read head keeps its offset by moving its ids down. */
static void heat_queue_join(struct heat *h, struct heat_queue *from, struct heat_queue *to)
{
	struct heat_chunk *head;

	if (!from->head)
		return;
	head = heat_chunk_at(h, from->head);
	if (from->read) {
		memmove(head->ids, head->ids + from->read, (head->n - from->read) * sizeof(*head->ids));
		head->n -= from->read;
		from->read = 0;
	}
	if (to->head) {
		assert(to->read == 0); /* only the oldest bucket is read from */
		heat_chunk_at(h, from->tail)->next = to->head;
		heat_chunk_merge(h, from->tail, &to->tail);
		from->tail = to->tail;
	}
	*to = *from;
	*from = (struct heat_queue){ 0 };
}

static struct heat_queue *heat_bucket(struct heat *h, uint32_t tick)
{
	return &h->buckets[tick % HEAT_BUCKETS];
}

int heat_init(struct heat *h, uint32_t n_slots, uint32_t grace_limit, const struct heat_ops *ops, void *ctx)
{
	assert(ops && n_slots > 0);
	memset(h, 0, sizeof(*h));
	h->ops = ops;
	h->ctx = ctx;
	h->n_slots = n_slots;
	h->per_tick = n_slots / 2048 ? n_slots / 2048 : 1;
	h->grace_limit = grace_limit;
	h->clock = h->oldest = 1;
	return 0;
}

void heat_deinit(struct heat *h)
{
	for (uint32_t i = 0; i < h->n_slabs; i++)
		free(h->slabs[i]);
	free(h->slabs);
	memset(h, 0, sizeof(*h));
}

static void heat_advance(struct heat *h)
{
	h->clock++;
	if (h->clock - h->oldest >= HEAT_BUCKETS) {
		heat_queue_join(h, heat_bucket(h, h->oldest), heat_bucket(h, h->oldest + 1));
		h->oldest++;
	}
}

uint32_t heat_tick(struct heat *h)
{
	if (h->placed < h->per_tick)
		return h->clock;
	h->placed = 0;
	h->bumped = false;
	heat_advance(h);
	return h->clock;
}

void heat_follow(struct heat *h, uint32_t clock)
{
	uint32_t ahead = clock - h->clock;

	if ((int32_t)ahead <= 0)
		return;
	/* So far that nothing keeps its own bucket: skip the ticks at which nothing would happen. */
	if (ahead > 2 * HEAT_BUCKETS && h->entries == 0)
		h->clock = h->oldest = clock - HEAT_BUCKETS;
	while (h->clock != clock)
		heat_advance(h);
}

static bool heat_is_leaving(const struct heat_mark *m)
{
	return m->where == HEAT_CLEAN || m->where == HEAT_COPYING;
}

static void heat_tell_leaving(struct heat *h, uint32_t slot, bool on)
{
	if (h->ops->leaving)
		h->ops->leaving(h->ctx, slot, on);
}

static void heat_leave(struct heat *h, struct heat_mark *m, uint32_t slot)
{
	bool leaving = heat_is_leaving(m);

	if (m->where == HEAT_ORDER)
		h->in_order--;
	else if (m->where == HEAT_PARKED)
		h->parked--;
	else if (m->where == HEAT_GRACE)
		h->grace_live--;
	else if (m->where == HEAT_CLEAN)
		h->clean_live--;
	m->where = HEAT_NOWHERE;
	if (leaving)
		heat_tell_leaving(h, slot, false);
}

static void heat_park(struct heat *h, struct heat_mark *m)
{
	m->where = HEAT_PARKED;
	h->parked++;
}

static void heat_put(struct heat *h, struct heat_mark *m, uint32_t slot, uint32_t tick)
{
	assert(m->where == HEAT_NOWHERE);
	if ((int32_t)(tick - h->oldest) < 0)
		tick = h->oldest;
	if ((int32_t)(tick - h->clock) > 0)
		tick = h->clock;
	if (!heat_queue_push(h, heat_bucket(h, tick), slot)) {
		heat_park(h, m); /* no memory for 256 bytes: not droppable until touched by heat_unpark */
		return;
	}
	m->place = tick;
	m->where = HEAT_ORDER;
	h->in_order++;
}

/* Keeps the live entries of @q: those @where, in the order not placed later than @tick. */
static void heat_compact_queue(struct heat *h, struct heat_queue *q, enum heat_where where, uint32_t tick)
{
	struct heat_queue kept = { 0 };
	uint32_t slot;

	while (heat_queue_pop(h, q, &slot)) {
		struct heat_mark *m = h->ops->mark(h->ctx, slot);
		bool live = m->where == where && (where != HEAT_ORDER || (int32_t)(m->place - tick) <= 0);

		if (live && !heat_queue_push(h, &kept, slot)) {
			heat_leave(h, m, slot);
			heat_park(h, m);
		}
	}
	*q = kept;
}

/* Drops stale entries from every queue, in order. */
static void heat_compact(struct heat *h)
{
	for (uint32_t i = 0; i < HEAT_BUCKETS; i++)
		heat_compact_queue(h, heat_bucket(h, h->oldest + i), HEAT_ORDER, h->oldest + i);
	heat_compact_queue(h, &h->grace, HEAT_GRACE, 0);
	heat_compact_queue(h, &h->clean, HEAT_CLEAN, 0);
}

static void heat_bound(struct heat *h)
{
	if (h->entries > 2ull * h->n_slots + 65536)
		heat_compact(h);
}

void heat_place(struct heat *h, uint32_t slot)
{
	struct heat_mark *m = h->ops->mark(h->ctx, slot);

	heat_bound(h);
	if (m->where == HEAT_COPYING)
		heat_leave(h, m, slot);
	heat_put(h, m, slot, m->touch);
	h->placed++;
}

static void heat_to_grace(struct heat *h, struct heat_mark *m, uint32_t slot)
{
	if (!heat_queue_push(h, &h->grace, slot)) {
		heat_put(h, m, slot, m->touch);
		return;
	}
	m->where = HEAT_GRACE;
	m->place = m->touch;
	h->grace_live++;
}

void heat_unpark(struct heat *h, uint32_t slot)
{
	struct heat_mark *m = h->ops->mark(h->ctx, slot);

	if (m->where != HEAT_PARKED)
		return;
	heat_leave(h, m, slot);
	if (m->flags & HEAT_F_RELEASED)
		heat_to_grace(h, m, slot);
	else
		heat_put(h, m, slot, m->touch);
}

void heat_release(struct heat *h, uint32_t slot)
{
	struct heat_mark *m = h->ops->mark(h->ctx, slot);
	uint32_t touch = m->touch, victim;

	if (m->where != HEAT_ORDER && m->where != HEAT_PARKED && m->where != HEAT_CLEAN)
		return;
	heat_bound(h); /* each hint may leave a stale entry */
	h->ops->held(h->ctx, slot, &touch);
	m->touch = touch;
	m->flags |= HEAT_F_RELEASED;
	if (m->where == HEAT_PARKED && (m->flags & HEAT_F_SHARED) && h->ops->has_children(h->ctx, slot))
		return;
	heat_leave(h, m, slot);
	heat_to_grace(h, m, slot);
	while (h->grace_live > h->grace_limit && heat_queue_pop(h, &h->grace, &victim)) {
		struct heat_mark *vm = h->ops->mark(h->ctx, victim);

		if (vm->where != HEAT_GRACE)
			continue;
		heat_leave(h, vm, victim);
		heat_put(h, vm, victim, h->oldest);
	}
}

void heat_released(struct heat *h)
{
	/* Stamps are 20 bits, and buckets 4096: hints that come thick and fast share a tick. */
	if (h->bumped && h->placed <= h->per_tick / 16)
		return;
	h->bumped = true;
	h->placed = 0;
	heat_advance(h);
}

void heat_touch(struct heat *h, uint32_t slot)
{
	struct heat_mark *m = h->ops->mark(h->ctx, slot);

	m->touch = h->clock;
	m->flags = (uint16_t)((m->flags & ~HEAT_F_RELEASED) | HEAT_F_HIT);
}

void heat_clean(struct heat *h, uint32_t slot)
{
	struct heat_mark *m = h->ops->mark(h->ctx, slot);

	bool copying = m->where == HEAT_COPYING;

	assert(m->where == HEAT_NOWHERE || copying);
	heat_bound(h);
	if (!heat_queue_push(h, &h->clean, slot)) {
		heat_leave(h, m, slot);
		heat_put(h, m, slot, m->touch);
		return;
	}
	m->where = HEAT_CLEAN;
	m->place = m->touch;
	h->clean_live++;
	if (!copying)
		heat_tell_leaving(h, slot, true);
}

void heat_unclean(struct heat *h, uint32_t slot)
{
	struct heat_mark *m = h->ops->mark(h->ctx, slot);

	if (m->where != HEAT_CLEAN)
		return;
	heat_bound(h); /* its entry is stale now */
	heat_leave(h, m, slot);
	heat_put(h, m, slot, m->touch);
}

void heat_forget(struct heat *h, uint32_t slot)
{
	struct heat_mark *m = h->ops->mark(h->ctx, slot);

	heat_leave(h, m, slot);
	m->flags = 0;
}

/* Do children keep it here? */
static bool heat_is_kept(const struct heat *h, uint32_t slot, bool down)
{
	return down && h->ops->has_staying_children ? h->ops->has_staying_children(h->ctx, slot)
	                                            : h->ops->has_children(h->ctx, slot);
}

/* true: @slot is a victim, or, @down, is to be written down.  Otherwise it was put where it belongs. */
static bool heat_judge(struct heat *h, struct heat_mark *m, uint32_t slot, bool down)
{
	/* What is below is of the chain that was released, and who looks it up uses all of it: if nobody has used this block since, nobody has come
	 * by it to its children.  They stay behind, and are found again if it comes back. */
	bool alone = m->where == HEAT_GRACE && (m->flags & HEAT_F_RELEASED) && !(m->flags & HEAT_F_SHARED);
	uint32_t touch = m->touch;
	bool held = h->ops->held(h->ctx, slot, &touch);
	bool newer;

	/* What was released over the limit of grace lies colder than its last use: only a use since then rescues it. */
	if (m->flags & HEAT_F_RELEASED)
		newer = (int32_t)(touch - m->touch) > 0;
	else
		newer = m->where == HEAT_GRACE || (int32_t)(touch - m->place) > 0; /* in grace: see heat_touch() */

	heat_leave(h, m, slot);
	m->touch = touch;
	if (newer)
		m->flags = (uint16_t)((m->flags & ~HEAT_F_RELEASED) | HEAT_F_HIT);
	if (held || ((m->flags & HEAT_F_RETAINED) && !h->ignore_retained)) {
		m->touch = h->clock;
		heat_put(h, m, slot, h->clock);
		return false;
	}
	if (newer) {
		heat_put(h, m, slot, touch);
		return false;
	}
	if (!alone && heat_is_kept(h, slot, down)) {
		heat_park(h, m);
		return false;
	}
	return true;
}

static bool heat_pick_queue(struct heat *h, struct heat_queue *q, enum heat_where where, uint32_t *ret_slot, uint64_t *budget)
{
	uint32_t slot;

	while (*budget && heat_queue_pop(h, q, &slot)) {
		struct heat_mark *m = h->ops->mark(h->ctx, slot);

		(*budget)--;
		if (m->where == where && heat_judge(h, m, slot, false)) {
			*ret_slot = slot;
			return true;
		}
	}
	return false;
}

bool heat_pick_ready(struct heat *h, uint32_t *ret_slot, uint64_t *budget)
{
	return (h->grace_live && heat_pick_queue(h, &h->grace, HEAT_GRACE, ret_slot, budget)) ||
	       (h->clean_live && heat_pick_queue(h, &h->clean, HEAT_CLEAN, ret_slot, budget));
}

static bool heat_pick_order(struct heat *h, uint32_t *ret_slot, uint64_t *budget, bool down)
{
	uint32_t slot;

	while (h->in_order && *budget) {
		struct heat_mark *m;

		if (!heat_queue_pop(h, heat_bucket(h, h->oldest), &slot)) {
			if (h->oldest == h->clock)
				break;
			h->oldest++;
			continue;
		}
		m = h->ops->mark(h->ctx, slot);
		if (m->where != HEAT_ORDER || (int32_t)(m->place - h->oldest) > 0)
			continue;
		(*budget)--;
		if (heat_judge(h, m, slot, down)) {
			*ret_slot = slot;
			return true;
		}
	}
	return false;
}

bool heat_pick(struct heat *h, uint32_t *ret_slot, uint64_t *budget)
{
	return heat_pick_ready(h, ret_slot, budget) || heat_pick_order(h, ret_slot, budget, false);
}

bool heat_pick_down(struct heat *h, uint32_t *ret_slot, uint64_t *budget)
{
	if (!heat_pick_order(h, ret_slot, budget, true))
		return false;
	h->ops->mark(h->ctx, *ret_slot)->where = HEAT_COPYING;
	heat_tell_leaving(h, *ret_slot, true);
	return true;
}

uint64_t heat_bytes(const struct heat *h)
{
	return sizeof(*h) + (uint64_t)h->n_slabs * (HEAT_SLAB_CHUNKS * sizeof(struct heat_chunk) + sizeof(*h->slabs));
}
