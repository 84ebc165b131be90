/* why.h: remembers for the last misses and drops of a namespace what happened to a key: a bounded ring with a hash over
 * it, so that `kvbmctl why KEY` has an answer. */
#ifndef KVBMD_BLOCK_WHY_H
#define KVBMD_BLOCK_WHY_H

#include <stdint.h>

#include "block/key.h"

enum why_reason {
	WHY_PRESENT,      /* it is here */
	WHY_NEVER_STORED, /* as far back as we remember */
	WHY_DROPPED,      /* from host memory, to make room */
	WHY_FLUSHED,      /* by an administrator */
	WHY_REBALANCED,   /* its region went to another namespace */
	WHY_RELEASED,     /* its holder said that it would not be used again */
	WHY_ABORTED,      /* writer died, gave up or missed its deadline */
	WHY_OVER_QUOTA,   /* a reservation for it was refused */
	WHY_NO_SPACE,
	WHY_DROPPED_LOWER, /* from the tier below, to make room */
	WHY_TIER_FAILED,   /* its copy could not be read, or was wrong */
	WHY_N
};

struct why_answer {
	enum why_reason reason;
	uint64_t ago_ns;         /* since then; 0 for PRESENT and NEVER_STORED */
	uint32_t misses;         /* look-ups that missed it since, as far as known */
	uint64_t memory_ns;      /* how far back this table remembers */
	uint32_t missing_parent; /* 1: present, but a parent on the way is not, so a prefix match stops earlier */
};

struct why;
/* @entries 0 is allowed: remembers nothing. */
int why_new(uint32_t entries, struct why **ret_why);
struct why *why_free(struct why *w);
void why_note(struct why *w, uint64_t fingerprint, enum why_reason reason, uint64_t now_ns);
void why_miss(struct why *w, uint64_t fingerprint, uint64_t now_ns);
void why_ask(const struct why *w, uint64_t fingerprint, uint64_t now_ns, struct why_answer *ret_answer);
const char *why_text(enum why_reason reason);

#endif
