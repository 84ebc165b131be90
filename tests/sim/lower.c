/* SPDX-License-Identifier: Apache-2.0 */
/* The tier below host memory: copies and checksums that end in any order, faults, blocks that are brought up, reserves that wait, and stores that end while what
 * is below stays.
 */
#include <stdlib.h>
#include <string.h>

#include "base/metrics.h"
#include "tests/lib/fake_tier.h"
#include "tests/sim/sim.h"

void sim_lower_new(struct sim *w, uint64_t pool)
{
	uint32_t areas = 1 + sim_below(w, 6);
	uint64_t area = pool / (1 + sim_below(w, 12));

	w->lower = fake_lower_new(areas, area / FAKE_LOWER_GRAIN * FAKE_LOWER_GRAIN, true);
	w->sums = fake_sums_new(sim_chance(w, 80) ? 0 : 1 + sim_below(w, 4), true);
	if (sim_chance(w, 20))
		fake_lower_limit(w->lower, 1 + sim_below(w, 6));
	if (sim_chance(w, 30))
		fake_lower_set_speed(w->lower, 1 + rng_below(&w->rng, UINT64_C(1) << 32), rng_below(&w->rng, 10000000));
	w->config.lower = w->lower;
	w->config.calculator = fake_sums_calculator(w->sums);
	w->config.max_transfers = sim_chance(w, 80) ? 4 + sim_below(w, 13) : 1 + sim_below(w, 3);
	w->config.low_percent = sim_below(w, 30);
	w->config.scrub_percent = sim_chance(w, 50) ? 0 : sim_below(w, 1000000);
	w->config.write = (enum store_write)(sim_chance(w, 70) ? STORE_WRITE_ON_EVICT : sim_below(w, 4));
}

void sim_lower_free(struct sim *w)
{
	w->lower = fake_lower_free(w->lower);
	w->sums = fake_sums_free(w->sums);
}

/* ---- onboard ---- */

/* What the store counted when it ended. */
static void onboard_count(struct sim_onboard *b)
{
	struct ns_counts *c = &b->ns->counts;
	uint32_t host = b->o.from_host < b->o.hits ? b->o.from_host : b->o.hits;

	if (b->o.prefetch)
		return;
	c->looked_up += b->o.n;
	c->hits += host;
	c->hits_lower += b->o.hits - host;
}

static void onboard_ended(struct sim_onboard *b)
{
	struct sim_holder *sh = &b->s->in[sim_index(b->w, b->ns)];

	sim_must(b->w, b->active && !b->finished);
	b->finished = true;
	onboard_count(b);
	if (b->o.hold)
		sh->n_held += b->o.hits;
}

static void onboard_done(struct store_onboard *o)
{
	onboard_ended(container_of(o, struct sim_onboard, o));
}

/* Whatever is told as done has the bytes of its key, and stays as long as it is held. */
static void onboard_check(struct sim *w, const struct sim_onboard *b)
{
	sim_must(w, b->o.hits <= b->o.n);
	for (uint32_t i = 0; i < b->o.n; i++) {
		const struct sim_block *block = &b->ns->blocks[b->key[i]];

		sim_must(w, b->status[i] != STORE_ONBOARD_PENDING && b->status[i] <= STORE_ONBOARD_RECOMPUTE);
		sim_must(w, (b->status[i] == STORE_ONBOARD_DONE) == (i < b->o.hits));
		sim_must(w, i < b->o.hits || b->slots[i] == STORE_NO_SLOT);
		if (i < b->o.hits && b->o.hold)
			sim_must(w, block->present && block->slot == b->slots[i] && block->generation == b->generations[i]);
	}
}

void sim_onboards_check(struct sim *w)
{
	for (uint32_t i = 0; i < SIM_ONBOARDS; i++) {
		struct sim_onboard *b = &w->onboards[i];

		if (!b->active || !b->finished)
			continue;
		onboard_check(w, b);
		/* Only now: what was in a slot before it was not held. */
		for (uint32_t k = 0; b->o.hold && k < b->o.hits; k++)
			b->s->in[sim_index(w, b->ns)].held[b->slots[k]]++;
		b->active = false;
	}
}

