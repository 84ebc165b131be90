/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-shake without the second look at the entry: a private copy of client/lookup.c takes its place in this program. */
#include "proto/shm_pin.h"

#define shm_entry_is_still(at, where) ((void)(at), (void)(where), true)
#include "client/lookup.c"
#undef shm_entry_is_still

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
