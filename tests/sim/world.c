/* SPDX-License-Identifier: Apache-2.0 */
/* A seed's world: how much memory, which namespaces under which policies, and sessions that come, leave and die. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/metrics.h"
#include "tests/lib/fake_tier.h"
#include "tests/sim/sim.h"

#define MIB (UINT64_C(1) << 20)

static void sim_on_pins(void *ctx, void *owner, uint64_t pins)
{
	struct sim_session *s = owner;

	(void)ctx;
	(void)pins;
	s->too_many_pins = true;
}

/* ---- namespaces ---- */

static uint32_t sim_lanes(struct sim *w)
{
	uint32_t kind = sim_below(w, 100);

	if (kind < 65)
		return 1;
	if (kind < 90)
		return 2 + sim_below(w, 3);
	return kind < 98 ? 5 + sim_below(w, 4) : 64;
}

static void sim_tree(struct sim *w, struct sim_ns *ns)
{
	unsigned roots = 2 + sim_below(w, 30), chains = 30 + sim_below(w, 70);

	for (uint32_t k = 0; k < ns->n_keys; k++) {
		if (k == 0 || sim_chance(w, roots))
			ns->tree[k] = SIM_NO_KEY;
		else
			ns->tree[k] = sim_chance(w, chains) ? (int32_t)k - 1 : (int32_t)sim_below(w, k);
		ns->blocks[k].parent = SIM_NO_KEY;
	}
}

static void sim_ns_new(struct sim *w, struct sim_ns *ns, uint64_t pool)
{
	/* With a tier below host memory is to be short. */
	uint64_t block = pool / (4 + sim_below(w, w->with_lower ? 20 : sim_chance(w, 90) ? 60 : 400));

	snprintf(ns->desc.name, sizeof(ns->desc.name), "ns%u", sim_index(w, ns));
	snprintf(ns->desc.model, sizeof(ns->desc.model), "model");
	ns->desc.lanes = sim_lanes(w);
	ns->desc.key_bytes = sim_chance(w, 70) ? 8u << sim_below(w, 3) : 8 + sim_below(w, 25);
	ns->desc.lane_bytes = block / ns->desc.lanes;
	if (sim_chance(w, w->with_lower ? 95 : 70))
		ns->desc.lane_bytes = ns->desc.lane_bytes / 4096 * 4096;
	if (ns->desc.lane_bytes < 64)
		ns->desc.lane_bytes = 64;
	ns->desc.confirm = sim_chance(w, 50);
	ns->desc.num_layers = ns->desc.page_size = ns->desc.inner_dim = ns->desc.outer_dim = 1;
	ns->n_keys = 3 + sim_below(w, sim_chance(w, 90) ? 50 : 250) + (w->with_lower ? 20 : 0);
	ns->tree = calloc(ns->n_keys, sizeof(*ns->tree));
	ns->blocks = calloc(ns->n_keys, sizeof(*ns->blocks));
	assert(ns->tree && ns->blocks);
	sim_tree(w, ns);
}

static void sim_policy(struct sim *w, struct sim_ns *ns, struct store_policy *policy, uint64_t pool)
{
	memcpy(policy->name, ns->desc.name, sizeof(policy->name));
	policy->share_bytes = sim_chance(w, 70) ? rng_below(&w->rng, pool / w->n_ns + 1) : 0;
	policy->lower_share_bytes = sim_chance(w, 50) ? rng_below(&w->rng, pool) : 0;
	policy->lower_max_bytes = sim_chance(w, 80) ? UINT64_MAX : rng_below(&w->rng, 2 * pool);
	policy->write = (enum store_write)(sim_chance(w, 70) ? STORE_WRITE_ON_EVICT : sim_below(w, 4));
	policy->max_bytes = sim_chance(w, 60) ? UINT64_MAX : policy->share_bytes + rng_below(&w->rng, pool);
	if (sim_chance(w, 15)) {
		policy->uids = w->policy_uids;
		policy->n_uids = 1;
	}
	ns->policy = policy;
}

