/* SPDX-License-Identifier: Apache-2.0 */
/* How blocks get in: reserve, commit, abort, as a client does them and as it should not; and writers that write too late. */
#include <string.h>

#include "tests/lib/fake_tier.h"
#include "tests/sim/sim.h"

struct sim_write { /* the request in hand */
	struct sim_session *s;
	struct sim_ns *ns;
	struct sim_holder *sh;
	int32_t keys[SIM_MAX_N];
	uint32_t n, lane;
	uint64_t lanes; /* mask; 0: no such lane */
	uint8_t bytes[SIM_MAX_N * KEY_MAX], parent_bytes[SIM_MAX_N * KEY_MAX];
	int32_t parents[SIM_MAX_N];
	uint32_t slots[SIM_MAX_N], generations[SIM_MAX_N];
	uint32_t out_slots[SIM_MAX_N], out_generations[SIM_MAX_N];
	uint8_t states[SIM_MAX_N];
};

static uint64_t write_lanes(const struct sim_ns *ns, uint32_t lane)
{
	if (lane == STORE_ALL_LANES)
		return sim_all_lanes(ns);
	return lane < ns->desc.lanes ? 1ull << lane : 0;
}

static bool write_begin(struct sim *w, struct sim_write *q)
{
	memset(q, 0, sizeof(*q));
	q->sh = sim_holder(w, &q->s, &q->ns);
	if (!q->sh)
		return false;
	q->lane = sim_chance(w, 55) ? STORE_ALL_LANES : sim_below(w, q->ns->desc.lanes + (sim_chance(w, 5) ? 2 : 0));
	q->lanes = write_lanes(q->ns, q->lane);
	return true;
}

static uint64_t write_quota_left(const struct sim_session *s, enum quota_kind kind)
{
	uint64_t mine = s->user.session.limit[kind] - s->user.session.used[kind];
	uint64_t uids = s->user.uid->limit[kind] - s->user.uid->used[kind];

	return mine < uids ? mine : uids;
}

/* ---- reserve ---- */

/* A partial of this key that somebody may join for these lanes. */
static struct sim_partial *reserve_joinable(struct sim_ns *ns, int32_t key, uint64_t lanes)
{
	for (uint32_t i = 0; ns->desc.lanes > 1 && i < ns->n_partials; i++) {
		struct sim_partial *p = &ns->partials[i];

		if (p->slot != SHM_NO_SLOT && !p->aborted && p->key == key && (p->open & lanes) == lanes)
			return p;
	}
	return NULL;
}

struct reserve_expected {
	uint32_t fresh, joins;
	bool nothing[SIM_MAX_N]; /* present or repeated */
	bool join[SIM_MAX_N];
};

static void reserve_expect(const struct sim_write *q, bool keyed, struct reserve_expected *e)
{
	memset(e, 0, sizeof(*e));
	for (uint32_t i = 0; i < q->n; i++) {
		e->nothing[i] = keyed && sim_is_present(q->ns, q->keys[i]);
		if (e->nothing[i])
			q->ns->blocks[q->keys[i]].wanted = true;
		for (uint32_t k = 0; keyed && k < i; k++)
			e->nothing[i] |= q->keys[k] == q->keys[i];
		e->join[i] = keyed && !e->nothing[i] && reserve_joinable(q->ns, q->keys[i], q->lanes);
		e->joins += e->join[i];
		e->fresh += !e->nothing[i] && !e->join[i];
	}
}

static void reserve_unwant(struct sim_write *q)
{
	for (uint32_t k = 0; k < q->ns->n_keys; k++)
		q->ns->blocks[k].wanted = false;
}

