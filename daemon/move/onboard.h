/* onboard.h: the part of the store's face that takes time: bringing blocks up from the tier below, waiting for room, and ending.
 *
 * Loop thread.  Callbacks are never called from inside the call that began what they end.
 */
#ifndef KVBMD_MOVE_ONBOARD_H
#define KVBMD_MOVE_ONBOARD_H

#include "base/list.h"
#include "move/store.h"

/* A reserve that got STORE_E_WAIT waits for copies: cb is called once, from the loop, when there may be room for @need slots (then try again),
 * or @late: when waiting cannot help or @deadline_ns has passed (then try again with store_reserve.now).  The struct is the caller's, and the store's until
 * then or store_wait_cancel(). */
struct store_wait {
	uint64_t deadline_ns;
	void (*cb)(struct store_wait *w, bool late);
	/* the store's */
	struct list link;
	struct holder *holder;
	uint32_t need;
	uint64_t number, kicked; /* 0 before its first wait: it keeps its place when it waits again */
};
void store_wait(struct holder *h, struct store_wait *w, uint32_t need);
/* Harmless when it does not wait (list_init(&w->link) once). */
void store_wait_cancel(struct store_wait *w);

/* Brings the blocks of a prefix that are below into host memory; to a pool's holder, into its device's.  keys, status, slots, generations, wants: n each, the caller's until it is done. */
enum store_onboard_status {
	STORE_ONBOARD_PENDING = 0,
	STORE_ONBOARD_DONE,    /* in host memory; held if asked for */
	STORE_ONBOARD_MISSING, /* nowhere */
	STORE_ONBOARD_BUSY,    /* below, but there is no room for it now: worth asking again */
	STORE_ONBOARD_FAILED,  /* it could not be read, or was not what it must be; or the tier is offline */
	STORE_ONBOARD_DEADLINE,
	STORE_ONBOARD_RECOMPUTE, /* it would come later than it is computed */
};
struct store_onboard;
/* Who waits for one block: inside the store. */
struct onboard_want {
	struct list link; /* in transfer->wants */
	struct store_onboard *onboard;
	uint32_t i; /* of its keys */
};
struct store_onboard {
	const uint8_t *keys;
	uint32_t n;
	bool hold, prefetch;
	bool quiet; /* not counted: for another one that is */
	uint64_t now_ns, deadline_ns;
	uint64_t recompute_ns; /* to compute one block; 0: do not compare */
	uint8_t *status;
	uint32_t *slots, *generations;
	struct onboard_want *wants;
	void (*done)(struct store_onboard *o);
	uint32_t hits; /* out: leading blocks that are DONE */
	/* the store's */
	struct list link, waiting;
	struct holder *holder;
	struct store_ns *holder_ns;
	struct store_onboard *below; /* owns; of a pool's: what its hub has to read first */
	struct store_onboard *above; /* borrows; the other way round */
	uint32_t below_from;         /* the first key of @below */
	uint32_t next, pending, from_host, from_hub, cut;
	bool finished;
};
/* 0: it is done, and done() is not called.  STORE_E_WAIT: done() will be called once, never inline, unless cancelled. */
int store_onboard(struct holder *h, struct store_onboard *o);
/* The same for nobody in particular: a prefetch (o->hold is not set) of the namespace of that name.  Outcomes also NOENT, INVAL (@key_bytes). */
int store_prefetch(struct store *store, const char *name, uint32_t key_bytes, struct store_onboard *o);
/* Not done: whatever it holds is let go, and done() is not called any more.  Harmless on a done one, whose holds are the session's. */
void store_onboard_cancel(struct store_onboard *o);

/* What the tier below asks and tells: to be set in it before it is started. */
void store_lower_user(struct store *store, struct tier_lower_user *ret_user);
/* No new copies; what is under way ends by itself.  store_is_moving(): not yet all. */
void store_stop_moving(struct store *store);
bool store_is_moving(const struct store *store);
bool store_is_copying(const struct store *store); /* with a device */
/* The tier below has ended, and is not to be spoken to any more: before store_free(), where it ends first. */
void store_lower_gone(struct store *store);

#endif
