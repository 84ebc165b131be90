/* replay.h: what the verb replay and its client processes share: the orders, and a page of results for each client in a mapping that
 * outlives whoever is killed.
 *
 * Two pipes steer the clients, both by being closed, so that a parent that dies stops them too: @go_fd ends when they may begin, @stop_fd
 * when they shall end after the request in hand.
 */
#ifndef KVBMCTL_REPLAY_H
#define KVBMCTL_REPLAY_H

#include <jansson.h>
#include <kvbm.h>
#include <stdbool.h>
#include <stdint.h>

#include "histogram.h"
#include "requests.h"

#define REPLAY_MAX_CLIENTS 1024u
#define REPLAY_TEXT 240

enum replay_count {
	REPLAY_REQUESTS,
	REPLAY_LOOKED_UP,
	REPLAY_HITS_G1, /* a hit counts for the fastest tier that has it */
	REPLAY_HITS_G2,
	REPLAY_HITS_G3,
	REPLAY_HITS_G4,
	REPLAY_STORED,       /* new to the node */
	REPLAY_DEDUPLICATED, /* written, but another client was first */
	REPLAY_NOT_STORED,   /* missing, and no room, no right or no daemon to store them */
	REPLAY_VERIFIED,     /* hits of which every byte was compared */
	REPLAY_WRONG_BLOCKS,
	REPLAY_WRONG_BYTES,
	REPLAY_REFUSED,        /* answers NOSPACE, LIMIT or BUSY */
	REPLAY_ONBOARD_BUSY,   /* answers that there is no room for the moment */
	REPLAY_ONBOARD_FAILED, /* blocks that were on the node and could not be read */
	REPLAY_ERRORS,
	REPLAY_RECONNECTS,
	REPLAY_GAVE_UP, /* 1: the daemon stayed away */
	REPLAY_N,
};

/* Written by one client; the parent reads it at any time. */
struct replay_page {
	_Atomic uint64_t counts[REPLAY_N];
	struct histogram match_ns, onboard_ns, reserve_ns, commit_ns;
	char wrong[REPLAY_TEXT], error[REPLAY_TEXT]; /* the first of each; read once the client has ended */
};

struct replay_shared {
	_Atomic uint64_t next; /* number of the next request, over all passes */
	uint64_t start_ns;     /* set before the clients may begin, as has_g3 */
	bool has_g3;           /* there is a tier below host memory */
	struct replay_page clients[];
};

struct replay {
	const char *socket; /* borrows, as all of these; NULL: where the library looks */
	const char *ns_name;
	struct requests *requests;
	struct replay_shared *shared;
	uint64_t total; /* requests in all passes */
	uint64_t block_bytes, seed;
	double rate; /* requests a second, all clients together; 0: as fast as it goes */
	uint32_t lanes, n_clients;
	bool by_socket;
	int go_fd, stop_fd; /* the clients' ends */
};

void replay_model(const struct replay *replay, struct kvbm_model *ret_model);

/* All of client number @which, in its own process.  Returns its exit status. */
int replay_client(const struct replay *replay, uint32_t which);

struct replay_outcome {
	uint64_t g2_slots, g3_slots;
	double seconds;
	uint32_t clients_killed;
	bool interrupted;
};

/* The sums over all clients. */
uint64_t replay_sum(const struct replay *replay, enum replay_count what);
/* A new object with everything that is documented in kvbmctl(1). */
json_t *replay_report(const struct replay *replay, const struct replay_outcome *outcome);
/* The same for people, on stdout. */
void replay_print(const struct replay *replay, const struct replay_outcome *outcome);

#endif
