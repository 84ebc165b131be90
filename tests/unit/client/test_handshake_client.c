/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-shake with the client's fence left out: a private copy of client/lookup.c takes its place in this program. */
#include "proto/shm_pin.h"

#define shm_fence() atomic_signal_fence(memory_order_seq_cst)
#include "client/lookup.c"
#undef shm_fence

#define CLOG_EVICTOR 0u
#include "tests/unit/client/handshake.h"

START_TEST(wrong_bytes_are_seen)
{
	race_run(UINT64_MAX, true, "without the client's fence");
}
END_TEST

int main(void)
{
	return race_control(wrong_bytes_are_seen, true);
}