void sim_onboard(struct sim *w)
{
	struct sim_onboard *b = w->onboards;
	struct sim_session *s;
	struct sim_ns *ns;
	struct sim_holder *sh = sim_holder(w, &s, &ns);

	while (b < w->onboards + SIM_ONBOARDS && b->active)
		b++;
	if (!sh || !w->lower || b == w->onboards + SIM_ONBOARDS)
		return;
	memset(b, 0, sizeof(*b));
	b->active = true;
	b->w = w;
	b->s = s;
	b->ns = ns;
	b->o = (struct store_onboard){ .keys = b->keys,
		                       .hold = sim_chance(w, 60),
		                       .now_ns = w->now_ns,
		                       .deadline_ns = w->now_ns + 1 + rng_below(&w->rng, UINT64_C(2000000000)),
		                       .status = b->status,
		                       .slots = b->slots,
		                       .generations = b->generations,
		                       .wants = b->wants,
		                       .done = onboard_done };
	b->o.n = sim_pick_keys(w, ns, b->key, sim_chance(w, 85) ? 16 : SIM_MAX_N);
	b->o.prefetch = !b->o.hold && sim_chance(w, 50);
	b->o.recompute_ns = sim_chance(w, 80) ? 0 : rng_below(&w->rng, 100000000);
	sim_pack_keys(w, ns, b->key, b->o.n, b->keys);
	if (store_onboard(sh->h, &b->o) == 0)
		onboard_ended(b);
	sim_say(w, "session %u, %s: %u keys%s%s: %u hits%s", s->number, ns->desc.name, b->o.n, b->o.hold ? ", hold" : "",
	        b->o.prefetch ? ", ahead" : "", b->o.hits, b->finished ? "" : ", more to come");
}

/* ---- waits ---- */

static void wait_called(struct store_wait *wait, bool late)
{
	struct sim_wait *sw = container_of(wait, struct sim_wait, wait);

	(void)late;
	assert(sw->active);
	sw->active = false;
}

void sim_wait_begin(struct sim *w, struct sim_session *s, struct sim_ns *ns, uint32_t need)
{
	for (uint32_t i = 0; i < SIM_WAITS; i++) {
		struct sim_wait *sw = &w->waits[i];

		if (sw->active)
			continue;
		*sw = (struct sim_wait){ .active = true, .s = s, .ns = ns };
		sw->wait.deadline_ns = w->now_ns + 1 + rng_below(&w->rng, UINT64_C(2000000000));
		sw->wait.cb = wait_called;
		list_init(&sw->wait.link);
		store_wait(s->in[sim_index(w, ns)].h, &sw->wait, need);
		return;
	}
}

void sim_lower_leave(struct sim *w, const struct sim_session *s, const struct sim_ns *ns)
{
	for (uint32_t i = 0; i < SIM_WAITS; i++) {
		struct sim_wait *sw = &w->waits[i];

		if (!sw->active || sw->s != s || sw->ns != ns)
			continue;
		store_wait_cancel(&sw->wait);
		sw->active = false;
	}
	for (uint32_t i = 0; i < SIM_ONBOARDS; i++) {
		struct sim_onboard *b = &w->onboards[i];

		if (!b->active || b->s != s || b->ns != ns)
			continue;
		if (!b->finished) {
			store_onboard_cancel(&b->o);
			onboard_count(b);
		}
		b->active = false;
	}
}

/* ---- what goes on ---- */

static bool move_one(struct sim *w)
{
	if (sim_chance(w, 50))
		return fake_lower_release_any(w->lower, &w->rng) || fake_sums_release_any(w->sums, &w->rng);
	return fake_sums_release_any(w->sums, &w->rng) || fake_lower_release_any(w->lower, &w->rng);
}

/* Blocks come, and nobody keeps anything for long: memory is full of what can be written down. */
void sim_churn(struct sim *w)
{
	static void (*const events[])(struct sim * w) = { sim_reserve, sim_commit, sim_commit,
		                                          sim_release, sim_unpin,  sim_move };

	if (!w->lower)
		return;
	for (uint32_t round = 2 + sim_below(w, 3); round > 0; round--) {
		for (size_t i = 0; i < sizeof(events) / sizeof(*events); i++) {
			events[i](w);
			sim_check(w);
		}
	}
}

