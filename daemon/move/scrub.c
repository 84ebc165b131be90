/* Scrub: what lies below is read and compared with its checksum, a block at a time and at a set rate, so that a drive that loses bytes is noticed before
 * somebody asks for them.
 *
 * Only while the drives have nothing else to do and nobody waits for a copy; a read that finds the workers busy afterwards is given up.  What is bad
 * is dropped and counted, and its slot is taken out of use when that has happened to it twice (block/lower.c).
 *
 * Life
 *   0 IDLE   1 READING   2 SUMMING
 *   0->1 scrub_tick   1->2, 1->0 scrub_on_read   2->0 scrub_on_sum
 * Owns memory for one block.  It goes through the slots of all namespaces in order, from a place that the time of its first look gives: so a daemon that is
 * started often does not read the same ones again and again.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/log.h"
#include "base/metrics.h"
#include "base/thread.h"
#include "move/transfer.h"

#define HOUR_NS UINT64_C(3600000000000)
#define LOOK_AGAIN_NS UINT64_C(1000000000) /* at most: after something else was in the way */
#define LOOK_SLOTS 65536u                  /* in one go */
#define LOOK_ON_NS UINT64_C(100000000)     /* to the next one, if that found none */
#define KEEP_BYTES (UINT64_C(4) << 20)     /* of memory, between blocks */

struct scrub {
	enum scrub_state { SCRUB_IDLE = 0, SCRUB_READING, SCRUB_SUMMING } state;
	struct store_ns *sn; /* borrows; of what is being read */
	uint32_t lower;
	struct tier_io io;
	struct mover_sum sum;
	struct tier_region memory; /* owns base */
	bool begun;
	uint64_t next_ns;
	uint64_t number; /* where it is: in the namespace of that number, or the next that is there */
	uint32_t slot;
};

int scrub_init(struct mover *m)
{
	m->scrub = calloc(1, sizeof(*m->scrub));
	return m->scrub ? 0 : -ENOMEM;
}

static void scrub_forget_memory(struct scrub *s)
{
	if (s->memory.base)
		munmap(s->memory.base, s->memory.size);
	s->memory.base = NULL;
	s->memory.size = 0;
}

void scrub_deinit(struct mover *m)
{
	if (!m->scrub)
		return;
	assert(m->scrub->state == SCRUB_IDLE);
	scrub_forget_memory(m->scrub);
	free(m->scrub);
	m->scrub = NULL;
}

bool scrub_is_running(const struct store *store)
{
	return store->mover.scrub && store->mover.scrub->state != SCRUB_IDLE;
}

/* ---- when ---- */

static uint64_t scrub_copies(const struct store *store)
{
	uint64_t n = 0;

	list_for_each(it, &store->namespaces)
		if (store_ns_at(it)->ns.lower)
			n += store_ns_at(it)->ns.lower->n_present;
	return n;
}

/* Between one block and the next; 0: there is nothing to do. */
static uint64_t scrub_interval_ns(const struct store *store)
{
	uint64_t copies = scrub_copies(store), percent = store->config.scrub_percent;

	return copies && percent ? (uint64_t)((double)HOUR_NS * 100 / (double)percent / (double)copies) + 1 : 0;
}

static bool scrub_may(const struct store *store)
{
	return store->mover.scrub && lower_is_online(store) && !store->mover.stopping;
}

static bool scrub_is_idle_time(const struct store *store)
{
	const struct mover *m = &store->mover;
	struct tier_lower *t = store->config.lower;
	struct tier_lower_stat stat;

	if (m->scrub->state != SCRUB_IDLE || m->n_running > 0 || m->n_summing > 0 || !list_empty(&m->waiters) ||
	    !list_empty(&m->reserves))
		return false;
	t->ops->stat(t, &stat);
	return stat.in_flight == 0 && stat.queued == 0;
}

uint64_t scrub_next_ns(const struct store *store)
{
	if (!scrub_may(store) || scrub_interval_ns(store) == 0)
		return UINT64_MAX;
	return store->mover.scrub->begun ? store->mover.scrub->next_ns : 0;
}

/* ---- which ---- */

/* The namespace with the least number that is at least @number, or of all; NULL: none has anything below. */
static struct store_ns *scrub_namespace(struct store *store, uint64_t number)
{
	struct store_ns *best = NULL, *first = NULL;

	list_for_each(it, &store->namespaces) {
		struct store_ns *sn = store_ns_at(it);

		if (!sn->ns.lower || sn->ns.lower->n_present == 0)
			continue;
		if (sn->number >= number && (!best || sn->number < best->number))
			best = sn;
		if (!first || sn->number < first->number)
			first = sn;
	}
	return best ? best : first;
}

/* The next copy that nobody reads; LOWER_NONE: not found in this go. */
static uint32_t scrub_pick(struct store *store, struct store_ns **ret_sn)
{
	struct scrub *s = store->mover.scrub;

	for (uint32_t looked = 0; looked < LOOK_SLOTS;) {
		struct store_ns *sn = scrub_namespace(store, s->number);
		const struct lower *l = sn ? sn->ns.lower : NULL;
		uint32_t area, slot = s->slot;

		if (!sn)
			break;
		if (s->number != sn->number) {
			s->number = sn->number;
			slot = s->slot = 0;
		}
		area = lower_area_of(l, slot);
		looked++;
		if (area >= l->n_areas) {
			s->number++;
			s->slot = 0;
		} else if (lower_place_of(l, slot) >= l->areas[area].n_slots) {
			s->slot = (area + 1) << l->shift;
		} else {
			s->slot++;
			*ret_sn = sn;
			if (lower_at(l, slot)->state == LOWER_PRESENT && lower_at(l, slot)->busy == 0)
				return slot;
		}
	}
	return LOWER_NONE;
}

