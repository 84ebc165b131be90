/* quota.h: what one uid, and one session, may have at the same time.  Counts are charged and given back; they must be zero when the
 * last session of a uid has ended (asserted). */
#ifndef KVBMD_BLOCK_QUOTA_H
#define KVBMD_BLOCK_QUOTA_H

#include <stdint.h>

enum quota_kind {
	QUOTA_SLOTS, /* reserved, not yet committed */
	QUOTA_HOLDS, /* read holds by message */
	QUOTA_SESSIONS,
	QUOTA_N
};

enum { QUOTA_E_OVER = 1 };

/* A limit and a count; a session's points to its uid's, and a charge goes to both or neither. */
struct quota {
	uint64_t used[QUOTA_N], limit[QUOTA_N];
};
struct quota_user {
	struct quota session;
	struct quota *uid;  /* borrows; NULL: none */
	uint64_t pin_limit; /* pins in shared memory, of this session in each namespace */
};

int quota_charge(struct quota_user *u, enum quota_kind kind, uint64_t n);
void quota_return(struct quota_user *u, enum quota_kind kind, uint64_t n);

#endif
