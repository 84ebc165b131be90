/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-shake with the client's fence left out: a private copy of client/lookup.c takes its place in this program. */
#include "proto/shm.h"

#define shm_fence() atomic_signal_fence(memory_order_seq_cst)
#include "client/lookup.c"
#undef shm_fence

#include "tests/unit/client/handshake.h"

START_TEST(wrong_bytes_are_seen)
{
	race_run(UINT64_MAX, true, "without the client's fence");
	must_cmp(race.wrong, >, 0);
}
END_TEST

int main(void)
{
	if (SANITIZED) {
		printf("sanitizers put so much between a store and the load after it that it has always left the core\n");
		return 77;
	}
	return race_main("handshake_client", wrong_bytes_are_seen);
}