/* Was the refusal right? */
static void reserve_refused(struct sim *w, struct sim_write *q, const struct reserve_expected *e, int r, bool keyed)
{
	const struct ns *real = &q->ns->sn->ns;
	bool invalid = !q->lanes || (q->ns->desc.lanes > 1 && !keyed && q->n > 0);

	sim_must(w, (r == STORE_E_PERM) == !q->sh->writable);
	if (r == STORE_E_PERM)
		return;
	sim_must(w, (r == STORE_E_INVAL) == invalid);
	if (r == STORE_E_INVAL)
		return;
	sim_must(w, (r == STORE_E_LIMIT) == (e->fresh + e->joins > write_quota_left(q->s, QUOTA_SLOTS)));
	if (r == STORE_E_LIMIT)
		return;
	if (r == STORE_E_WAIT && w->lower) {
		if (sim_chance(w, 60))
			sim_wait_begin(w, q->s, q->ns, e->fresh);
		return;
	}
	sim_must(w, r == STORE_E_NOSPACE);
	sim_say(w, "%u free, %u droppable, %u wanted", real->n_free, sim_droppable(w, q->ns), e->fresh);
	sim_must(w, w->fault_armed || real->n_free + sim_droppable(w, q->ns) < e->fresh);
}

static void reserve_made(struct sim *w, struct sim_write *q, uint32_t i, bool join)
{
	struct sim_ns *ns = q->ns;
	uint32_t slot = q->slots[i], k;
	struct sim_partial *p;

	sim_must(w, slot < ns->n_slots);
	if (join) {
		p = sim_partial_at(ns, slot, q->generations[i]);
		sim_must(w, p && p->key == q->keys[i] && (p->open & q->lanes) == q->lanes && !p->aborted);
		k = (uint32_t)(p - ns->partials);
	} else {
		sim_must(w, q->generations[i] > ns->generations[slot]);
		k = sim_partial_new(ns);
		p = &ns->partials[k];
		*p = (struct sim_partial){ .slot = slot,
			                   .generation = q->generations[i],
			                   .key = q->keys[i],
			                   .open = sim_all_lanes(ns),
			                   .deadline_ns = w->now_ns + w->config.write_timeout_ns };
		ns->generations[slot] = q->generations[i];
	}
	p->open &= ~q->lanes;
	p->n_leases++;
	sim_lease_add(q->sh, k, q->lanes);
}

void sim_reserve(struct sim *w)
{
	struct sim_write q;
	struct reserve_expected e;
	struct store_reserve a = { .now_ns = w->now_ns, .slots = q.slots, .generations = q.generations };
	bool keyed = sim_chance(w, 85);
	uint32_t made = 0, max = sim_chance(w, 85) ? 12 : SIM_MAX_N;
	int r;

	if (!write_begin(w, &q))
		return;
	q.n = sim_chance(w, 97) ? sim_pick_keys(w, q.ns, q.keys, max) : 0;
	for (uint32_t i = 0; !keyed && i < q.n; i++)
		q.keys[i] = SIM_NO_KEY;
	if (keyed)
		sim_pack_keys(w, q.ns, q.keys, q.n, q.bytes);
	reserve_expect(&q, keyed, &e);
	a.keys = keyed ? q.bytes : NULL;
	a.n = q.n;
	a.lane = q.lane;
	a.now = sim_chance(w, 25);
	r = store_reserve(q.sh->h, &a);
	sim_say(w, "session %u, %s: %u keys (%u new, %u joined), lane %d: %d, dropped %u", q.s->number, q.ns->desc.name,
	        q.n, e.fresh, e.joins, (int)q.lane, r, a.dropped);
	w->drops = r == 0 || (r == STORE_E_NOSPACE && w->fault_armed) ? DROPS_ROOM : DROPS_NONE;
	w->drops_ns = sim_index(w, q.ns);
	w->told_dropped = a.dropped;
	if (r != 0) {
		reserve_refused(w, &q, &e, r, keyed);
		reserve_unwant(&q);
		return;
	}
	sim_must(w, q.sh->writable && q.lanes && a.reserved == e.fresh + e.joins);
	for (uint32_t i = 0; i < q.n; i++) {
		sim_must(w, (q.slots[i] == STORE_NO_SLOT) == e.nothing[i]);
		if (!e.nothing[i])
			reserve_made(w, &q, i, e.join[i]);
		made += !e.nothing[i];
	}
	sim_must(w, made == a.reserved);
}

