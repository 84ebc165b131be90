/* SPDX-License-Identifier: Apache-2.0 */
/* protocol_client.h: the client's steps in test_protocol.c's model, after client/lookup.c. */
#ifndef TESTS_CLIENT_PROTOCOL_CLIENT_H
#define TESTS_CLIENT_PROTOCOL_CLIENT_H

#include "tests/unit/client/protocol.h"

static void client_forget(struct state *s)
{
	s->c_n = s->c_i = s->c_probe = s->c_kept = s->c_wrong = 0;
	memset(s->c_key, 0, sizeof(s->c_key));
	memset(s->c_at, 0, sizeof(s->c_at));
	memset(s->c_entry, 0, sizeof(s->c_entry));
}

static void client_goto(struct state *s, enum client_at at)
{
	s->c = (uint8_t)at;
	s->c_i = s->c_probe = 0;
	if (at == C_NEXT)
		client_forget(s);
}

static void client_next(const struct state *from)
{
	struct state s = *from;

	if (s.c_round == search.m->client_rounds) {
		s.c = C_DONE;
		reach(&s, "client: is content");
		return;
	}
	s.c_round++;
	s.c = C_FIND;
	for (uint8_t a = 0; a < KEYS; a++) {
		s.c_key[0] = a;
		s.c_n = 1;
		s.c_key[1] = 0;
		reach(&s, "client: kvbm_match() of one key");
		for (uint8_t b = 0; b < KEYS && search.m->batch > 1; b++) {
			s.c_key[1] = b;
			s.c_n = 2;
			if (a != b)
				reach(&s, "client: kvbm_match() of two keys");
		}
	}
}

/* lookup_find(): one line a step. */
static void client_find(struct state s)
{
	uint8_t i = s.c_i, line = (uint8_t)(search.m->home[s.c_key[i]] + s.c_probe);
	uint8_t e = load(&s, &s.c_buf, (uint8_t)(LINE + line));

	if (entry_is(e, s.c_key[i])) {
		s.c_at[i] = line;
		s.c_entry[i] = e;
		s.c_probe = 0;
		if (++s.c_i == s.c_n)
			client_goto(&s, C_RAISE);
	} else if (e != EMPTY && line + 1 < LINES) {
		s.c_probe++;
	} else {
		s.c_n = i; /* the first miss ends the prefix */
		client_goto(&s, i ? C_RAISE : C_NEXT);
	}
	reach(&s, "client: lookup_find()");
}

static void client_raise(struct state s)
{
	uint8_t pin = (uint8_t)(PIN + entry_slot(s.c_entry[s.c_i]));

	if (!store(&s.c_buf, pin, (uint8_t)(load(&s, &s.c_buf, pin) + 1)))
		return;
	if (++s.c_i == s.c_n)
		client_goto(&s, C_FENCE);
	reach(&s, "client: shm_pin_raise()");
}

static void client_checked(struct state *s, bool holds)
{
	if (!holds) {
		search.shortened++;
		s->c_kept = s->c_i;
		s->c = C_LOWER;
		s->c_probe = 0;
		return;
	}
	search.held++;
	s->c_probe = 0;
	s->c = C_CHECK;
	if (++s->c_i == s->c_n) {
		s->c_kept = s->c_n;
		client_goto(s, C_READ);
	}
}

/* pin_is_right(), pin_holds_elsewhere() */
static void client_check(struct state s)
{
	uint8_t i = s.c_i;

	if (s.c == C_CHECK) {
		uint8_t e = load(&s, &s.c_buf, (uint8_t)(LINE + s.c_at[i]));

		if (e == s.c_entry[i] || is(NO_SECOND_LOOK))
			client_checked(&s, true);
		else
			s.c = C_ELSEWHERE;
		reach(&s, "client: pin_is_right()");
	} else {
		uint8_t line = (uint8_t)(search.m->home[s.c_key[i]] + s.c_probe);
		uint8_t e = load(&s, &s.c_buf, (uint8_t)(LINE + line));

		if (entry_is(e, s.c_key[i]))
			client_checked(&s, e == s.c_entry[i] || is(MOVED_ENTRY_BY_KEY_ONLY));
		else if (e != EMPTY && line + 1 < LINES)
			s.c_probe++;
		else
			client_checked(&s, false);
		reach(&s, "client: pin_holds_elsewhere()");
	}
}