void sim_ns_appears(struct sim *w, struct sim_ns *ns)
{
	ns->sn = store_find(w->store, ns->desc.name);
	if (!ns->sn || ns->generations)
		return;
	ns->n_slots = ns->sn->ns.geo.n_regions << ns->sn->ns.geo.shift;
	ns->generations = calloc(ns->n_slots, sizeof(*ns->generations));
	assert(ns->generations);
	sim_say(w, "%s: %u lanes of %llu bytes, keys of %u bytes, at most %u slots", ns->desc.name, ns->desc.lanes,
	        (unsigned long long)ns->desc.lane_bytes, ns->desc.key_bytes, ns->sn->ns.geo.max_slots);
}

/* It is not there any more. */
void sim_ns_forget(struct sim_ns *ns)
{
	free(ns->generations);
	free(ns->partials);
	ns->generations = NULL;
	ns->partials = NULL;
	ns->n_partials = ns->n_slots = 0;
	ns->counts = (struct ns_counts){ 0 };
	ns->garbled = false;
	ns->sn = NULL;
	for (uint32_t k = 0; k < ns->n_keys; k++)
		ns->blocks[k].present = ns->blocks[k].below = false;
}

/* ---- the whole ---- */

void sim_store_new(struct sim *w)
{
	int r = store_new(&w->config, &w->store);

	sim_must(w, r == 0);
	store_on_pins(w->store, sim_on_pins, w);
	if (w->lower)
		store_lower_user(w->store, &w->lower->user);
}

void sim_world_new(struct sim *w, uint64_t seed)
{
	uint64_t pool;
	uint32_t n_policies = 0;

	w->seed = seed;
	w->doing = "start";
	rng_init(&w->rng, seed);
	metrics_reset();
	w->n_events = 100 + sim_below(w, sim_chance(w, 80) ? 1000 : 4000);
	w->now_ns = 1 + rng_below(&w->rng, UINT64_C(1) << 50);
	w->similar_keys = sim_chance(w, 20);
	w->cyclic = sim_chance(w, 4);
	w->with_lower = !w->cyclic && sim_chance(w, 52);
	w->with_memory = w->with_lower || sim_chance(w, 40);
	w->config.write_timeout_ns = UINT64_C(1000000) * (1 + sim_below(w, 20000));
	w->n_ns = sim_chance(w, 40) ? 1 : 2 + sim_below(w, SIM_MAX_NS - 1);
	w->max_namespaces = sim_chance(w, 90) ? w->n_ns : 1 + sim_below(w, w->n_ns);
	w->policy_uids[0] = sim_below(w, SIM_UIDS);
	pool = 2 * MIB * (1 + sim_below(w, sim_chance(w, 80) ? 10 : 40));
	w->tier = fake_tier_new(pool, 2 * MIB * (sim_chance(w, 60) ? 1 : 1 + sim_below(w, 4)), w->with_memory);
	for (uint32_t i = 0; i < w->n_ns; i++) {
		sim_ns_new(w, &w->ns[i], pool);
		if (sim_chance(w, 60))
			sim_policy(w, &w->ns[i], &w->policies[n_policies++], pool);
	}
	for (uint32_t i = 0; i < SIM_UIDS; i++) {
		w->uids[i].limit[QUOTA_SLOTS] = 1 + sim_below(w, 200);
		w->uids[i].limit[QUOTA_HOLDS] = 1 + sim_below(w, 200);
	}
	w->config.host = w->tier;
	w->config.n_policies = n_policies;
	w->config.max_namespaces = w->max_namespaces;
	w->config.grace_percent = sim_chance(w, 80) ? 10 : sim_below(w, 101);
	w->config.why_entries = sim_chance(w, 80) ? 64 : sim_below(w, 4);
	w->config.policies = w->policies;
	w->config.boot_id = seed;
	if (w->with_lower)
		sim_lower_new(w, pool);
	sim_store_new(w);
	if (w->with_lower)
		fake_lower_recover(w->lower, &w->rng, true);
	sim_say(w, "%llu MiB, %u namespaces, %u policies%s%s%s", (unsigned long long)(pool / MIB), w->n_ns, n_policies,
	        w->with_memory ? ", with memory" : "", w->cyclic ? ", cyclic" : "", w->lower ? ", a tier below" : "");
}

void sim_everybody_leaves(struct sim *w)
{
	struct sim_session *s;

	while ((s = sim_session(w, SESSION_OPEN)))
		sim_leave(w, s, sim_chance(w, 50));
	while ((s = sim_session(w, SESSION_ZOMBIE)))
		sim_zombie_dies(w, s);
}

