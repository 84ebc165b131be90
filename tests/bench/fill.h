/* SPDX-License-Identifier: Apache-2.0 */
/* fill.h: a daemon with a namespace of many small blocks in it, stored through libkvbm in large batches; and a client beside it that stores and
 * makes it drop, as fast as it goes.
 *
 * Block i's key is a function of i; its parent is block i - 1, but for every FILL_CHAIN-th, which is a root.  Its bytes begin with its key.
 */
#ifndef TESTS_BENCH_FILL_H
#define TESTS_BENCH_FILL_H

#include <kvbm.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/lib/client_proc.h"
#include "tests/lib/daemon_proc.h"

#define FILL_KEY_BYTES 16u
#define FILL_CHAIN 4096u

struct fill {
	struct daemon_proc daemon;
	struct kvbm *kvbm;  /* owns */
	struct kvbm_ns *ns; /* borrows */
	uint64_t lane_bytes;
	uint64_t resident; /* blocks 0 .. resident - 1 */
	double seconds;    /* it took */
};

/* A daemon with room for @slots blocks of @lane_bytes (and a little more), the session, and the namespace "bench". */
void fill_start(struct fill *f, uint64_t slots, uint64_t lane_bytes);
void fill_stop(struct fill *f);
/* Waits until the daemon has touched all of its memory, so that its workers do not disturb. */
void fill_settle(struct fill *f);
/* A number of the answer to @topic, of its first element if it is a list. */
uint64_t fill_ask(struct kvbm *kvbm, const char *topic, const char *name, const char *member);
/* Another session of the same namespace. */
void fill_attach(const char *socket, uint64_t lane_bytes, unsigned open_flags, struct kvbm **ret_kvbm,
                 struct kvbm_ns **ret_ns);

void fill_keys(uint64_t first, uint32_t n, uint8_t *ret_keys);
/* Stores blocks first .. first + n - 1 in one reservation. Returns the blocks dropped. */
uint32_t fill_store(struct kvbm_ns *ns, uint64_t first, uint32_t n);
void fill_blocks(struct fill *f, uint64_t n);
/* Ends the program unless these blocks are there with their bytes. */
void fill_verify(struct kvbm_ns *ns, uint64_t first, uint32_t n);

/* ---- somebody else who stores and drops ---- */

struct fill_storer {
	struct client_proc proc;
	const char *socket;
	uint64_t lane_bytes, first; /* block numbers from there on, none twice */
	uint32_t batch;
	uint64_t stored;
};

/* It attaches and waits. */
void fill_storer_start(struct fill_storer *s);
void fill_storer_go(struct fill_storer *s);
/* Waits until it waits.  Returns blocks stored since fill_storer_go(). */
uint64_t fill_storer_halt(struct fill_storer *s);
void fill_storer_end(struct fill_storer *s);

#endif