/* shm_pin_lower() of what did not pass. */
static void client_lower(struct state s)
{
	uint8_t pin = (uint8_t)(PIN + entry_slot(s.c_entry[s.c_i]));

	if (!store(&s.c_buf, pin, (uint8_t)(load(&s, &s.c_buf, pin) - 1)))
		return;
	if (++s.c_i == s.c_n) {
		s.c_n = s.c_kept;
		client_goto(&s, s.c_n ? C_READ : C_NEXT);
	}
	reach(&s, "client: shm_pin_lower()");
}

static void client_after_reading(struct state *s)
{
	client_goto(s, is(LOWERED_BEFORE_READ) ? C_NEXT : C_GENERATION);
}

/* The engine reads; two bytes a block. */
static void client_read(struct state s)
{
	uint8_t i = s.c_i, slot = entry_slot(s.c_entry[i]);

	if (is(LOWERED_BEFORE_READ) && s.c_probe == 0 && i == 0 && !s.c_wrong) {
		/* Before the first byte: all pins down in one step. */
		for (uint8_t j = 0; j < s.c_n; j++) {
			uint8_t pin = (uint8_t)(PIN + entry_slot(s.c_entry[j]));

			if (!store(&s.c_buf, pin, (uint8_t)(load(&s, &s.c_buf, pin) - 1)))
				return;
		}
	}
	s.c_wrong |= load(&s, &s.c_buf, (uint8_t)(BYTES + 2 * slot + s.c_probe)) != s.c_key[i];
	if (++s.c_probe == 2) {
		s.c_probe = 0;
		if (++s.c_i == s.c_n)
			client_goto(&s, C_STILL_LIVE);
	}
	reach(&s, "client: reads");
}

/* shm_page_is_live(): bytes read before are good if it is. */
static void client_live(struct state s)
{
	bool live = load(&s, &s.c_buf, LIVE) || is(NO_LIVE_WORD);

	if (s.c == C_LIVE) {
		s.c_kept = 0;
		client_goto(&s, live ? C_CHECK : C_LOWER);
	} else {
		if (live && s.c_wrong)
			violated("a client read another block's bytes while it believed to hold its own");
		s.c_wrong = 0;
		client_after_reading(&s);
	}
	reach(&s, "client: shm_page_is_live()");
}

/* kvbm__unpin(): is it still our block's generation? */
static void client_generation(struct state s)
{
	uint8_t e = s.c_entry[s.c_i];

	if ((load(&s, &s.c_buf, (uint8_t)(GEN + entry_slot(e))) & 15) != entry_generation(e) && !search.m->ends)
		violated("a held slot was given to another block");
	if (++s.c_i == s.c_n)
		client_goto(&s, C_MARK);
	reach(&s, "client: kvbm__unpin() compares generations");
}

static void client_unpin(struct state s)
{
	uint8_t pin = (uint8_t)(PIN + entry_slot(s.c_entry[s.c_i]));
	uint8_t word = load(&s, &s.c_buf, pin);
	bool mark = s.c == C_MARK;

	if (!store(&s.c_buf, pin, (uint8_t)(mark ? (word - 1) | MARK : word & ~MARK)))
		return;
	if (++s.c_i == s.c_n)
		client_goto(&s, mark ? C_SETTLE : C_NEXT);
	reach(&s, mark ? "client: unpin_mark()" : "client: unpin_settle()");
}

static void client_fence(struct state s)
{
	if (s.c_buf.n && !is(NO_CLIENT_FENCE))
		return;
	client_goto(&s, C_LIVE);
	reach(&s, "client: shm_fence()");
}

static void client_step(const struct state *s)
{
	switch ((enum client_at)s->c) {
	case C_NEXT:
		client_next(s);
		break;
	case C_FIND:
		client_find(*s);
		break;
	case C_RAISE:
		client_raise(*s);
		break;
	case C_FENCE:
		client_fence(*s);
		break;
	case C_LIVE:
	case C_STILL_LIVE:
		client_live(*s);
		break;
	case C_CHECK:
	case C_ELSEWHERE:
		client_check(*s);
		break;
	case C_LOWER:
		client_lower(*s);
		break;
	case C_READ:
		client_read(*s);
		break;
	case C_GENERATION:
		client_generation(*s);
		break;
	case C_MARK:
	case C_SETTLE:
		client_unpin(*s);
		break;
	case C_DONE:
	case C_DEAD:
		break;
	}
}

static void client_kill_step(const struct state *from)
{
	struct state s = *from;

	if (!search.m->kills || s.c == C_DONE || s.c == C_DEAD)
		return;
	client_forget(&s);
	s.c = C_DEAD;
	reach(&s, "client: is killed");
}

#endif
