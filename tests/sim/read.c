/* SPDX-License-Identifier: Apache-2.0 */
/* How blocks are found and held: match and release by message, pins through the session page, and pages that lie. */
#include <string.h>

#include "tests/sim/sim.h"

#define MANY 4200u /* more than a pin word counts to */

/* ---- by message ---- */

static uint64_t read_quota_left(const struct sim_session *s)
{
	const struct quota *mine = &s->user.session, *uids = s->user.uid;
	uint64_t a = mine->limit[QUOTA_HOLDS] - mine->used[QUOTA_HOLDS];
	uint64_t b = uids->limit[QUOTA_HOLDS] - uids->used[QUOTA_HOLDS];

	return a < b ? a : b;
}

static uint32_t match_check(struct sim *w, struct sim_ns *ns, struct sim_holder *sh, const int32_t *keys,
                            const struct store_match *a)
{
	uint32_t hits = 0;

	for (uint32_t i = 0; i < a->n; i++) {
		const struct sim_block *b = &ns->blocks[keys[i]];

		if (!b->present && !a->scattered)
			break;
		if (!b->present) {
			sim_must(w, a->slots[i] == STORE_NO_SLOT);
			continue;
		}
		sim_must(w, a->slots[i] == b->slot && a->generations[i] == b->generation);
		sim_read_bytes(w, ns, b->slot, keys[i]);
		hits++;
		if (a->hold) {
			sh->held[b->slot]++;
			sh->n_held++;
		}
	}
	sim_must(w, hits == a->hits);
	return hits;
}

void sim_match(struct sim *w)
{
	int32_t keys[SIM_MAX_N];
	uint8_t bytes[SIM_MAX_N * KEY_MAX];
	uint32_t slots[SIM_MAX_N], generations[SIM_MAX_N], hits;
	struct store_match a = { .keys = bytes, .slots = slots, .generations = generations, .now_ns = w->now_ns };
	struct sim_session *s;
	struct sim_ns *ns;
	struct sim_holder *sh = sim_holder(w, &s, &ns);
	int r;

	if (!sh)
		return;
	a.n = sim_pick_keys(w, ns, keys, SIM_MAX_N);
	sim_pack_keys(w, ns, keys, a.n, bytes);
	a.scattered = sim_chance(w, 30);
	a.hold = sim_chance(w, 60);
	r = a.hold && a.n > read_quota_left(s) ? STORE_E_LIMIT : 0;
	sim_must(w, store_match(sh->h, &a) == r);
	sim_say(w, "session %u, %s: %u keys%s%s: %d, %u hits", s->number, ns->desc.name, a.n,
	        a.scattered ? ", scattered" : "", a.hold ? ", hold" : "", r, a.hits);
	if (r != 0)
		return;
	hits = match_check(w, ns, sh, keys, &a);
	ns->counts.looked_up += a.n;
	ns->counts.hits += hits;
}

/* One hold, over and over, until the count of a pin word is full: the hit becomes a miss, and nothing overflows. */
static void release_many(struct sim *w, struct sim_session *s, struct sim_ns *ns, struct sim_holder *sh)
{
	uint64_t session_limit = s->user.session.limit[QUOTA_HOLDS], uid_limit = s->user.uid->limit[QUOTA_HOLDS];
	uint32_t slot, generation, held = 0, key = sim_below(w, ns->n_keys);
	uint8_t bytes[KEY_MAX];

	sim_key(w, ns, (int32_t)key, bytes);
	if (!ns->blocks[key].present)
		return;
	s->user.session.limit[QUOTA_HOLDS] += MANY;
	s->user.uid->limit[QUOTA_HOLDS] += MANY;
	for (uint32_t i = 0; i < MANY; i++) {
		struct store_match a = { .keys = bytes, .n = 1, .hold = true, .slots = &slot, .generations = &generation };

		sim_must(w, store_match(sh->h, &a) == 0);
		sim_must(w, a.hits == (sh->held[ns->blocks[key].slot] + held < SHM_PIN_COUNT_MASK));
		held += a.hits;
		ns->counts.looked_up++;
		ns->counts.hits += a.hits;
	}
	while (held-- > 0)
		sim_must(w, store_release(sh->h, &ns->blocks[key].slot, &ns->blocks[key].generation, 1) == 0);
	s->user.session.limit[QUOTA_HOLDS] = session_limit;
	s->user.uid->limit[QUOTA_HOLDS] = uid_limit;
	sim_say(w, "session %u, %s: %u holds of key %u", s->number, ns->desc.name, MANY, key);
}

