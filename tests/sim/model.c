/* SPDX-License-Identifier: Apache-2.0 */
/* The model: what must be true of blocks, partial slots, leases, holds and counts, and the check of it after every event. */
#include <stdlib.h>
#include <string.h>

#include "base/metrics.h"
#include "tests/sim/sim.h"

/* ---- what the model knows ---- */

bool sim_is_pinned(const struct sim *w, const struct sim_ns *ns, uint32_t slot)
{
	for (uint32_t i = 0; i < SIM_MAX_SESSIONS; i++) {
		const struct sim_holder *sh = &w->sessions[i].in[sim_index(w, ns)];

		if (w->sessions[i].state == SESSION_OPEN && sh->h &&
		    (sh->held[slot] || shm_pin_count(shm_page_pin(sh->page, slot, ns->sn->ns.group_shift))))
			return true;
	}
	return false;
}

bool sim_is_held(const struct sim *w, const struct sim_ns *ns, uint32_t slot)
{
	const struct ns *real = &ns->sn->ns;

	return (real->moving && (real->moving[slot] || real->kept[slot])) || sim_is_pinned(w, ns, slot);
}

bool sim_is_present(const struct sim_ns *ns, int32_t key)
{
	return key >= 0 && ns->blocks[key].present;
}

uint64_t sim_all_lanes(const struct sim_ns *ns)
{
	return ns->desc.lanes == 64 ? UINT64_MAX : (1ull << ns->desc.lanes) - 1;
}

uint32_t sim_children(const struct sim_ns *ns, int32_t key)
{
	uint32_t n = 0;

	for (uint32_t k = 0; k < ns->n_keys; k++)
		n += ns->blocks[k].present && ns->blocks[k].parent == key;
	return n;
}

uint32_t sim_droppable(const struct sim *w, struct sim_ns *ns)
{
	uint32_t n = 0, before;

	for (uint32_t k = 0; k < ns->n_keys; k++)
		ns->blocks[k].left = sim_children(ns, (int32_t)k);
	do {
		before = n;
		for (uint32_t k = ns->n_keys; k-- > 0;) {
			struct sim_block *b = &ns->blocks[k];

			if (!b->present || b->wanted || b->left || sim_is_held(w, ns, b->slot))
				continue;
			b->left = UINT32_MAX; /* counted */
			n++;
			if (b->parent >= 0 && ns->blocks[b->parent].present)
				ns->blocks[b->parent].left--;
		}
	} while (n != before);
	return n;
}

struct sim_partial *sim_partial_at(struct sim_ns *ns, uint32_t slot, uint32_t generation)
{
	for (uint32_t i = 0; i < ns->n_partials; i++)
		if (ns->partials[i].slot == slot && ns->partials[i].generation == generation)
			return &ns->partials[i];
	return NULL;
}

uint32_t sim_partial_new(struct sim_ns *ns)
{
	uint32_t i = 0;

	while (i < ns->n_partials && ns->partials[i].slot != SHM_NO_SLOT)
		i++;
	if (i == ns->n_partials) {
		ns->partials = realloc(ns->partials, ++ns->n_partials * sizeof(*ns->partials));
		assert(ns->partials);
	}
	ns->partials[i] = (struct sim_partial){ .key = SIM_NO_KEY };
	return i;
}

void sim_partial_abort(struct sim_ns *ns, struct sim_partial *p)
{
	if (p->aborted)
		return;
	p->aborted = true;
	ns->counts.aborted++;
	if (p->n_leases == 0)
		p->slot = SHM_NO_SLOT;
}

void sim_lease_add(struct sim_holder *sh, uint32_t partial, uint64_t lanes)
{
	if (sh->n_leases == sh->cap_leases) {
		sh->cap_leases = sh->cap_leases ? sh->cap_leases * 2 : 16;
		sh->leases = realloc(sh->leases, sh->cap_leases * sizeof(*sh->leases));
		assert(sh->leases);
	}
	sh->leases[sh->n_leases++] = (struct sim_lease){ .partial = partial, .lanes = lanes };
}

void sim_lease_end(struct sim_ns *ns, struct sim_holder *sh, uint32_t i)
{
	struct sim_partial *p = &ns->partials[sh->leases[i].partial];

	sh->leases[i] = sh->leases[--sh->n_leases];
	if (--p->n_leases == 0 && p->aborted)
		p->slot = SHM_NO_SLOT;
}

int32_t sim_lease_find(const struct sim_ns *ns, const struct sim_holder *sh, uint32_t slot, uint32_t generation,
                       uint64_t lanes)
{
	for (uint32_t i = 0; i < sh->n_leases; i++) {
		const struct sim_partial *p = &ns->partials[sh->leases[i].partial];

		if (p->slot == slot && p->generation == generation && (sh->leases[i].lanes & lanes) == lanes)
			return (int32_t)i;
	}
	return -1;
}

