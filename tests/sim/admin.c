/* SPDX-License-Identifier: Apache-2.0 */
/* Hints and questions, what administrators do, time that passes, and memory that the system refuses. */
#include <stdlib.h>
#include <string.h>

#include "tests/lib/fake_tier.h"
#include "tests/sim/sim.h"

void sim_hint(struct sim *w)
{
	int32_t keys[SIM_MAX_N];
	uint8_t bytes[SIM_MAX_N * KEY_MAX];
	struct store_hint_args a = { .keys = bytes, .now_ns = w->now_ns };
	uint32_t known = 0, told = 0;
	struct sim_session *s;
	struct sim_ns *ns;
	struct sim_holder *sh = sim_holder(w, &s, &ns);
	bool wrong;
	int r;

	if (!sh)
		return;
	a.n = sim_pick_keys(w, ns, keys, SIM_MAX_N);
	sim_pack_keys(w, ns, keys, a.n, bytes);
	a.hint = sim_below(w, 20) ? STORE_HINT_RELEASE + sim_below(w, 3) : sim_below(w, 6);
	a.ttl_ms = sim_below(w, 30000);
	a.priority = sim_below(w, 103);
	for (uint32_t i = 0; i < a.n; i++)
		known += sim_is_present(ns, keys[i]);
	wrong = a.hint < STORE_HINT_RELEASE || a.hint > STORE_HINT_TOUCH || a.priority > 100;
	r = store_hint(sh->h, &a, &told);
	sim_say(w, "session %u, %s: %d of %u keys: %d", s->number, ns->desc.name, (int)a.hint, a.n, r);
	sim_must(w, r == (wrong ? STORE_E_INVAL : 0));
	sim_must(w, r != 0 || told == known);
	for (uint32_t i = 0; r == 0 && i < a.n; i++)
		if (a.hint != STORE_HINT_RETAIN && sim_is_present(ns, keys[i]))
			ns->blocks[keys[i]].released = a.hint == STORE_HINT_RELEASE;
}

void sim_stat(struct sim *w)
{
	int32_t keys[SIM_MAX_N];
	uint8_t bytes[SIM_MAX_N * KEY_MAX], tiers[SIM_MAX_N];
	uint32_t n, present, expected = 0;
	struct sim_session *s;
	struct sim_ns *ns;
	struct sim_holder *sh = sim_holder(w, &s, &ns);

	if (!sh)
		return;
	n = sim_pick_keys(w, ns, keys, SIM_MAX_N);
	sim_pack_keys(w, ns, keys, n, bytes);
	store_stat(sh->h, bytes, n, tiers, &present);
	for (uint32_t i = 0; i < n; i++) {
		const struct sim_block *b = &ns->blocks[keys[i]];

		sim_must(w, tiers[i] == (b->present ? STORE_IN_G2 : 0) + (b->below ? STORE_IN_G3 : 0));
		expected += b->present || b->below;
	}
	sim_must(w, present == expected);
	sim_say(w, "session %u, %s: %u of %u", s->number, ns->desc.name, present, n);
}

static void inspect_block(struct sim *w, const struct sim_ns *ns, int32_t key, const struct block_report *r)
{
	const struct sim_block *b = &ns->blocks[key];
	struct key parent = { .len = ns->desc.key_bytes };

	sim_must(w, r->slot == b->slot && r->generation == b->generation);
	sim_must(w, r->has_parent == (b->parent >= 0));
	/* What came back from below may not know its parent's slot. */
	sim_must(w, r->parent_present == sim_is_present(ns, b->parent) || (w->lower && !r->parent_present));
	sim_must(w, r->children == sim_children(ns, key) || (w->lower && r->children < sim_children(ns, key)));
	sim_must(w, w->lower || r->n_child_slots == (r->children < 16 ? r->children : 16));
	sim_must(w, (r->pins > 0) == sim_is_pinned(w, ns, b->slot));
	if (!r->parent_present)
		return;
	sim_key(w, ns, b->parent, parent.bytes);
	sim_must(w, key_equal(&parent, &r->parent));
}