static void scrub_begin(struct store *store, uint64_t now_ns)
{
	struct scrub *s = store->mover.scrub;
	const struct store_ns *sn;
	uint64_t h = (now_ns ^ now_ns >> 29) * UINT64_C(0x9e3779b97f4a7c15);

	s->begun = true;
	s->next_ns = now_ns + scrub_interval_ns(store);
	s->number = store->last_number ? 1 + h % store->last_number : 0;
	sn = scrub_namespace(store, s->number);
	if (!sn)
		return;
	s->number = sn->number;
	s->slot = (uint32_t)((h >> 20) % sn->ns.lower->n_areas) << sn->ns.lower->shift;
}

/* ---- the steps ---- */

static void scrub_end(struct scrub *s)
{
	struct store *store = s->sn->store;

	s->sn->n_transfers--;
	s->sn = NULL;
	s->state = SCRUB_IDLE;
	if (s->memory.size > KEEP_BYTES)
		scrub_forget_memory(s);
	store_moved(store);
}

static void scrub_found_bad(struct scrub *s)
{
	struct ns *ns = &s->sn->ns;

	metrics_add(METRIC_scrub_errors, 1);
	log_error("namespace %s: scrub: area %u, place %u cannot be read, or is not what was written; the copy is dropped",
	          ns->desc->name, s->io.area, s->io.place);
	if (lower_at(ns->lower, s->lower)->busy > 0)
		return; /* whoever reads it will see */
	lower_bad(ns->lower, s->lower);
	ns->lower->counts.lost++;
	lower_drop(s->sn, s->lower, WHY_TIER_FAILED);
}

static void scrub_on_sum(struct mover_sum *sum)
{
	struct scrub *s = container_of(sum, struct scrub, sum);
	struct lower_copy *c = lower_at(s->sn->ns.lower, s->lower);

	thread_assert(THREAD_LOOP);
	assert(s->state == SCRUB_SUMMING);
	c->busy--;
	metrics_add(METRIC_blocks_scrubbed, 1);
	if (sum->sum != c->sum) {
		metrics_add(METRIC_checksum_errors, 1);
		scrub_found_bad(s);
	}
	scrub_end(s);
}

static void scrub_on_read(struct tier_io *io, int r)
{
	struct scrub *s = container_of(io, struct scrub, io);
	const struct ns *ns = &s->sn->ns;
	const struct mover_calculator *calculator = &s->sn->store->config.calculator;
	struct lower_copy *c = lower_at(ns->lower, s->lower);

	thread_assert(THREAD_LOOP);
	assert(s->state == SCRUB_READING);
	s->sum = (struct mover_sum){ .base = s->memory.base,
		                     .lane_area = ns->desc->lane_bytes,
		                     .lane_bytes = ns->desc->lane_bytes,
		                     .lanes = ns->desc->lanes,
		                     .seed = mover_seed(c->key, ns->desc->key_bytes),
		                     .cb = scrub_on_sum };
	s->state = SCRUB_SUMMING;
	if (r == 0 && calculator->sum(calculator->ctx, &s->sum) == 0)
		return;
	c->busy--;
	if (r == TIER_E_IO) {
		metrics_add(METRIC_blocks_scrubbed, 1);
		scrub_found_bad(s);
	}
	scrub_end(s);
}

/* Memory for a block of @size bytes; false: there is none. */
static bool scrub_memory(struct scrub *s, uint64_t size)
{
	void *base;

	if (s->memory.base && s->memory.size == size)
		return true;
	scrub_forget_memory(s);
	base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED)
		return false;
	s->memory = (struct tier_region){ .base = base, .size = size, .fd = -1, .ro_fd = -1 };
	return true;
}

static void scrub_one(struct store *store, uint64_t now_ns)
{
	struct scrub *s = store->mover.scrub;
	struct tier_lower *t = store->config.lower;
	struct store_ns *sn = NULL;
	uint32_t lower = scrub_pick(store, &sn);
	const struct ns_desc *d;

	if (lower == LOWER_NONE) {
		s->next_ns = s->next_ns < now_ns + LOOK_ON_NS ? s->next_ns : now_ns + LOOK_ON_NS;
		return;
	}
	d = sn->ns.desc;
	if (!scrub_memory(s, d->lane_bytes * d->lanes))
		return;
	s->sn = sn;
	s->lower = lower;
	s->io = (struct tier_io){ .cb = scrub_on_read,
		                  .priority = TIER_AHEAD,
		                  .area = lower_area_of(sn->ns.lower, lower),
		                  .place = lower_place_of(sn->ns.lower, lower),
		                  .shape = { .lane_bytes = d->lane_bytes, .lanes = d->lanes },
		                  .region = &s->memory,
		                  .lane_area = d->lane_bytes };
	if (t->ops->submit(t, &s->io) != 0)
		return;
	s->state = SCRUB_READING;
	sn->n_transfers++;
	lower_at(sn->ns.lower, lower)->busy++;
}

void scrub_tick(struct store *store, uint64_t now_ns)
{
	struct scrub *s = store->mover.scrub;
	uint64_t interval = scrub_interval_ns(store);

	if (!scrub_may(store) || interval == 0)
		return;
	if (!s->begun)
		scrub_begin(store, now_ns);
	if (now_ns < s->next_ns)
		return;
	if (!scrub_is_idle_time(store)) {
		s->next_ns = now_ns + (interval < LOOK_AGAIN_NS ? interval : LOOK_AGAIN_NS);
		return;
	}
	s->next_ns = now_ns + interval;
	scrub_one(store, now_ns);
}

void scrub_at_once(struct store *store)
{
	if (store->mover.scrub)
		store->mover.scrub->next_ns = 0;
}
