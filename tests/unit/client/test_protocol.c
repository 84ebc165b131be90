/* SPDX-License-Identifier: Apache-2.0 */
/* The protocol of match and eviction, every interleaving of it: one client, one daemon, two slots, three keys, three index lines of one
 * entry each, under total store order.
 *
 * A step is one load or one store of shared memory, by one side; what a side does between two of them nobody sees.  A store goes into
 * the side's buffer and reaches memory in a step of its own, in order, at any time; a load takes the newest store of its own buffer;
 * a fence is a step that is possible only with an empty buffer.  That is x86; what aarch64 may reorder beyond it is kept in place by the
 * acquires and releases that proto/README.md names.  Steps are named after the functions of production whose place they take.
 *
 *   client   finds one or two keys, pins them, fences, looks again, reads every byte, lets go; may be killed at any step
 *   daemon   condemns one or two blocks, fences, reads the pins, pardons or forgets, mends the probe chain, gives the slot to
 *            another key; learns of the death; may end the session of a client that lives
 *
 * The search is depth first over states seen once.  It must find nothing, and with any one part of the protocol left out it must find a
 * client that reads another block's bytes.  A violation that was not asked for is shown with the steps that lead to it.
 */
#include "tests/unit/client/protocol_client.h"

/* ---- the daemon: move/space.c, block/block.c, block/index.c ---- */

/* The daemon is the only writer of the index, so it knows it without looking: its own last store. */
static uint8_t daemon_line(const struct state *s, uint8_t line)
{
	return load(s, &s->d_buf, (uint8_t)(LINE + line));
}

static uint8_t daemon_line_of(const struct state *s, uint8_t slot)
{
	for (uint8_t l = 0; l < LINES; l++)
		if ((daemon_line(s, l) & VALID) && entry_slot(daemon_line(s, l)) == slot)
			return l;
	return NONE;
}

static void daemon_goto(struct state *s, enum daemon_at at)
{
	s->d = (uint8_t)at;
	s->d_i = s->d_half = 0;
	s->d_hole = s->d_move = s->d_key = 0;
	if (at == D_NEXT) {
		s->d_n = s->d_pinned = 0;
		memset(s->d_slot, 0, sizeof(s->d_slot));
		memset(s->d_tomb, 0, sizeof(s->d_tomb));
	}
}

/* Nothing is left to do with victim d_i: on to the next one, or to the next part. */
static void daemon_after(struct state *s, enum daemon_at next)
{
	uint8_t i = (uint8_t)(s->d_i + 1);
	enum daemon_at at = s->d == D_MOVED ? D_FORGET : s->d == D_MEND ? D_FORGET : (enum daemon_at)s->d;

	if (i < s->d_n) {
		daemon_goto(s, at);
		s->d_i = i;
	} else {
		daemon_goto(s, s->d_n ? next : D_NEXT);
	}
}

static void daemon_next(const struct state *from)
{
	struct state s = *from;

	/* Its pidfd says that the process is gone; what that had stored is in memory. */
	if (s.c == C_DEAD && s.d_session && s.c_buf.n == 0) {
		s.d_session = 0;
		reach(&s, "daemon: lease_holder_unpin(), the client is dead");
		s = *from;
	}
	if (search.m->ends && s.d_session && s.c != C_DEAD && store(&s.d_buf, LIVE, 0)) {
		daemon_goto(&s, D_ENDING);
		reach(&s, "daemon: holder_close() clears the page's word");
		s = *from;
	}
	if (s.d_round == search.m->daemon_rounds) {
		daemon_goto(&s, D_DONE);
		reach(&s, "daemon: has no more requests");
		return;
	}
	s.d_round++;
	for (uint8_t set = 1; set < 1 << SLOTS; set++) {
		s.d_n = 0;
		memset(s.d_slot, 0, sizeof(s.d_slot));
		for (uint8_t slot = 0; slot < SLOTS; slot++)
			if (set >> slot & 1 && daemon_line_of(&s, slot) != NONE)
				s.d_slot[s.d_n++] = slot;
		daemon_goto(&s, is(PINS_BEFORE_TOMBSTONE) ? D_PINS_EARLY : D_CONDEMN);
		if (s.d_n)
			reach(&s, "daemon: space_make()");
	}
}