/* ---- the check ---- */

/* The copy in host memory went.  With a tier below that may happen whenever copies end or somebody asks for room. */
static void check_left(struct sim *w, struct sim_ns *ns, struct sim_block *b)
{
	sim_must(w, w->lower || w->drops != DROPS_NONE);
	sim_must(w, w->lower || w->drops == DROPS_ROOM || b->doomed);
	sim_must(w, !b->wanted);
	sim_must(w, !sim_is_pinned(w, ns, b->slot));
	if (!b->below)
		b->parent_below = b->parent; /* it may have been written down just before */
	b->present = b->linked = false;
	b->dropped = true;
}

/* It is in host memory without having been committed: it was brought up. */
static void check_came(struct sim *w, struct sim_ns *ns, struct sim_block *b, const struct shm_entry *e)
{
	const struct shm_record *rec = &ns->sn->ns.records[e->slot];

	sim_must(w, w->lower && (b->below || b->dropped)); /* dropped: it went and came back within the event */
	sim_must(w, e->generation > ns->generations[e->slot]);
	sim_must(w, rec->parent == 0 || b->parent_below >= 0);
	ns->generations[e->slot] = e->generation;
	b->present = true;
	b->released = false;
	b->slot = e->slot;
	b->generation = e->generation;
	b->parent = rec->parent ? b->parent_below : SIM_NO_KEY;
}

static void check_here(struct sim *w, struct sim_ns *ns, int32_t key, const struct shm_entry *e)
{
	struct sim_block *b = &ns->blocks[key];

	if (!b->present)
		check_came(w, ns, b, e);
	sim_must(w, !b->doomed);
	sim_must(w, e->slot == b->slot && e->generation == b->generation);
	sim_must(w, ns_slot_state(&ns->sn->ns, b->slot) == SHM_REGISTERED);
	sim_must(w, ns_slot_generation(&ns->sn->ns, b->slot) == b->generation);
	sim_read_bytes(w, ns, b->slot, key);
}

static void check_key(struct sim *w, struct sim_ns *ns, int32_t key)
{
	struct sim_block *b = &ns->blocks[key];
	const struct lower *lower = ns->sn->ns.lower;
	bool was = b->present || b->below, found, below;
	uint8_t bytes[KEY_MAX];
	struct shm_entry e;

	sim_key(w, ns, key, bytes);
	found = sim_look_up(w, ns, bytes, &e);
	below = lower && lower_find(lower, bytes) != LOWER_NONE;
	if (below && !b->below) {
		sim_must(w, b->present);
		b->parent_below = b->parent;
	}
	if (found && b->present && w->lower && (e.slot != b->slot || e.generation != b->generation)) /* went and came back */
		check_left(w, ns, b);
	if (found)
		check_here(w, ns, key, &e);
	else if (b->present)
		check_left(w, ns, b);
	b->below = below;
	if (was && !found && !below) {
		ns->counts.dropped++;
		w->n_dropped++;
	}
}

/* Leaves go before their parents when a namespace makes room among its own, but for what was released. */
static void check_leaves(struct sim *w, struct sim_ns *ns)
{
	for (uint32_t k = 0; k < ns->n_keys; k++) {
		const struct sim_block *b = &ns->blocks[k];

		if (b->present && b->parent >= 0 && (!w->lower || b->linked))
			sim_must(w, !ns->blocks[b->parent].dropped || ns->blocks[b->parent].released ||
			                    w->drops != DROPS_ROOM || w->drops_ns != sim_index(w, ns));
	}
	for (uint32_t k = 0; k < ns->n_keys; k++) {
		struct sim_block *b = &ns->blocks[k];

		b->linked = b->present && block_parent(&ns->sn->ns, b->slot) != NS_NONE;
		b->dropped = b->doomed = b->wanted = false;
	}
}

static void check_slots(struct sim *w, const struct sim_ns *ns)
{
	const struct ns *real = &ns->sn->ns;
	uint32_t used = 0, partial = 0, quarantined = 0, below = 0;

	for (uint32_t k = 0; k < ns->n_keys; k++)
		used += ns->blocks[k].present;
	for (uint32_t k = 0; k < ns->n_keys; k++)
		below += ns->blocks[k].below;
	for (uint32_t slot = 0; real->moving && slot < ns->n_slots; slot++)
		partial += real->moving[slot] && ns_slot_state(real, slot) == SHM_PARTIAL; /* being read into */
	for (uint32_t i = 0; i < ns->n_partials; i++) {
		const struct sim_partial *p = &ns->partials[i];

		if (p->slot == SHM_NO_SLOT)
			continue;
		sim_must(w, ns_slot_state(real, p->slot) == (p->aborted ? SHM_QUARANTINE : SHM_PARTIAL));
		sim_must(w, ns_slot_generation(real, p->slot) == p->generation);
		partial += !p->aborted;
		quarantined += p->aborted;
	}
	sim_must(w, used == real->n_used && partial == real->n_partial && quarantined == real->n_quarantined);
	sim_must(w, below == (real->lower ? real->lower->n_present : 0));
}