/* ---- commit ---- */

/* Some of this session's leases; the model's and the request's key of each. */
static void commit_pick(struct sim *w, struct sim_write *q)
{
	uint32_t max = 1 + sim_below(w, sim_chance(w, 80) ? 16 : SIM_MAX_N);

	for (uint32_t i = 0; i < q->sh->n_leases && q->n < max; i++) {
		const struct sim_lease *lease = &q->sh->leases[i];
		const struct sim_partial *p = &q->ns->partials[lease->partial];
		bool again = false;

		if (!q->lanes || (lease->lanes & q->lanes) != q->lanes || sim_chance(w, 15))
			continue;
		for (uint32_t k = 0; k < q->n; k++)
			again |= q->slots[k] == p->slot;
		if (again)
			continue;
		q->slots[q->n] = p->slot;
		q->generations[q->n] = p->generation;
		q->keys[q->n++] = p->key == SIM_NO_KEY ? (int32_t)sim_below(w, q->ns->n_keys) : p->key;
	}
}

/* Parents are always lesser keys, or there could be cycles, which only the seeds for it have. */
static void commit_parents(struct sim *w, struct sim_write *q, struct store_commit *a)
{
	bool rising = true, given = sim_chance(w, 50);

	for (uint32_t i = 1; i < q->n; i++)
		rising &= q->keys[i] > q->keys[i - 1];
	if (q->n > 0 && q->n != 1 && !(rising && sim_chance(w, 50)) && !w->cyclic) {
		a->n_parents = q->n;
		for (uint32_t i = 0; i < q->n; i++)
			q->parents[i] = q->ns->tree[q->keys[i]];
	} else {
		int32_t first = q->n ? q->ns->tree[q->keys[0]] : SIM_NO_KEY;

		if (w->cyclic && sim_chance(w, 50))
			first = (int32_t)sim_below(w, q->ns->n_keys);
		a->n_parents = given;
		for (uint32_t i = 0; i < q->n; i++)
			q->parents[i] = i ? q->keys[i - 1] : given ? first : SIM_NO_KEY;
	}
	for (uint32_t i = 0; i < a->n_parents && i < q->n; i++)
		if (q->parents[i] >= 0)
			sim_key(w, q->ns, q->parents[i], q->parent_bytes + (size_t)i * q->ns->desc.key_bytes);
	a->parents = q->parent_bytes;
}

/* What a client does wrong. */
static void commit_spoil(struct sim *w, struct sim_write *q, struct store_commit *a)
{
	uint32_t i = q->n ? sim_below(w, q->n) : 0;

	switch (sim_below(w, 6)) {
	case 0:
		a->length += sim_chance(w, 50) ? 1 : (uint64_t)-1;
		break;
	case 1:
		q->lane = sim_chance(w, 50) ? q->ns->desc.lanes : sim_below(w, q->ns->desc.lanes);
		q->lanes = write_lanes(q->ns, q->lane);
		break;
	case 2:
		q->generations[i] += sim_chance(w, 50) ? 1 : UINT32_MAX;
		break;
	case 3:
		q->slots[i] = q->slots[0];
		break;
	case 4:
		q->slots[i] = sim_chance(w, 50) ? sim_below(w, q->ns->n_slots) : (uint32_t)rng_next(&w->rng);
		break;
	default:
		a->n_parents = q->n + 2;
		break;
	}
}

static int commit_expect(const struct sim_write *q, const struct store_commit *a, bool *ret_stale)
{
	bool stale = false;

	*ret_stale = false;
	if (!q->sh->writable)
		return STORE_E_PERM;
	if (!q->lanes || a->length != q->ns->desc.lane_bytes || (a->n_parents > 1 && a->n_parents != q->n))
		return STORE_E_INVAL;
	for (uint32_t i = 0; i < q->n; i++) {
		int32_t l = sim_lease_find(q->ns, q->sh, q->slots[i], q->generations[i], q->lanes);
		const struct sim_partial *p = l < 0 ? NULL : &q->ns->partials[q->sh->leases[l].partial];

		for (uint32_t k = 0; k < i; k++)
			if (q->slots[k] == q->slots[i])
				return STORE_E_INVAL;
		if (p && !p->aborted && q->ns->desc.lanes > 1 && p->key != q->keys[i])
			return STORE_E_INVAL;
		stale |= !p || p->aborted;
	}
	*ret_stale = stale;
	if (stale)
		return STORE_E_STALE;
	return a->hold && q->n > write_quota_left(q->s, QUOTA_HOLDS) ? STORE_E_LIMIT : 0;
}

