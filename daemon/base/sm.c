/* sm.c: checks moves of state machines against their tables.  Knows no machine and calls back only the invariant. */
#include "base/sm.h"

#include <stddef.h>

#include "base/assert.h"

void sm_init(struct sm *sm, const struct sm_state *states, int initial, bool (*invariant)(const struct sm *sm, int prev))
{
	assert(initial >= 0 && initial < SM_STATES_MAX);
	assert(states[initial].name);
	sm->states = states;
	sm->invariant = invariant;
	sm->state = initial;
	assert(!invariant || invariant(sm, SM_PREV_NONE));
}

bool sm_may_move(const struct sm *sm, int next)
{
	assert(next >= 0 && next < SM_STATES_MAX);
	return sm->states[sm->state].allowed & TO(next);
}

void sm_move(struct sm *sm, int next)
{
	int prev = sm->state;

	assert(!sm_is_final(sm));
	assert(sm_may_move(sm, next));
	sm->state = next;
	assert(!sm->invariant || sm->invariant(sm, prev));
}

bool sm_is_final(const struct sm *sm)
{
	const struct sm_state *s = &sm->states[sm->state];

	assert(!s->final || s->allowed == 0);
	return s->final;
}

const char *sm_name(const struct sm *sm)
{
	return sm->states[sm->state].name;
}