/* What the daemon says about a key, and about a session, is so. */
void sim_inspect(struct sim *w)
{
	struct sim_ns *ns = &w->ns[sim_below(w, w->n_ns)];
	int32_t key = (int32_t)sim_below(w, ns->n_keys);
	const struct sim_block *b = &ns->blocks[key];
	struct key k = { .len = ns->desc.key_bytes };
	struct block_report r;
	struct why_answer why;
	int found;

	sim_key(w, ns, key, k.bytes);
	found = store_block(w->store, ns->desc.name, &k, &r);
	sim_must(w, (found == 0) == (ns->sn && (b->present || b->below)));
	sim_must(w, found != 0 || r.tiers == (b->present ? STORE_IN_G2 : 0) + (b->below ? STORE_IN_G3 : 0));
	if (found == 0 && b->present)
		inspect_block(w, ns, key, &r);
	found = store_why(w->store, ns->desc.name, &k, w->now_ns, &why);
	sim_must(w, (found == 0) == (ns->sn != NULL));
	if (found != 0)
		return;
	sim_must(w, (why.reason == WHY_PRESENT) == (b->present || b->below));
	sim_must(w, !b->present || w->lower || why.missing_parent == (b->parent >= 0 && !sim_is_present(ns, b->parent)));
	sim_must(w, why_text(why.reason) && why.ago_ns <= w->now_ns);
	sim_say(w, "%s: key %d: %s", ns->desc.name, key, why_text(why.reason));
}

/* ---- administrators ---- */

static void doom(struct sim *w, struct sim_ns *ns, int32_t key, uint32_t *dropped, uint32_t *kept)
{
	struct sim_block *b = &ns->blocks[key];

	if (!b->present || b->doomed)
		return;
	b->doomed = !sim_is_held(w, ns, b->slot);
	*dropped += b->doomed;
	*kept += !b->doomed;
}

void sim_flush(struct sim *w)
{
	struct sim_ns *only = sim_chance(w, 60) ? &w->ns[sim_below(w, w->n_ns)] : NULL;
	uint32_t dropped, kept, expect_dropped = 0, expect_kept = 0;
	int r;

	for (uint32_t i = 0; i < w->n_ns; i++)
		for (uint32_t k = 0; w->ns[i].sn && (!only || only == &w->ns[i]) && k < w->ns[i].n_keys; k++)
			doom(w, &w->ns[i], (int32_t)k, &expect_dropped, &expect_kept);
	w->drops = DROPS_DOOMED;
	r = store_flush(w->store, only ? only->desc.name : NULL, &dropped, &kept);
	sim_say(w, "%s: %d, %u dropped, %u kept", only ? only->desc.name : "all", r, dropped, kept);
	sim_must(w, r == (only && !only->sn ? STORE_E_NOENT : 0));
	sim_must(w, w->lower || (dropped == expect_dropped && kept == expect_kept));
	w->told_dropped = dropped;
}

void sim_drop(struct sim *w)
{
	struct sim_ns *ns = &w->ns[sim_below(w, w->n_ns)];
	int32_t keys[SIM_MAX_N];
	uint8_t bytes[SIM_MAX_N * KEY_MAX];
	struct store_drop a = { .name = ns->desc.name, .keys = bytes, .key_bytes = ns->desc.key_bytes };
	uint32_t dropped = 0, kept = 0;
	int r;

	a.n = sim_pick_keys(w, ns, keys, SIM_MAX_N);
	sim_pack_keys(w, ns, keys, a.n, bytes);
	a.key_bytes += sim_chance(w, 3);
	r = store_drop(w->store, &a);
	sim_say(w, "%s: %u keys: %d, %u dropped, %u kept", ns->desc.name, a.n, r, a.dropped, a.kept);
	sim_must(w, r == (!ns->sn ? STORE_E_NOENT : a.key_bytes != ns->desc.key_bytes ? STORE_E_INVAL : 0));
	if (r != 0)
		return;
	w->drops = DROPS_DOOMED;
	for (uint32_t i = 0; i < a.n; i++) {
		uint32_t kept_now = 0;

		doom(w, ns, keys[i], &dropped, &kept_now);
		kept += kept_now;
	}
	sim_must(w, w->lower || (a.dropped == dropped && a.kept == kept));
	w->told_dropped = a.dropped;
}

