/* Who waits for copies, and what happens when one has ended.
 *
 * Owns the list of reserves that wait for room; onboards wait in onboard.c.  First come, first served within a namespace: a small request behind a
 * large one waits as well, or the large one would starve.  A wait is bounded: at its deadline the request goes on without waiting.
 */
#include <assert.h>

#include "base/thread.h"
#include "move/transfer.h"

static void wait_insert(struct mover *m, struct store_wait *w)
{
	list_for_each(it, &m->reserves) {
		if (container_of(it, struct store_wait, link)->number < w->number)
			continue;
		list_add_tail(it, &w->link); /* before it */
		return;
	}
	list_add_tail(&m->reserves, &w->link);
}

void store_wait(struct holder *h, struct store_wait *w, uint32_t need)
{
	struct store_ns *sn = store_ns_of(h);

	thread_assert(THREAD_LOOP);
	w->holder = h;
	w->need = need;
	if (w->number == 0)
		w->number = ++sn->store->mover.n_waits;
	wait_insert(&sn->store->mover, w);
	(void)offload_for(sn, need);
}

void store_wait_cancel(struct store_wait *w)
{
	if (list_is_linked(&w->link))
		list_del(&w->link);
}

static bool wait_may_go_on(const struct store_wait *w)
{
	struct store_ns *sn = store_ns_of(w->holder);
	const struct heat *heat = &sn->ns.heat;

	list_for_each(it, &sn->store->mover.reserves) {
		const struct store_wait *before = container_of(it, struct store_wait, link);

		if (before == w)
			break;
		if (store_ns_of(before->holder) == sn)
			return false;
	}
	return sn->ns.n_free + heat->clean_live + heat->grace_live >= w->need || !offload_can_help(sn);
}

/* The first of each namespace that may go on, or is late, does; then the next.  Each is asked once: it may wait again. */
static void wait_kick(struct store *store, uint64_t now_ns)
{
	uint64_t kick = ++store->mover.n_kicks;

	for (bool told = true; told;) {
		told = false;
		list_for_each(it, &store->mover.reserves) {
			struct store_wait *w = container_of(it, struct store_wait, link);
			bool late = w->deadline_ns <= now_ns;

			if (w->kicked == kick || (!late && !wait_may_go_on(w)))
				continue;
			w->kicked = kick;
			list_del(&w->link);
			w->cb(w, late || !offload_can_help(store_ns_of(w->holder)));
			told = true; /* the callback may have changed the list */
			break;
		}
	}
}

void store_waits_lost(struct store *store)
{
	for (bool told = true; told;) {
		told = false;
		list_for_each(it, &store->mover.reserves) {
			struct store_wait *w = container_of(it, struct store_wait, link);

			if (!store_ns_of(w->holder)->lost)
				continue;
			list_del(&w->link);
			w->cb(w, true);
			told = true; /* the callback may have changed the list */
			break;
		}
	}
}

static void wait_count_wanted(struct store *store)
{
	list_for_each(it, &store->namespaces)
		store_ns_at(it)->wanted = 0;
	list_for_each(it, &store->mover.reserves) {
		const struct store_wait *w = container_of(it, struct store_wait, link);
		struct store_ns *sn = store_ns_of(w->holder);

		if (w->need > sn->wanted)
			sn->wanted = w->need;
	}
	list_for_each(it, &store->mover.waiters) {
		const struct store_onboard *o = container_of(it, struct store_onboard, waiting);

		if (o->n - o->next > o->holder_ns->wanted)
			o->holder_ns->wanted = o->n - o->next;
	}
}

/* A round may make room for those who wait at once; what is still left then waits for the next event. */
#define WAIT_ROUNDS 16u

static void wait_round(struct store *store, uint64_t now_ns)
{
	bool more = true;

	transfer_sum_again(store);
	for (uint32_t i = 0; more && i < WAIT_ROUNDS; i++) {
		wait_kick(store, now_ns);
		onboard_kick(store);
		wait_count_wanted(store);
		more = offload_run(store) && !(list_empty(&store->mover.reserves) && list_empty(&store->mover.waiters));
	}
	summing_run(store);
	device_run(store);
}

void store_moved(struct store *store)
{
	wait_round(store, 0);
}

/* Room comes from more than copies, and workers have more to do than our checksums: whatever waits is looked at. */
void store_tick_waiters(struct store *store, uint64_t now_ns)
{
	onboard_tick(store, now_ns);
	wait_round(store, now_ns);
	scrub_tick(store, now_ns);
}

uint64_t store_next_waiter_ns(const struct store *store)
{
	uint64_t next = onboard_next_ns(store), scrub = scrub_next_ns(store);

	next = scrub < next ? scrub : next;
	list_for_each(it, &store->mover.reserves) {
		const struct store_wait *w = container_of(it, struct store_wait, link);

		next = w->deadline_ns < next ? w->deadline_ns : next;
	}
	if (device_is_pending(store))
		return 0;
	list_for_each(it, &store->namespaces)
		if (store_ns_at(it)->drain_more)
			return 0;
	return next;
}

void store_stop_moving(struct store *store)
{
	store->mover.stopping = true;
	wait_kick(store, UINT64_MAX);
	onboard_tick(store, UINT64_MAX);
}

void store_lower_gone(struct store *store)
{
	assert(store->mover.stopping);
	store->config.lower = NULL;
}

bool store_is_copying(const struct store *store)
{
	return store->mover.n_device > 0;
}

bool store_is_moving(const struct store *store)
{
	return store->mover.n_running > 0 || store->mover.n_summing > 0 || store->mover.n_device > 0 ||
	       scrub_is_running(store);
}