static void daemon_ending(struct state s)
{
	if (s.d_buf.n)
		return;
	s.d_session = 0;
	daemon_goto(&s, D_NEXT);
	reach(&s, "daemon: shm_fence(), lease_holder_unpin()");
}

/* lease_is_pinned() of one victim, by the one session there is. */
static bool daemon_sees_pin(const struct state *s, uint8_t slot)
{
	return s->d_session && load(s, &s->d_buf, (uint8_t)(PIN + slot)) != 0;
}

static void daemon_pins_early(struct state s)
{
	s.d_pinned |= (uint8_t)(daemon_sees_pin(&s, s.d_slot[s.d_i]) << s.d_i);
	daemon_after(&s, D_CONDEMN);
	reach(&s, "daemon: lease_is_pinned(), too early");
}

static void daemon_condemn(struct state s)
{
	uint8_t i = s.d_i, line = daemon_line_of(&s, s.d_slot[i]);

	if (!store(&s.d_buf, (uint8_t)(LINE + line), TOMBSTONE))
		return;
	s.d_tomb[i] = line;
	daemon_after(&s, D_FENCE);
	reach(&s, "daemon: index_tombstone()");
}

/* Key of what is, or was, in a slot: the record's. */
static uint8_t daemon_key_of(const struct state *s, uint8_t slot)
{
	return load(s, &s->d_buf, (uint8_t)(BYTES + 2 * slot));
}

/* space_pardon_pinned(): all of them, before the first is forgotten. */
static void daemon_pins(struct state s)
{
	uint8_t i = s.d_i, slot = s.d_slot[i];
	bool pinned = daemon_sees_pin(&s, slot);

	if (is(PINS_BEFORE_TOMBSTONE))
		pinned = s.d_pinned >> i & 1;
	if (is(FORGET_BEFORE_PINS))
		pinned = false;
	if (pinned) {
		uint8_t generation = load(&s, &s.d_buf, (uint8_t)(GEN + slot));

		if (!store(&s.d_buf, (uint8_t)(LINE + s.d_tomb[i]), entry_make(daemon_key_of(&s, slot), generation, slot)))
			return;
		search.pardoned++;
		for (uint8_t j = i; j + 1 < s.d_n; j++) {
			s.d_slot[j] = s.d_slot[j + 1];
			s.d_tomb[j] = s.d_tomb[j + 1];
			s.d_pinned >>= 1;
		}
		s.d_n--;
		s.d_slot[s.d_n] = s.d_tomb[s.d_n] = 0;
		s.d_i--; /* daemon_after() adds one; the next victim is in this one's place */
		if (s.d_n == 0)
			s.d_i = 0;
	}
	daemon_after(&s, D_FORGET);
	reach(&s, pinned ? "daemon: block_pardon()" : "daemon: lease_is_pinned(): no");
}

/* index_remove(): what may move into the hole, written there first, and the hole moves on. */
static void daemon_mend(struct state s)
{
	uint8_t move = NONE;

	if (s.d == D_FORGET) {
		s.d_hole = s.d_tomb[s.d_i];
		search.dropped++;
	}
	for (uint8_t l = (uint8_t)(s.d_hole + 1); l < LINES && move == NONE; l++) {
		uint8_t e = daemon_line(&s, l);

		if (e == EMPTY)
			break;
		if ((e & VALID) && search.m->home[entry_key(e)] <= s.d_hole)
			move = l;
	}
	if (move == NONE) {
		if (!store(&s.d_buf, (uint8_t)(LINE + s.d_hole), EMPTY))
			return;
		s.d = D_MEND;
		daemon_after(&s, D_TAKE);
		reach(&s, "daemon: index_remove() empties the hole; ns_slot_free()");
		return;
	}
	if (!store(&s.d_buf, (uint8_t)(LINE + s.d_hole), daemon_line(&s, move)))
		return;
	s.d_move = move;
	s.d = D_MOVED;
	reach(&s, "daemon: index_remove() moves an entry");
}

static void daemon_moved(struct state s)
{
	if (!store(&s.d_buf, (uint8_t)(LINE + s.d_move), TOMBSTONE))
		return;
	s.d_hole = s.d_move;
	s.d_move = 0;
	s.d = D_MEND;
	reach(&s, "daemon: index_remove() clears the old place");
}

static bool daemon_has(const struct state *s, uint8_t key)
{
	for (uint8_t l = 0; l < LINES; l++)
		if (entry_is(daemon_line(s, l), key))
			return true;
	return false;
}