void sim_release(struct sim *w)
{
	uint32_t slots[SIM_MAX_N], generations[SIM_MAX_N], n = 0;
	struct sim_session *s;
	struct sim_ns *ns;
	struct sim_holder *sh = sim_holder(w, &s, &ns);
	bool right = true;
	int r;

	if (!sh)
		return;
	if (sim_chance(w, 1)) {
		release_many(w, s, ns, sh);
		return;
	}
	for (uint32_t k = 0; k < ns->n_keys && n < SIM_MAX_N; k++) {
		const struct sim_block *b = &ns->blocks[k];

		for (uint32_t i = 0; b->present && i < sh->held[b->slot] && n < SIM_MAX_N; i++) {
			if (sim_chance(w, 40))
				continue;
			slots[n] = b->slot;
			generations[n++] = b->generation;
		}
	}
	if (sim_chance(w, 15) && n < SIM_MAX_N) {
		slots[n] = sim_chance(w, 70) ? sim_below(w, ns->n_slots) : (uint32_t)rng_next(&w->rng);
		generations[n++] = sim_below(w, 5);
	} else if (sim_chance(w, 10) && n > 0) {
		slots[sim_below(w, n)] = slots[0]; /* perhaps more often than it is held */
	}
	for (uint32_t i = 0; i < n; i++) {
		uint32_t before = 0;

		for (uint32_t k = 0; k < i; k++)
			before += slots[k] == slots[i];
		right &= slots[i] < ns->n_slots && sh->held[slots[i]] > before &&
		         ns_slot_generation(&ns->sn->ns, slots[i]) == generations[i];
	}
	r = store_release(sh->h, slots, generations, n);
	sim_say(w, "session %u, %s: %u slots: %d", s->number, ns->desc.name, n, r);
	sim_must(w, r == (right ? 0 : STORE_E_NOTHELD));
	for (uint32_t i = 0; r == 0 && i < n; i++) {
		sh->held[slots[i]]--;
		sh->n_held--;
	}
}

/* ---- through shared memory ---- */

static bool pin_raise(struct sim_holder *sh, const struct shm_ns *shm, uint32_t slot)
{
	uint32_t clock = atomic_load_explicit(&((struct shm_ns *)shm)->clock, memory_order_relaxed);

	if (!shm_page_raise(sh->page, slot, shm_group_shift(shm->n_slots), clock, SHM_PIN_COUNT_MASK))
		return false;
	atomic_store(&sh->page->pinned, ++sh->n_pins);
	sh->pins[slot]++;
	return true;
}

static void pin_lower(struct sim_holder *sh, uint32_t slot)
{
	shm_pin_lower(&sh->page->pins[slot]);
	atomic_store(&sh->page->pinned, --sh->n_pins);
	sh->pins[slot]--;
}

/* Raises the pin word, then looks again: it is a hit only if the entry is still the same. */
static bool pin_entry(struct sim *w, struct sim_ns *ns, struct sim_holder *sh, int32_t key, struct shm_entry e)
{
	const struct shm_ns *shm = ns->sn->index.base;
	uint8_t bytes[KEY_MAX];
	struct shm_entry now;

	sim_key(w, ns, key, bytes);
	if (!pin_raise(sh, shm, e.slot))
		return false;
	shm_fence();
	if (!sim_look_up(w, ns, bytes, &now) || !shm_entry_equal(e, now)) {
		pin_lower(sh, e.slot);
		return false;
	}
	sim_must(w, ns->blocks[key].present && ns->blocks[key].slot == e.slot);
	sim_read_bytes(w, ns, e.slot, key);
	return true;
}

