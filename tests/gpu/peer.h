/* SPDX-License-Identifier: Apache-2.0 */
/* peer.h: an engine in a process of its own, with its own CUDA context, that does what the test says.
 *
 * The program runs itself again: main() begins with peer_main().  Each call waits for the peer's answer and fails the test
 * if the peer could not do it.
 */
#ifndef TESTS_GPU_PEER_H
#define TESTS_GPU_PEER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "gpu/gpu.h"

struct peer {
	pid_t pid;
	int fd;
};

/* In the peer: serves and exits.  Otherwise returns at once. */
void peer_main(int argc, char **argv);

void peer_start(struct peer *peer);

/* Ends it, by SIGKILL if @kill, and waits for that.  Harmless twice. */
void peer_stop(struct peer *peer, bool kill);

/* Memory of its own, for others to open as @share says. */
void peer_alloc(struct peer *peer, uint64_t bytes, enum gpu_share share, struct gpu_mem *ret_mem);

/* Opens what @mem shows; from then on it is the peer's memory.  False: the driver refused. */
bool peer_open(struct peer *peer, const struct gpu_mem *mem);

/* Between the peer's memory and a memfd. */
void peer_dump(struct peer *peer, int memfd, uint64_t bytes);
void peer_load(struct peer *peer, int memfd, uint64_t bytes);

/* An event of its own. */
void peer_event(struct peer *peer, uint8_t *ret_handle);

/* Maps and registers @memfd, the first word of which is its flag. */
void peer_flag(struct peer *peer, int memfd);

/* Submits, and does not wait: fill its memory with @byte, then write @value to the flag, or record the event (@value 0). */
void peer_fill_later(struct peer *peer, uint64_t bytes, uint8_t byte, uint64_t value);

/* On its stream: wait for the flag to reach @value, or for the event, then read all its memory: true if every byte is
 * @byte. */
bool peer_wait_and_compare(struct peer *peer, uint64_t bytes, uint8_t byte, uint64_t value);

#endif
