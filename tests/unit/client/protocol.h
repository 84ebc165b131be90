/* SPDX-License-Identifier: Apache-2.0 */
/* protocol.h: the state of test_protocol.c's model, the memory that both sides see, and what the search remembers. */
#ifndef TESTS_CLIENT_PROTOCOL_H
#define TESTS_CLIENT_PROTOCOL_H

#include <check.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/must.h"

#define SLOTS 2
#define KEYS 3
#define LINES 3
#define BUFFER 4
#define NONE 0xff

/* Shared memory, a byte a word. */
enum { LINE = 0, PIN = LINE + LINES, BYTES = PIN + SLOTS, GEN = BYTES + 2 * SLOTS, LIVE = GEN + SLOTS, WORDS };

/* An index entry: 0 empty, 1 tombstone, else a key, a generation and a slot. */
#define EMPTY 0
#define TOMBSTONE 1
#define VALID 0x80
#define MARK 0x80 /* of a pin word: kvbm__unpin() is at it */

enum client_at {
	C_NEXT, /* kvbm_match() is called, or not any more */
	C_FIND,
	C_RAISE,
	C_FENCE,
	C_LIVE,
	C_CHECK,
	C_ELSEWHERE,
	C_LOWER,
	C_READ,
	C_STILL_LIVE,
	C_GENERATION,
	C_MARK,
	C_SETTLE,
	C_DONE,
	C_DEAD,
};

enum daemon_at {
	D_NEXT, /* between two requests */
	D_PINS_EARLY,
	D_CONDEMN,
	D_FENCE,
	D_PINS,
	D_FORGET,
	D_MEND,
	D_MOVED,
	D_TAKE,
	D_WRITE,
	D_REGISTER,
	D_ENDING,
	D_DONE,
};

struct buffer {
	uint8_t n, word[BUFFER], value[BUFFER];
};

struct state {
	uint8_t mem[WORDS];
	struct buffer c_buf, d_buf;
	/* client */
	uint8_t c, c_round, c_n, c_key[2], c_at[2], c_entry[2], c_i, c_probe, c_kept, c_wrong;
	/* daemon */
	uint8_t d, d_round, d_n, d_slot[2], d_tomb[2], d_i, d_hole, d_move, d_key, d_half, d_pinned, d_session;
};

enum mutation {
	AS_IT_IS,
	NO_CLIENT_FENCE,
	NO_DAEMON_FENCE,
	NO_SECOND_LOOK,
	PINS_BEFORE_TOMBSTONE,
	FORGET_BEFORE_PINS,
	MOVED_ENTRY_BY_KEY_ONLY,
	PUBLISHED_BEFORE_WRITTEN,
	LOWERED_BEFORE_READ,
	NO_LIVE_WORD,
	MUTATIONS,
};

static const char *const mutation_names[] = {
	[AS_IT_IS] = "as it is",
	[NO_CLIENT_FENCE] = "without the client's fence",
	[NO_DAEMON_FENCE] = "without the daemon's fence",
	[NO_SECOND_LOOK] = "without the second look at the entry",
	[PINS_BEFORE_TOMBSTONE] = "pins read before the tombstone is written",
	[FORGET_BEFORE_PINS] = "forgotten before the pins are read",
	[MOVED_ENTRY_BY_KEY_ONLY] = "an entry found elsewhere passes with another slot",
	[PUBLISHED_BEFORE_WRITTEN] = "the entry published before the bytes are written",
	[LOWERED_BEFORE_READ] = "pins lowered before the bytes are read",
	[NO_LIVE_WORD] = "without asking whether the session has ended",
};

struct model {
	const char *name;
	enum mutation mutation;
	uint8_t home[KEYS];
	uint8_t client_rounds, daemon_rounds, batch;
	bool kills, ends; /* the client is killed; the daemon ends its session */
};

/* ---- the search's memory ---- */

struct node {
	struct state s;
	uint32_t parent;
	const char *step;
};

static struct {
	const struct model *m;
	struct node *nodes;
	uint32_t n, cap;
	uint32_t *table; /* node + 1 */
	uint32_t mask, now;
	uint64_t steps;
	const char *violation;
	uint64_t held, shortened, pardoned, dropped; /* steps in which that happened: both outcomes are there */
} search;

static uint64_t state_hash(const struct state *s)
{
	const uint8_t *p = (const uint8_t *)s;
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < sizeof(*s); i++)
		h = (h ^ p[i]) * UINT64_C(0x100000001b3);
	return h ^ h >> 29;
}

static void table_grow(void)
{
	uint32_t size = search.mask ? (search.mask + 1) * 2 : 1u << 16;

	free(search.table);
	search.table = calloc(size, sizeof(*search.table));
	must(search.table);
	search.mask = size - 1;
	for (uint32_t i = 0; i < search.n; i++) {
		uint32_t at = (uint32_t)state_hash(&search.nodes[i].s) & search.mask;

		while (search.table[at])
			at = (at + 1) & search.mask;
		search.table[at] = i + 1;
	}
}

static void reach(const struct state *s, const char *step)
{
	uint32_t at;

	search.steps++;
	if (search.n * 2 >= search.mask)
		table_grow();
	at = (uint32_t)state_hash(s) & search.mask;
	for (; search.table[at]; at = (at + 1) & search.mask)
		if (memcmp(&search.nodes[search.table[at] - 1].s, s, sizeof(*s)) == 0)
			return;
	if (search.n == search.cap) {
		search.cap = search.cap ? search.cap * 2 : 1u << 15;
		search.nodes = realloc(search.nodes, search.cap * sizeof(*search.nodes));
		must(search.nodes);
	}
	search.nodes[search.n] = (struct node){ .s = *s, .parent = search.now, .step = step };
	search.table[at] = ++search.n;
}

static void violated(const char *what)
{
	if (!search.violation)
		search.violation = what;
}

static bool is(enum mutation m)
{
	return search.m->mutation == m;
}

/* ---- memory under total store order ---- */

static uint8_t load(const struct state *s, const struct buffer *b, uint8_t word)
{
	for (uint8_t i = b->n; i-- > 0;)
		if (b->word[i] == word)
			return b->value[i];
	return s->mem[word];
}

/* A full buffer: the store has to wait until something has left it, which is a step of its own. */
static bool store(struct buffer *b, uint8_t word, uint8_t value)
{
	if (b->n == BUFFER)
		return false;
	b->word[b->n] = word;
	b->value[b->n++] = value;
	return true;
}

static void drain(const struct state *from, bool client)
{
	struct state s = *from;
	struct buffer *b = client ? &s.c_buf : &s.d_buf;

	if (b->n == 0)
		return;
	s.mem[b->word[0]] = b->value[0];
	b->n--;
	memmove(b->word, b->word + 1, b->n);
	memmove(b->value, b->value + 1, b->n);
	b->word[b->n] = b->value[b->n] = 0;
	reach(&s, client ? "client: a store reaches memory" : "daemon: a store reaches memory");
}

static uint8_t entry_make(uint8_t key, uint8_t generation, uint8_t slot)
{
	return (uint8_t)(VALID | key << 5 | (generation & 15) << 1 | slot);
}

static uint8_t entry_slot(uint8_t e)
{
	return e & 1;
}

static uint8_t entry_key(uint8_t e)
{
	return e >> 5 & 3;
}

static uint8_t entry_generation(uint8_t e)
{
	return e >> 1 & 15;
}

static bool entry_is(uint8_t e, uint8_t key)
{
	return (e & VALID) && entry_key(e) == key;
}

#endif
