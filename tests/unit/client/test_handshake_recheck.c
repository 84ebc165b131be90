/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-shake without the second look at the entry: a private copy of client/lookup.c takes its place in this program. */
#include "proto/shm.h"

#define shm_entry_equal(a, b) ((void)(a), (void)(b), true)
#include "client/lookup.c"
#undef shm_entry_equal

#include "tests/unit/client/handshake.h"

START_TEST(wrong_bytes_are_seen)
{
	race_run(UINT64_MAX, true, "without the second look");
}
END_TEST

int main(void)
{
	return race_control(wrong_bytes_are_seen, false);
}