static void pin_count(struct sim_holder *sh, bool hit)
{
	sh->looked_up++;
	sh->hits += hit;
	atomic_store(&sh->page->looked_up, sh->looked_up);
	atomic_store(&sh->page->hits, sh->hits);
	atomic_store(&sh->page->misses, sh->looked_up - sh->hits);
}

/* Looks up and pins; some entries are only remembered, and pinned at a later event, when they may be stale. */
void sim_pin(struct sim *w)
{
	int32_t keys[SIM_MAX_N];
	uint32_t n, hits = 0;
	struct sim_session *s;
	struct sim_ns *ns;
	struct sim_holder *sh = sim_holder(w, &s, &ns);

	if (!sh || s->hostile)
		return;
	n = sim_pick_keys(w, ns, keys, SIM_MAX_N);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t at = sim_below(w, SIM_REMEMBERED);
		uint8_t bytes[KEY_MAX];
		struct shm_entry e;
		bool hit;

		sim_key(w, ns, keys[i], bytes);
		hit = sim_look_up(w, ns, bytes, &e);
		sim_must(w, hit == ns->blocks[keys[i]].present);
		if (hit && sim_chance(w, 20)) {
			sh->remembered[at] = e;
			sh->remembered_key[at] = keys[i];
			continue;
		}
		hit = hit && pin_entry(w, ns, sh, keys[i], e);
		pin_count(sh, hit);
		hits += hit;
		if (!hit)
			break;
	}
	for (uint32_t i = 0; i < SIM_REMEMBERED; i++) {
		if (sh->remembered_key[i] == SIM_NO_KEY || sim_chance(w, 70))
			continue;
		pin_count(sh, pin_entry(w, ns, sh, sh->remembered_key[i], sh->remembered[i]));
		sh->remembered_key[i] = SIM_NO_KEY;
	}
	sim_say(w, "session %u, %s: %u keys, %u hits", s->number, ns->desc.name, n, hits);
}

void sim_unpin(struct sim *w)
{
	struct sim_session *s;
	struct sim_ns *ns;
	struct sim_holder *sh = sim_holder(w, &s, &ns);
	unsigned percent = sim_chance(w, 30) ? 100 : 50;

	if (!sh || s->hostile)
		return;
	for (uint32_t slot = 0; slot < ns->n_slots && sh->n_pins; slot++)
		while (sh->pins[slot] && sim_chance(w, percent))
			pin_lower(sh, slot);
	sim_say(w, "session %u, %s: %llu pins left", s->number, ns->desc.name, (unsigned long long)sh->n_pins);
}

/* A page is its client's: whatever is in it, only that client's own pins and counts follow. */
void sim_hostile(struct sim *w)
{
	struct sim_session *s;
	struct sim_ns *ns;
	struct sim_holder *sh = sim_holder(w, &s, &ns);
	uint32_t n;

	if (!sh || !s->hostile)
		return;
	ns->garbled = true;
	n = sim_below(w, ns->n_slots + 1);
	for (uint32_t i = 0; i < n; i++)
		atomic_store(&sh->page->pins[sim_below(w, ns->n_slots)],
		             sim_chance(w, 60) ? (uint32_t)rng_next(&w->rng) & ~SHM_PIN_COUNT_MASK
		                               : (uint32_t)rng_next(&w->rng));
	if (sim_chance(w, 50))
		atomic_store(&sh->page->groups[0], (uint32_t)rng_next(&w->rng));
	atomic_store(&sh->page->looked_up, rng_next(&w->rng));
	atomic_store(&sh->page->hits, rng_next(&w->rng));
	atomic_store(&sh->page->misses, rng_next(&w->rng));
	atomic_store(&sh->page->pinned, rng_next(&w->rng));
	sh->page->magic = (uint32_t)rng_next(&w->rng);
	sim_say(w, "session %u, %s: %u words", s->number, ns->desc.name, n);
}