static void check_report(struct sim *w, const struct sim_ns *ns, const struct ns_report *r)
{
	struct ns_counts c = ns->counts;
	uint64_t holds = 0, pins = 0;

	for (uint32_t i = 0; i < SIM_MAX_SESSIONS; i++) {
		const struct sim_holder *sh = &w->sessions[i].in[sim_index(w, ns)];

		if (w->sessions[i].state != SESSION_OPEN || !sh->h)
			continue;
		c.looked_up += sh->looked_up;
		c.hits += sh->hits;
		holds += sh->n_held;
		pins += sh->n_pins;
	}
	sim_must(w, r->holds == holds);
	sim_must(w, r->stored == c.stored);
	sim_must(w, r->dropped == c.dropped);
	sim_must(w, r->deduplicated == c.deduplicated);
	sim_must(w, r->aborted == c.aborted);
	if (ns->garbled)
		return;
	sim_must(w, r->looked_up == c.looked_up && r->hits == c.hits && r->hits_lower == c.hits_lower &&
	                    r->misses == c.looked_up - c.hits - c.hits_lower);
	sim_must(w, r->pins == pins);
}

static void check_namespaces(struct sim *w)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < w->n_ns; i++) {
		struct sim_ns *ns = &w->ns[i];

		if (!ns->sn)
			continue;
		n++;
		for (uint32_t k = 0; k < ns->n_keys; k++)
			check_key(w, ns, (int32_t)k);
		check_leaves(w, ns);
		check_slots(w, ns);
	}
	sim_must(w, n == store_n_namespaces(w->store));
	for (uint32_t i = 0; i < n; i++) {
		struct ns_report r;
		uint32_t k = 0;

		store_report(w->store, i, &r);
		while (strcmp(w->ns[k].desc.name, r.name) != 0)
			k++;
		check_report(w, &w->ns[k], &r);
	}
}

static void check_quotas(struct sim *w)
{
	uint64_t slots[SIM_UIDS] = { 0 }, holds[SIM_UIDS] = { 0 };

	for (uint32_t i = 0; i < SIM_MAX_SESSIONS; i++) {
		const struct sim_session *s = &w->sessions[i];
		uint64_t leases = 0, held = 0;

		if (s->state == SESSION_NONE)
			continue;
		for (uint32_t k = 0; k < w->n_ns; k++) {
			leases += s->in[k].n_leases;
			held += s->in[k].n_held;
		}
		sim_must(w, s->user.session.used[QUOTA_SLOTS] == leases);
		sim_must(w, s->user.session.used[QUOTA_HOLDS] == held);
		slots[s->uid] += leases;
		holds[s->uid] += held;
	}
	for (uint32_t i = 0; i < SIM_UIDS; i++) {
		sim_must(w, w->uids[i].used[QUOTA_SLOTS] == slots[i]);
		sim_must(w, w->uids[i].used[QUOTA_HOLDS] == holds[i]);
	}
}

static void check_metrics(struct sim *w)
{
	store_metrics(w->store);
	sim_must(w, metrics_get(METRIC_blocks_stored) == metrics_get(METRIC_blocks_resident) +
	                                                         metrics_get(METRIC_blocks_dropped) +
	                                                         metrics_get(METRIC_blocks_deduplicated));
	sim_must(w, metrics_get(METRIC_blocks_looked_up) ==
	                    metrics_get(METRIC_hits_g2) + metrics_get(METRIC_hits_g3) + metrics_get(METRIC_misses));
	sim_must(w, metrics_get(METRIC_g2_slots) == metrics_get(METRIC_g2_slots_free) + metrics_get(METRIC_g2_slots_used) +
	                                                    metrics_get(METRIC_g2_slots_quarantined));
	sim_must(w, metrics_get(METRIC_g3_slots) == metrics_get(METRIC_g3_slots_free) + metrics_get(METRIC_g3_slots_used) +
	                                                    metrics_get(METRIC_g3_slots_quarantined));
}

void sim_check(struct sim *w)
{
	w->n_dropped = 0;
	store_check(w->store);
	check_namespaces(w);
	/* A reserve tells how many left host memory; with a tier below they are not dropped by that. */
	sim_must(w, (w->lower && w->drops != DROPS_DOOMED) || w->n_dropped == w->told_dropped);
	sim_onboards_check(w);
	check_quotas(w);
	check_metrics(w);
	w->drops = DROPS_NONE;
	w->told_dropped = 0;
}