void sim_remove(struct sim *w)
{
	struct sim_ns *ns = &w->ns[sim_below(w, w->n_ns)];
	uint32_t present = 0, dropped;
	bool used = false;
	int r;

	for (uint32_t i = 0; i < SIM_MAX_SESSIONS; i++)
		used |= w->sessions[i].in[sim_index(w, ns)].h != NULL;
	for (uint32_t k = 0; ns->sn && k < ns->n_keys; k++)
		present += ns->blocks[k].present || ns->blocks[k].below;
	used |= ns->sn && ns->sn->n_transfers;
	r = store_remove(w->store, ns->desc.name, &dropped);
	sim_say(w, "%s: %d", ns->desc.name, r);
	sim_must(w, r == (!ns->sn ? STORE_E_NOENT : used ? STORE_E_LIMIT : 0));
	if (r != 0)
		return;
	sim_must(w, dropped == present);
	sim_ns_forget(ns);
}

/* ---- time ---- */

static uint64_t tick_next(const struct sim *w)
{
	uint64_t next = UINT64_MAX;

	for (uint32_t i = 0; i < w->n_ns; i++) {
		for (uint32_t k = 0; k < w->ns[i].n_partials; k++) {
			const struct sim_partial *p = &w->ns[i].partials[k];

			if (p->slot != SHM_NO_SLOT && !p->aborted && p->deadline_ns < next)
				next = p->deadline_ns;
		}
	}
	return next;
}

static void tick_expire(struct sim *w)
{
	for (uint32_t i = 0; i < w->n_ns; i++) {
		for (uint32_t k = 0; k < w->ns[i].n_partials; k++) {
			struct sim_partial *p = &w->ns[i].partials[k];

			if (p->slot != SHM_NO_SLOT && p->deadline_ns <= w->now_ns)
				sim_partial_abort(&w->ns[i], p);
		}
	}
}

/* Who has too many pins is told so by the tick, and disconnected. */
static void tick_pins(struct sim *w)
{
	for (uint32_t i = 0; i < SIM_MAX_SESSIONS; i++) {
		struct sim_session *s = &w->sessions[i];
		bool too_many = false;

		for (uint32_t k = 0; k < w->n_ns; k++)
			too_many |= s->in[k].h && s->in[k].n_pins > s->user.pin_limit;
		if (s->state != SESSION_OPEN)
			continue;
		sim_must(w, s->hostile || s->too_many_pins == too_many);
		if (s->too_many_pins)
			sim_leave(w, s, sim_chance(w, 50));
	}
}

void sim_tick(struct sim *w)
{
	uint64_t next = store_next_ns(w->store);

	sim_must(w, next <= tick_next(w));
	switch (sim_below(w, 4)) {
	case 0:
		w->now_ns += rng_below(&w->rng, UINT64_C(1000000));
		break;
	case 1:
		w->now_ns += rng_below(&w->rng, w->config.write_timeout_ns);
		break;
	case 2:
		w->now_ns += rng_below(&w->rng, UINT64_C(60000000000));
		break;
	default:
		w->now_ns = next != UINT64_MAX && next > w->now_ns ? next - sim_below(w, 2) : w->now_ns;
		break;
	}
	store_tick(w->store, w->now_ns);
	sim_say(w, "%llu ns", (unsigned long long)w->now_ns);
	tick_expire(w);
	sim_must(w, store_next_ns(w->store) > w->now_ns);
	tick_pins(w);
}

/* From now on a few requests for memory fail; or none any more. */
void sim_fault(struct sim *w)
{
	w->fault_armed = !w->fault_armed;
	if (w->fault_armed)
		fake_tier_fail_after(w->tier, 1 + sim_below(w, 4), 1 + sim_below(w, 5));
	else
		fake_tier_fail_after(w->tier, 1, 0);
	sim_say(w, "%s", w->fault_armed ? "memory will be refused" : "no more refusals");
}

/* The configuration was read again: other shares, maxima and deadlines. */
void sim_configure(struct sim *w)
{
	for (uint32_t i = 0; i < w->config.n_policies; i++) {
		struct store_policy *p = &w->policies[i];

		p->share_bytes = rng_below(&w->rng, w->tier->ops->room(w->tier) + 1);
		p->max_bytes = sim_chance(w, 50) ? UINT64_MAX : p->share_bytes + rng_below(&w->rng, UINT64_C(1) << 25);
	}
	w->config.write_timeout_ns = UINT64_C(1000000) * (1 + sim_below(w, 20000));
	store_configure(w->store, &w->config);
	sim_say(w, "%u policies, writers have %llu ns", w->config.n_policies,
	        (unsigned long long)w->config.write_timeout_ns);
}