void sim_world_free(struct sim *w)
{
	w->doing = "end";
	sim_everybody_leaves(w);
	if (w->lower) {
		store_stop_moving(w->store);
		sim_settle(w);
	}
	sim_check(w);
	sim_say(w, "%llu blocks written down, %llu brought up since the last start",
	        (unsigned long long)metrics_get(METRIC_blocks_offloaded),
	        (unsigned long long)metrics_get(METRIC_blocks_onboarded));
	sim_must(w, metrics_get(METRIC_leases) == 0 && metrics_get(METRIC_pins) == 0);
	sim_must(w, metrics_get(METRIC_g2_slots_quarantined) == 0);
	w->store = store_free(w->store);
	fake_tier_free(w->tier);
	sim_lower_free(w);
	for (uint32_t i = 0; i < w->n_ns; i++) {
		free(w->ns[i].tree);
		free(w->ns[i].blocks);
		free(w->ns[i].partials);
		free(w->ns[i].generations);
	}
}

/* ---- sessions ---- */

struct sim_session *sim_session(struct sim *w, enum sim_session_state state)
{
	uint32_t from = sim_below(w, SIM_MAX_SESSIONS);

	for (uint32_t i = 0; i < SIM_MAX_SESSIONS; i++) {
		struct sim_session *s = &w->sessions[(from + i) % SIM_MAX_SESSIONS];

		if (s->state == state)
			return s;
	}
	return NULL;
}

struct sim_holder *sim_holder(struct sim *w, struct sim_session **ret_session, struct sim_ns **ret_ns)
{
	struct sim_session *s = sim_session(w, SESSION_OPEN);
	uint32_t from = sim_below(w, w->n_ns);

	for (uint32_t i = 0; s && i < w->n_ns; i++) {
		uint32_t k = (from + i) % w->n_ns;

		if (!s->in[k].h)
			continue;
		*ret_session = s;
		*ret_ns = &w->ns[k];
		return &s->in[k];
	}
	return NULL;
}

static void sim_session_new(struct sim *w, struct sim_session *s)
{
	memset(s, 0, sizeof(*s));
	s->state = SESSION_OPEN;
	s->number = (uint32_t)w->event;
	s->uid = sim_below(w, SIM_UIDS);
	s->hostile = sim_chance(w, 8);
	s->user.uid = &w->uids[s->uid];
	s->user.session.limit[QUOTA_SLOTS] = sim_below(w, sim_chance(w, 80) ? 200 : 4);
	s->user.session.limit[QUOTA_HOLDS] = sim_below(w, sim_chance(w, 80) ? 200 : 4);
	s->user.pin_limit = sim_chance(w, 80) ? 1000 : sim_below(w, 8);
}

static void sim_attached(struct sim *w, struct sim_ns *ns, struct sim_holder *sh)
{
	struct store_objects objects;

	sim_ns_appears(w, ns);
	sim_must(w, ns->sn);
	holder_objects(sh->h, &objects);
	sim_must(w, objects.lanes == ns->desc.lanes && objects.key_bytes == ns->desc.key_bytes);
	sim_must(w, objects.lane_bytes == ns->desc.lane_bytes && objects.writable == sh->writable);
	sim_must(w, holder_is_writable(sh->h) == sh->writable);
	sim_must(w, strcmp(holder_ns_name(sh->h), ns->desc.name) == 0);
	sh->page = sh->h->page;
	sh->held = calloc(ns->n_slots, sizeof(*sh->held));
	sh->pins = calloc(ns->n_slots, sizeof(*sh->pins));
	assert(sh->held && sh->pins);
	for (uint32_t i = 0; i < SIM_REMEMBERED; i++)
		sh->remembered_key[i] = SIM_NO_KEY;
}

