/* sm.h: state machines as tables.
 *
 * States are an enum of the user's, their names and allowed next states a table, the invariant one function.  Every
 * move is checked against both, in release builds too.
 *
 *	static const struct sm_state transfer_states[] = {
 *		[START] = { "start", TO(WRITING) | TO(FAILED), false },
 *		...
 *	};
 *
 *	sm_init(&x->sm, transfer_states, START, transfer_invariant);
 *	sm_move(&x->sm, WRITING);
 */
#ifndef BASE_SM_H
#define BASE_SM_H

#include <stdbool.h>
#include <stdint.h>

#define TO(state) (UINT64_C(1) << (state))
#define SM_STATES_MAX 64
#define SM_PREV_NONE (-1)

struct sm_state {
	const char *name;
	uint64_t allowed; /* TO() of each state that may follow */
	bool final;       /* the end of the life; allows nothing */
};

struct sm {
	const struct sm_state *states; /* borrows: static tables */
	/* Must hold after each move; @prev is the state before, SM_PREV_NONE at init. */
	bool (*invariant)(const struct sm *sm, int prev);
	int state;
};

/* @invariant may be NULL; it is checked at once, so fill in the rest of the owning struct before. */
void sm_init(struct sm *sm, const struct sm_state *states, int initial, bool (*invariant)(const struct sm *sm, int prev));

/* Asserts that the table allows the move, and the invariant afterwards. */
void sm_move(struct sm *sm, int next);

bool sm_may_move(const struct sm *sm, int next);
bool sm_is_final(const struct sm *sm);
const char *sm_name(const struct sm *sm);

#endif