/* Whoever asks to commit what missed its deadline has stopped writing it. */
static void commit_was_stale(struct sim_write *q)
{
	for (uint32_t i = 0; i < q->n; i++) {
		int32_t l = sim_lease_find(q->ns, q->sh, q->slots[i], q->generations[i], q->lanes);

		if (l >= 0 && q->ns->partials[q->sh->leases[l].partial].aborted)
			sim_lease_end(q->ns, q->sh, (uint32_t)l);
	}
}

/* A parent that would be the block's own descendant is none. */
static int32_t commit_parent(const struct sim_ns *ns, int32_t key, int32_t parent)
{
	for (int32_t k = parent; sim_is_present(ns, k) || k == key; k = ns->blocks[k].parent)
		if (k == key)
			return SIM_NO_KEY;
	return parent;
}

static void commit_registered(struct sim *w, struct sim_write *q, uint32_t i, int32_t parent)
{
	struct sim_block *b = &q->ns->blocks[q->keys[i]];

	q->ns->counts.stored++;
	if (b->present) {
		sim_must(w, q->states[i] == STORE_EXISTED);
		sim_must(w, q->out_slots[i] == b->slot && q->out_generations[i] == b->generation);
		q->ns->counts.deduplicated++;
		return;
	}
	sim_must(w, q->states[i] == STORE_NEW);
	q->ns->counts.deduplicated += b->below && q->out_slots[i] != STORE_NO_SLOT;
	if (q->out_slots[i] == STORE_NO_SLOT) { /* its part of the index is full */
		q->ns->counts.dropped++;
		return;
	}
	sim_must(w, q->out_slots[i] == q->slots[i] && q->out_generations[i] == q->generations[i]);
	*b = (struct sim_block){ .present = true,
		                 .below = b->below,
		                 .parent_below = b->parent_below,
		                 .parent = commit_parent(q->ns, q->keys[i], parent),
		                 .slot = q->slots[i],
		                 .generation = q->generations[i] };
}

static void commit_one(struct sim *w, struct sim_write *q, uint32_t i)
{
	struct sim_ns *ns = q->ns;
	uint32_t l = (uint32_t)sim_lease_find(ns, q->sh, q->slots[i], q->generations[i], q->lanes);
	struct sim_partial *p = &ns->partials[q->sh->leases[l].partial];

	p->done |= q->lanes;
	q->sh->leases[l].lanes &= ~q->lanes;
	if (q->sh->leases[l].lanes == 0)
		sim_lease_end(ns, q->sh, l);
	if (p->done != sim_all_lanes(ns)) {
		sim_must(w, q->states[i] == STORE_LANES_MISSING);
		sim_must(w, q->out_slots[i] == q->slots[i] && q->out_generations[i] == q->generations[i]);
		return;
	}
	sim_must(w, p->n_leases == 0);
	p->slot = SHM_NO_SLOT;
	commit_registered(w, q, i, q->parents[i]);
}

