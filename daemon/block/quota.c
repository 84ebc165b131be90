/* Counts against limits.  A charge goes to the session and its uid, or to neither; who is charged gives back the same. */
#include "block/quota.h"

#include <assert.h>
#include <stddef.h>

int quota_charge(struct quota_user *u, enum quota_kind kind, uint64_t n)
{
	struct quota *s = &u->session;

	assert(kind < QUOTA_N);
	if (n > s->limit[kind] || s->used[kind] > s->limit[kind] - n)
		return QUOTA_E_OVER;
	if (u->uid && (n > u->uid->limit[kind] || u->uid->used[kind] > u->uid->limit[kind] - n))
		return QUOTA_E_OVER;
	s->used[kind] += n;
	if (u->uid)
		u->uid->used[kind] += n;
	return 0;
}

void quota_return(struct quota_user *u, enum quota_kind kind, uint64_t n)
{
	assert(kind < QUOTA_N);
	assert(u->session.used[kind] >= n);
	u->session.used[kind] -= n;
	if (u->uid) {
		assert(u->uid->used[kind] >= n);
		u->uid->used[kind] -= n;
	}
}
