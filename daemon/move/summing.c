/* Checksums of blocks soon after they were committed, kept in their records: so that whatever happens to the bytes later is seen when the block is read
 * back, or first used after a restart.
 *
 * Owns batches of blocks that a worker is looking at, and a queue of committed ones for each namespace.  A block in a batch is marked as moving:
 * neither dropped nor reused.  The queue is bounded; what does not fit gets its checksum when it is written down.  No more batches are begun than there are
 * workers: what somebody waits for (a block that was read) does not stand behind all that was stored just now.
 * Only where there is a tier below: nobody else would look at it.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/thread.h"
#include "move/transfer.h"

#define BATCHES 8u
#define BATCH_BLOCKS 32u
#define BATCH_BYTES (UINT64_C(1) << 20) /* some 100 us; of larger blocks one */

struct summing_one {
	struct mover_sum sum;
	uint32_t slot;
};

struct summing_batch {
	struct store_ns *sn; /* borrows; NULL: free */
	uint32_t n;
	struct summing_one blocks[BATCH_BLOCKS];
};

struct summing {
	struct summing_batch batches[BATCHES];
};

int summing_init(struct mover *m)
{
	m->summing = calloc(1, sizeof(*m->summing));
	return m->summing ? 0 : -ENOMEM;
}

void summing_deinit(struct mover *m)
{
	for (uint32_t i = 0; m->summing && i < BATCHES; i++)
		assert(!m->summing->batches[i].sn);
	free(m->summing);
	m->summing = NULL;
}

static void summing_on_done(struct mover_sum *s)
{
	struct summing_batch *b = container_of(s, struct summing_batch, blocks[0].sum);
	struct store_ns *sn = b->sn;
	struct store *store = sn->store;

	thread_assert(THREAD_LOOP);
	for (uint32_t i = 0; i < b->n; i++) {
		struct summing_one *one = &b->blocks[i];

		assert(sn->ns.moving[one->slot]);
		sn->ns.moving[one->slot] = 0;
		block_set_sum(&sn->ns, one->slot, one->sum.sum);
	}
	b->sn = NULL;
	sn->n_transfers--;
	store->mover.n_summing--;
	store_moved(store);
}

/* The next committed block that has no checksum yet and is not being moved; NS_NONE: there is none. */
static uint32_t summing_next(struct store_ns *sn)
{
	struct ns *ns = &sn->ns;

	while (sn->unsummed_head != sn->unsummed_tail) {
		struct store_through t = sn->unsummed[sn->unsummed_head++ % STORE_THROUGH];

		if (ns_slot_state(ns, t.slot) == SHM_REGISTERED && ns_slot_generation(ns, t.slot) == t.generation &&
		    ns->records[t.slot].sum == 0 && !ns->moving[t.slot])
			return t.slot;
	}
	return NS_NONE;
}

static void summing_add(struct summing_batch *b, uint32_t slot)
{
	struct summing_one *one = &b->blocks[b->n];

	one->slot = slot;
	transfer_sum_init(b->sn, slot, &one->sum);
	one->sum.seed = mover_seed(b->sn->ns.records[slot].key, b->sn->ns.desc->key_bytes);
	if (b->n > 0)
		b->blocks[b->n - 1].sum.next = &one->sum;
	b->sn->ns.moving[slot] = 1;
	b->n++;
}

/* false: the workers have too much to do. */
static bool summing_batch(struct store_ns *sn, struct summing_batch *b)
{
	const struct mover_calculator *c = &sn->store->config.calculator;
	uint64_t block_bytes = sn->desc.lane_bytes * sn->desc.lanes, bytes = 0;
	uint32_t slot = NS_NONE;

	b->sn = sn;
	b->n = 0;
	for (; b->n < BATCH_BLOCKS && bytes < BATCH_BYTES && (slot = summing_next(sn)) != NS_NONE; bytes += block_bytes)
		summing_add(b, slot);
	b->blocks[0].sum.cb = summing_on_done;
	if (b->n > 0 && c->sum(c->ctx, &b->blocks[0].sum) == 0) {
		sn->n_transfers++;
		sn->store->mover.n_summing++;
		return true;
	}
	for (uint32_t i = 0; i < b->n; i++)
		sn->ns.moving[b->blocks[i].slot] = 0;
	sn->unsummed_head -= b->n; /* the ring still has them, but for those passed over in between, which have theirs */
	b->sn = NULL;
	return false;
}

void summing_run(struct store *store)
{
	struct summing *s = store->mover.summing;
	uint32_t next = 0, n = store->config.calculator.at_once < BATCHES ? store->config.calculator.at_once : BATCHES;

	if (!s || store->mover.stopping)
		return;
	list_for_each(it, &store->namespaces) {
		struct store_ns *sn = store_ns_at(it);

		while (sn->ns.lower && sn->unsummed_head != sn->unsummed_tail) {
			while (next < n && s->batches[next].sn)
				next++;
			if (next == n || !summing_batch(sn, &s->batches[next]))
				break;
		}
	}
}

void summing_committed(struct store_ns *sn, uint32_t slot)
{
	if (!sn->ns.lower)
		return;
	if (!sn->unsummed) {
		sn->unsummed = malloc(STORE_THROUGH * sizeof(*sn->unsummed));
		if (!sn->unsummed)
			return;
	}
	if (sn->unsummed_tail - sn->unsummed_head == STORE_THROUGH)
		sn->unsummed_head++;
	sn->unsummed[sn->unsummed_tail++ % STORE_THROUGH] = (struct store_through){ .slot = slot,
		                                                                    .generation = ns_slot_generation(
											    &sn->ns, slot) };
}