/* ns_slot_take(): for each key that might come. */
static void daemon_take(const struct state *from)
{
	for (uint8_t key = 0; key < KEYS; key++) {
		struct state s = *from;
		uint8_t gen = (uint8_t)(GEN + s.d_slot[s.d_i]);

		if (daemon_has(&s, key) || !store(&s.d_buf, gen, (uint8_t)(load(&s, &s.d_buf, gen) + 1)))
			continue;
		s.d_key = key;
		s.d = is(PUBLISHED_BEFORE_WRITTEN) ? D_REGISTER : D_WRITE;
		reach(&s, "daemon: ns_slot_take()");
	}
}

static void daemon_slot_done(struct state *s)
{
	s->d = D_TAKE;
	daemon_after(s, D_NEXT);
}

/* By another client, whom messages order with the daemon: as if the daemon wrote. */
static void daemon_write(struct state s)
{
	if (!store(&s.d_buf, (uint8_t)(BYTES + 2 * s.d_slot[s.d_i] + s.d_half), s.d_key))
		return;
	if (++s.d_half == 2) {
		s.d_half = 0;
		s.d = D_REGISTER;
		if (is(PUBLISHED_BEFORE_WRITTEN))
			daemon_slot_done(&s);
	}
	reach(&s, "writer: writes");
}

/* block_register(), index_insert() */
static void daemon_register(struct state s)
{
	uint8_t slot = s.d_slot[s.d_i], generation = load(&s, &s.d_buf, (uint8_t)(GEN + slot));
	uint8_t line = search.m->home[s.d_key];

	while (daemon_line(&s, line) != EMPTY)
		must_cmp(++line, <, LINES);
	if (!store(&s.d_buf, (uint8_t)(LINE + line), entry_make(s.d_key, generation, slot)))
		return;
	if (is(PUBLISHED_BEFORE_WRITTEN))
		s.d = D_WRITE;
	else
		daemon_slot_done(&s);
	reach(&s, "daemon: index_insert()");
}

static void daemon_step(const struct state *from)
{
	struct state s = *from;

	switch ((enum daemon_at)s.d) {
	case D_NEXT:
		daemon_next(from);
		break;
	case D_PINS_EARLY:
		daemon_pins_early(s);
		break;
	case D_CONDEMN:
		daemon_condemn(s);
		break;
	case D_FENCE:
		if (s.d_buf.n && !is(NO_DAEMON_FENCE))
			break;
		daemon_goto(&s, D_PINS);
		reach(&s, "daemon: shm_fence()");
		break;
	case D_PINS:
		daemon_pins(s);
		break;
	case D_FORGET:
	case D_MEND:
		daemon_mend(s);
		break;
	case D_MOVED:
		daemon_moved(s);
		break;
	case D_TAKE:
		daemon_take(from);
		break;
	case D_WRITE:
		daemon_write(s);
		break;
	case D_REGISTER:
		daemon_register(s);
		break;
	case D_ENDING:
		daemon_ending(s);
		break;
	case D_DONE:
		if (s.c == C_DEAD && s.d_session && s.c_buf.n == 0) {
			s.d_session = 0;
			reach(&s, "daemon: lease_holder_unpin(), the client is dead");
		}
		break;
	}
}

/* ---- the search ---- */

/* Nothing more can happen: is that as it should be? */
static void search_end(const struct state *s)
{
	if ((s->c != C_DONE && s->c != C_DEAD) || s->d != D_DONE || s->c_buf.n || s->d_buf.n)
		violated("somebody waits for ever");
	if (s->c == C_DEAD && s->d_session)
		violated("a dead client's pins stay");
	for (uint8_t slot = 0; slot < SLOTS; slot++)
		if (s->c == C_DONE && s->mem[PIN + slot])
			violated("a pin was left");
}

static void show_path(uint32_t at)
{
	const char *steps[200];
	uint32_t n = 0;

	for (; at != UINT32_MAX && n < 200; at = search.nodes[at].parent)
		steps[n++] = search.nodes[at].step;
	while (n-- > 0)
		printf("    %s\n", steps[n]);
}

static void search_free(void)
{
	free(search.nodes);
	free(search.table);
	memset(&search, 0, sizeof(search));
}