/* A session attaches to one more namespace, now and then with a fingerprint that does not fit. */
void sim_attach(struct sim *w)
{
	struct sim_session *s = sim_session(w, sim_chance(w, 50) ? SESSION_NONE : SESSION_OPEN);
	struct sim_ns *ns = &w->ns[sim_below(w, w->n_ns)];
	struct sim_holder *sh;
	struct ns_desc desc = ns->desc;
	struct store_attach args = { .desc = &desc, .owner = s };
	uint8_t have[16], want[16];
	bool other = sim_chance(w, 5), may;
	int r;

	if (s && s->state == SESSION_NONE)
		sim_session_new(w, s);
	if (!s || s->in[sim_index(w, ns)].h)
		return;
	sh = &s->in[sim_index(w, ns)];
	if (other && !ns->sn)
		return;
	desc.page_size += other;
	args.uid = s->uid;
	args.user = &s->user;
	args.readonly = sim_chance(w, 10);
	may = !ns->policy || ns->policy->n_uids == 0 || ns->policy->uids[0] == s->uid;
	r = store_attach(w->store, &args, &sh->h, have, want);
	sim_say(w, "session %u (uid %u%s) to %s: %d", s->number, s->uid, s->hostile ? ", hostile" : "", ns->desc.name, r);
	sim_must(w, (r == STORE_E_PERM) == !may);
	sim_must(w, (r == STORE_E_MISMATCH) == (may && other));
	sim_must(w, r != STORE_E_MISMATCH || memcmp(have, ns->sn->ns.fingerprint, 16) == 0);
	sim_must(w, r != STORE_E_MISMATCH || memcmp(have, want, 16) != 0);
	sim_must(w, r != STORE_E_LIMIT || store_n_namespaces(w->store) >= w->max_namespaces);
	sim_must(w, r != STORE_E_NOSPACE || w->fault_armed || !ns->sn);
	if (r != 0) {
		sh->h = NULL;
		sim_ns_appears(w, ns); /* it may have been made before the session's page was refused */
		return;
	}
	sh->writable = !args.readonly;
	sim_attached(w, ns, sh);
}

static void sim_holder_end(struct sim_holder *sh)
{
	free(sh->held);
	free(sh->pins);
	free(sh->leases);
	memset(sh, 0, sizeof(*sh));
}

/* One namespace of a session that ends. */
static void sim_close(struct sim *w, struct sim_session *s, struct sim_ns *ns, bool dead)
{
	struct sim_holder *sh = &s->in[sim_index(w, ns)];
	uint32_t zombie_leases;
	int r;

	if (!ns->garbled) {
		ns->counts.looked_up += sh->looked_up;
		ns->counts.hits += sh->hits;
	}
	sim_lower_leave(w, s, ns);
	for (uint32_t i = 0; i < sh->n_leases; i++)
		sim_partial_abort(ns, &ns->partials[sh->leases[i].partial]);
	while (dead && sh->n_leases)
		sim_lease_end(ns, sh, sh->n_leases - 1);
	zombie_leases = sh->n_leases;
	sh->n_held = 0;
	r = holder_close(sh->h, dead);
	sim_must(w, r == (zombie_leases ? STORE_E_QUARANTINE : 0));
	if (r == 0)
		sim_holder_end(sh);
	else
		sh->page = NULL;
}

static bool sim_is_zombie(const struct sim *w, const struct sim_session *s)
{
	for (uint32_t i = 0; i < w->n_ns; i++)
		if (s->in[i].h)
			return true;
	return false;
}

static void sim_session_end(struct sim *w, struct sim_session *s)
{
	sim_must(w, s->user.session.used[QUOTA_SLOTS] == 0 && s->user.session.used[QUOTA_HOLDS] == 0);
	memset(s, 0, sizeof(*s));
}

void sim_leave(struct sim *w, struct sim_session *s, bool dead)
{
	sim_say(w, "session %u%s", s->number, dead ? "" : ", its process lives on");
	for (uint32_t i = 0; i < w->n_ns; i++)
		if (s->in[i].h)
			sim_close(w, s, &w->ns[i], dead);
	s->state = SESSION_ZOMBIE;
	if (!sim_is_zombie(w, s))
		sim_session_end(w, s);
}

void sim_zombie_dies(struct sim *w, struct sim_session *s)
{
	sim_say(w, "session %u", s->number);
	for (uint32_t i = 0; i < w->n_ns; i++) {
		struct sim_holder *sh = &s->in[i];

		if (!sh->h)
			continue;
		while (sh->n_leases)
			sim_lease_end(&w->ns[i], sh, sh->n_leases - 1);
		holder_dead(sh->h);
		sim_holder_end(sh);
	}
	sim_session_end(w, s);
}