void sim_commit(struct sim *w)
{
	struct sim_write q;
	struct store_commit a = { .now_ns = w->now_ns, .slots_in = q.slots, .generations_in = q.generations };
	bool stale;
	int r, expected;

	if (!write_begin(w, &q))
		return;
	commit_pick(w, &q);
	if (q.n && sim_chance(w, 3))
		q.keys[sim_below(w, q.n)] = (int32_t)sim_below(w, q.ns->n_keys); /* perhaps another one than was reserved */
	a.length = q.ns->desc.lane_bytes;
	commit_parents(w, &q, &a);
	a.hold = sim_chance(w, 30);
	if (sim_chance(w, 12))
		commit_spoil(w, &q, &a);
	for (uint32_t i = 0; i < q.n; i++)
		if (sim_lease_find(q.ns, q.sh, q.slots[i], q.generations[i], q.lanes) >= 0)
			sim_write_bytes(w, q.ns, q.slots[i], q.lanes, q.keys[i]);
	sim_pack_keys(w, q.ns, q.keys, q.n, q.bytes);
	a.keys = q.bytes;
	a.n = q.n;
	a.lane = q.lane;
	a.slots = q.out_slots;
	a.generations = q.out_generations;
	a.states = q.states;
	expected = commit_expect(&q, &a, &stale);
	r = store_commit(q.sh->h, &a);
	sim_say(w, "session %u, %s: %u blocks, lane %d, %u parents%s: %d", q.s->number, q.ns->desc.name, q.n,
	        (int)q.lane, a.n_parents, a.hold ? ", hold" : "", r);
	sim_must(w, r == expected);
	if (stale)
		commit_was_stale(&q);
	for (uint32_t i = 0; r == 0 && i < q.n; i++) {
		commit_one(w, &q, i);
		sim_say(w, "   key %d, parent %d, slot %u: state %u, slot %u", q.keys[i], q.parents[i], q.slots[i],
		        q.states[i], q.out_slots[i]);
		if (!a.hold || q.states[i] == STORE_LANES_MISSING || q.out_slots[i] == STORE_NO_SLOT)
			continue;
		q.sh->held[q.out_slots[i]]++;
		q.sh->n_held++;
	}
}

/* ---- abort, and late writers ---- */

static int abort_expect(const struct sim_write *q)
{
	if (!q->lanes)
		return STORE_E_INVAL;
	for (uint32_t i = 0; i < q->n; i++) {
		for (uint32_t k = 0; k < i; k++)
			if (q->slots[k] == q->slots[i])
				return STORE_E_INVAL;
		if (sim_lease_find(q->ns, q->sh, q->slots[i], q->generations[i], q->lanes) < 0)
			return STORE_E_STALE;
	}
	return 0;
}

void sim_abort(struct sim *w)
{
	struct sim_write q;
	struct store_commit unused = { .n = 0 };
	int r, expected;

	if (!write_begin(w, &q))
		return;
	commit_pick(w, &q);
	if (sim_chance(w, 15))
		commit_spoil(w, &q, &unused);
	expected = abort_expect(&q);
	r = store_abort(q.sh->h, q.lane, q.slots, q.generations, q.n);
	sim_say(w, "session %u, %s: %u slots, lane %d: %d", q.s->number, q.ns->desc.name, q.n, (int)q.lane, r);
	sim_must(w, r == expected);
	for (uint32_t i = 0; r == 0 && i < q.n; i++) {
		uint32_t l = (uint32_t)sim_lease_find(q.ns, q.sh, q.slots[i], q.generations[i], q.lanes);
		struct sim_partial *p = &q.ns->partials[q.sh->leases[l].partial];

		sim_partial_abort(q.ns, p);
		sim_lease_end(q.ns, q.sh, l);
	}
}

/* Whoever holds a lease may write at any time, even when its deadline passed or its session is gone while its process lives. */
void sim_scribble(struct sim *w)
{
	for (uint32_t i = 0; i < SIM_MAX_SESSIONS; i++) {
		struct sim_session *s = &w->sessions[i];

		for (uint32_t k = 0; s->state != SESSION_NONE && k < w->n_ns; k++) {
			struct sim_holder *sh = &s->in[k];

			for (uint32_t l = 0; l < sh->n_leases; l++)
				sim_write_bytes(w, &w->ns[k], w->ns[k].partials[sh->leases[l].partial].slot,
				                sh->leases[l].lanes, SIM_NO_KEY);
		}
	}
	sim_say(w, "everybody who may");
}