/* Blocks 0 and 1 are there; 1 lies behind 0 where they have one home. */
static struct state first_state(const struct model *m)
{
	struct state s;

	memset(&s, 0, sizeof(s));
	s.mem[LIVE] = 1;
	s.d_session = 1;
	for (uint8_t slot = 0; slot < SLOTS; slot++) {
		uint8_t line = m->home[slot];

		while (s.mem[LINE + line])
			line++;
		s.mem[GEN + slot] = 1;
		s.mem[LINE + line] = entry_make(slot, 1, slot);
		s.mem[BYTES + 2 * slot] = s.mem[BYTES + 2 * slot + 1] = slot;
	}
	return s;
}

/* Depth first: the newest state that was not left yet.  Returns the violation, or NULL. */
static const char *explore(const struct model *m)
{
	struct state s = first_state(m);
	uint32_t *todo = NULL, n_todo = 0, cap = 0;
	const char *violation;

	search.m = m;
	search.now = UINT32_MAX;
	reach(&s, "the beginning");
	for (uint32_t seen = 0; !search.violation;) {
		uint64_t steps;

		if (n_todo + search.n - seen > cap) {
			cap = (n_todo + search.n - seen) * 2 + 64;
			todo = realloc(todo, cap * sizeof(*todo));
			must(todo);
		}
		while (seen < search.n)
			todo[n_todo++] = seen++;
		if (n_todo == 0)
			break;
		search.now = todo[--n_todo];
		s = search.nodes[search.now].s;
		steps = search.steps;
		client_step(&s);
		daemon_step(&s);
		drain(&s, true);
		drain(&s, false);
		client_kill_step(&s);
		if (search.steps == steps)
			search_end(&s);
	}
	free(todo);
	violation = search.violation;
	printf("protocol, %s, %s: %u states, %llu steps%s%s\n", m->name, mutation_names[m->mutation], search.n,
	       (unsigned long long)search.steps, violation ? ": " : "", violation ? violation : "");
	if (violation && m->mutation == AS_IT_IS)
		show_path(search.n - 1);
	return violation;
}

static const struct model models[] = {
	{ .name = "one chain, pairs", .home = { 0, 0, 0 }, .client_rounds = 1, .daemon_rounds = 2, .batch = 2 },
	{ .name = "two chains, pairs", .home = { 0, 1, 0 }, .client_rounds = 1, .daemon_rounds = 2, .batch = 2 },
	{ .name = "one chain, twice", .home = { 0, 0, 0 }, .client_rounds = 2, .daemon_rounds = 2, .batch = 1 },
	{ .name = "killed", .home = { 0, 0, 0 }, .client_rounds = 1, .daemon_rounds = 2, .batch = 2, .kills = true },
	{ .name = "ended", .home = { 0, 0, 0 }, .client_rounds = 1, .daemon_rounds = 2, .batch = 1, .ends = true },
};

START_TEST(nobody_reads_what_is_not_held)
{
	const struct model *m = &models[_i];
	const char *violation = explore(m);
	bool both = search.held && search.shortened && search.pardoned && search.dropped;

	search_free();
	ck_assert_msg(!violation, "%s", violation);
	ck_assert(both);
}
END_TEST

/* What makes the protocol safe, left out one at a time. */
START_TEST(every_part_is_needed)
{
	const char *violation = NULL;

	for (size_t i = 0; i < sizeof(models) / sizeof(*models) && !violation; i++) {
		struct model m = models[i];

		if ((_i == NO_LIVE_WORD) != m.ends)
			continue;
		m.mutation = (enum mutation)_i;
		violation = explore(&m);
		search_free();
	}
	ck_assert_msg(violation, "nothing was found %s", mutation_names[_i]);
}
END_TEST

int main(void)
{
	Suite *s;
	TCase *t;
	SRunner *sr;
	int failed;

#if defined(__SANITIZE_THREAD__)
	printf("protocol: one thread: ThreadSanitizer would see nothing\n");
	return 77;
#endif
	s = suite_create("protocol");
	t = tcase_create("protocol");
	suite_add_tcase(s, t);
	tcase_set_timeout(t, 240);
	tcase_add_loop_test(t, nobody_reads_what_is_not_held, 0, sizeof(models) / sizeof(*models));
	tcase_add_loop_test(t, every_part_is_needed, AS_IT_IS + 1, MUTATIONS);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