void sim_move(struct sim *w)
{
	uint32_t n;

	if (!w->lower)
		return;
	n = 1 + sim_below(w, sim_chance(w, 80) ? 4 : 40);
	while (n > 0 && move_one(w))
		n--;
	sim_say(w, "%u copies in flight, %u checksums", fake_lower_in_flight(w->lower), fake_sums_waiting(w->sums));
}

void sim_settle(struct sim *w)
{
	do
		fake_lower_unstick(w->lower); /* what is begun meanwhile may get stuck too */
	while (move_one(w) || fake_lower_in_flight(w->lower));
	sim_must(w, fake_lower_in_flight(w->lower) == 0 && fake_sums_waiting(w->sums) == 0);
}

void sim_lower_fault(struct sim *w)
{
	struct tier_lower_stat stat;
	bool write = sim_chance(w, 50);

	if (!w->lower)
		return;
	w->lower->ops->stat(w->lower, &stat);
	switch (stat.online ? sim_below(w, 12) : 0) {
	case 0:
		fake_lower_set_online(w->lower, !stat.online);
		sim_say(w, stat.online ? "offline" : "online");
		break;
	case 1:
	case 2:
	case 3:
	case 4:
		fake_lower_unstick(w->lower);
		fake_lower_fail(w->lower, write, FAKE_LOWER_NONE, 1, 1);
		sim_say(w, "no more faults");
		break;
	default:
		fake_lower_fail(w->lower, write, (enum fake_lower_fault)(1 + sim_below(w, FAKE_LOWER_GONE)),
		                1 + sim_below(w, 4), 1 + sim_below(w, 8));
		sim_say(w, "copies will fail");
		break;
	}
}

/* ---- lives ---- */

/* What is found now was somewhere before, and after a clean end it is all that was below. */
static void restart_compare(struct sim *w, struct sim_ns *ns, bool clean)
{
	const struct lower *lower = ns->sn ? ns->sn->ns.lower : NULL;
	uint32_t recovered = 0;

	for (uint32_t k = 0; k < ns->n_keys; k++) {
		struct sim_block *b = &ns->blocks[k];
		uint8_t bytes[KEY_MAX];
		bool below;

		sim_key(w, ns, (int32_t)k, bytes);
		below = lower && lower_find(lower, bytes) != LOWER_NONE;
		sim_must(w, !below || (clean ? b->below : b->lived));
		sim_must(w, below || !b->below || !clean || !ns->sn); /* !sn: its policy leaves no room for one block now */
		if (below && !b->below)
			b->parent_below = b->parent;
		b->present = b->linked = false;
		b->below = below;
		recovered += below;
	}
	ns->counts = (struct ns_counts){ .stored = recovered };
	ns->garbled = false;
}

/* The daemon ends, or is killed; the next one finds what is below. */
void sim_restart(struct sim *w)
{
	bool clean = sim_chance(w, 50);

	if (!w->lower || sim_chance(w, 75))
		return;
	if (clean || sim_chance(w, 50))
		sim_everybody_leaves(w);
	for (uint32_t i = 0; i < w->n_ns; i++)
		for (uint32_t k = 0; k < w->ns[i].n_keys; k++)
			w->ns[i].blocks[k].lived = w->ns[i].blocks[k].present || w->ns[i].blocks[k].below;
	if (!clean)
		fake_lower_crash(w->lower, &w->rng);
	sim_everybody_leaves(w);
	store_stop_moving(w->store);
	sim_settle(w);
	sim_check(w);
	w->store = store_free(w->store);
	metrics_reset();
	fake_tier_fail_after(w->tier, 1, 0);
	w->fault_armed = false;
	fake_lower_restart(w->lower);
	w->config.boot_id++;
	sim_store_new(w);
	fake_lower_recover(w->lower, sim_chance(w, 70) ? &w->rng : NULL, clean);
	for (uint32_t i = 0; i < w->n_ns; i++) {
		struct sim_ns *ns = &w->ns[i];

		free(ns->generations);
		free(ns->partials);
		ns->generations = NULL;
		ns->partials = NULL;
		ns->n_partials = ns->n_slots = 0;
		sim_ns_appears(w, ns);
		restart_compare(w, ns, clean);
	}
	sim_say(w, "%s, %u slots valid", clean ? "clean" : "killed", fake_lower_valid(w->lower));
}
